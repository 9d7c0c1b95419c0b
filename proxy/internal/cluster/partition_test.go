package cluster

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// wire forwards connections to a server, until it is cut: then nothing arrives any more, and nobody is
// told, as with a cable.
type wire struct {
	to       string
	listener net.Listener

	mu    sync.Mutex
	uncut chan struct{} // closed while bytes pass
	conns []net.Conn
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{to: to, listener: l, uncut: make(chan struct{})}
	close(w.uncut)
	go w.accept()
	t.Cleanup(func() {
		_ = l.Close()
		w.mend()
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, c := range w.conns {
			_ = c.Close()
		}
	})
	return w
}

func (w *wire) accept() {
	for {
		near, err := w.listener.Accept()
		if err != nil {
			return
		}
		go func() {
			<-w.state()
			far, err := net.Dial("tcp", w.to)
			if err != nil {
				_ = near.Close()
				return
			}
			w.mu.Lock()
			w.conns = append(w.conns, near, far)
			w.mu.Unlock()
			go w.copy(far, near)
			w.copy(near, far)
		}()
	}
}

func (w *wire) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		<-w.state()
		if n > 0 {
			_, _ = to.Write(buf[:n])
		}
		if err != nil {
			_ = to.Close()
			return
		}
	}
}

func (w *wire) state() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.uncut
}

func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.uncut = make(chan struct{})
}

func (w *wire) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.uncut:
	default:
		close(w.uncut)
	}
}

func TestNodeCutOffFromEtcd(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	w := newWire(t, strings.TrimPrefix(s.client, "http://"))
	defs := []state.Definition{web("web", "10.96.0.1")}
	a := s.node("node-a", 1).start(defs, container("a", "10.88.0.2", "web"))
	b := s.node("node-b", 2)
	b.etcd.Endpoints = []string{"http://" + w.listener.Addr().String()}
	b.start(defs, container("b", "10.89.0.2", "web"))
	both(a, b)
	w.cut()
	a.wantBackends("web", "node-a/10.88.0.2 active") // for the others it is dead
	eventually(t, "b noticed", func() bool { return !b.source.Status().Connected })
	b.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.2 active") // it serves on
	b.store.SetEndpoints([]registry.Endpoint{container("b", "10.89.0.2", "web"), container("new", "10.89.0.3", "web")})
	a.store.SetEndpoints(nil)
	b.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.2 active", "node-b/10.89.0.3 active")
	begun := time.Now()
	w.mend()
	for _, n := range []*node{a, b} {
		n.wantBackends("web", "node-b/10.89.0.2 active", "node-b/10.89.0.3 active")
	}
	t.Logf("together again after %s", time.Since(begun).Round(time.Millisecond))
}
