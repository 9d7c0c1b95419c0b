package cluster

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// logText keeps what is logged.
type logText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// node is a proxy's state store and its part of a cluster, in memory.
type node struct {
	t       testing.TB
	name    string
	dir     string
	address netip.Addr
	log     *logText
	etcd    config.Etcd
	dial    func(context.Context) (kv, error) // nil = the real one

	store  *state.Store
	source *Source
	cancel context.CancelFunc
	done   chan struct{}

	dead    atomic.Bool // etcd is out of its reach
	mu      sync.Mutex
	changed chan struct{}
}

// newNode returns a node that uses a store in memory, or what its dial says.
func newNode(t testing.TB, name string, i int, m *memory) *node {
	n := &node{
		changed: make(chan struct{}),
		t:       t, name: name, dir: t.TempDir(), address: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), log: new(logText),
		etcd: config.Etcd{Prefix: "/tclb", LeaseTTL: 10 * time.Second, RestartGrace: 5 * time.Minute},
	}
	if m != nil {
		n.dial = func(context.Context) (kv, error) { return m.link(&n.dead), nil }
	}
	return n
}

// die ends the node without a word to the store.
func (n *node) die() {
	n.dead.Store(true)
	n.stop()
	n.dead.Store(false)
}

// start runs the node with those services of files and containers until stop or the test's end.
func (n *node) start(defs []state.Definition, endpoints ...registry.Endpoint) *node {
	n.t.Helper()
	log := slog.New(slog.NewTextHandler(n.log, nil))
	n.store = state.New(n.name, n.dir, lb.Timeouts{}, log)
	n.store.Share()
	n.source = New(Options{
		Etcd: n.etcd, Node: n.name, StateDir: n.dir, Store: n.store, Log: log, dial: n.dial,
		Self:    func() Node { return Node{Address: n.address, Version: "test"} },
		Changed: n.next,
	})
	n.store.SetServices(defs)
	n.store.SetEndpoints(endpoints)
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.done = cancel, make(chan struct{})
	var wg sync.WaitGroup
	go func() {
		defer close(n.done)
		defer wg.Wait()
		if err := n.source.Run(ctx); err != nil {
			n.t.Error(err)
		}
	}()
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-n.store.Changed():
				n.touch()
			}
		}
	})
	n.t.Cleanup(n.stop)
	return n
}

func (n *node) next() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

func (n *node) touch() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.changed)
	n.changed = make(chan struct{})
}

// stop is a SIGTERM.
func (n *node) stop() {
	n.cancel()
	<-n.done
}

// backends lists a service's backends as node/address state.
func (n *node) backends(service string) []string {
	svc := n.store.Snapshot().Service(service)
	if svc == nil {
		return nil
	}
	out := []string{}
	for i := range svc.Backends {
		b := &svc.Backends[i]
		text := b.Key() + " " + b.State.String()
		if b.Lost {
			text += " lost"
		}
		out = append(out, text)
	}
	return out
}

// eventually waits for something that other goroutines bring about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (n *node) wantBackends(service string, want ...string) {
	n.t.Helper()
	var got []string
	defer func() {
		if n.t.Failed() {
			n.t.Logf("%s has %q of %s, want %q\n%s", n.name, got, service, want, n.log)
		}
	}()
	eventually(n.t, fmt.Sprintf("%s: backends of %s", n.name, service), func() bool {
		got = n.backends(service)
		return slices.Equal(got, want)
	})
}

func container(id, address string, services ...string) registry.Endpoint {
	return registry.Endpoint{
		ID: registry.EndpointID(id, "eth0"), ContainerID: id, Ifname: "eth0", HostIfindex: 7, Container: id,
		MAC: "02:00:00:00:00:01", Addresses: []netip.Addr{addr(address)}, Services: services, Network: "net",
	}
}

func web(name, vip string) state.Definition {
	return state.Definition{File: "/etc/" + name + ".yaml", Spec: lb.Service{
		Name: name, Members: true, VIPs: []netip.Addr{addr(vip)}, Ports: []lb.Port{{Protocol: lb.TCP, Port: 80, TargetPort: 80}},
	}}
}

// fromPool gives VIPs of a pool.
func fromPool(pool string, names ...string) func([]lb.Service, map[string][]netip.Addr) (map[string][]netip.Addr, error) {
	return func(others []lb.Service, held map[string][]netip.Addr) (map[string][]netip.Addr, error) {
		for _, n := range names {
			others = append(others, lb.Service{Name: n})
		}
		return config.AssignVIPs(others, []netip.Prefix{netip.MustParsePrefix(pool)}, held)
	}
}

func text(name, vip string) NewService {
	n := NewService{Name: name, Text: []byte("services:\n- name: " + name + "\n  ports: [{port: 80}]\n")}
	if vip != "" {
		n.VIPs = []netip.Addr{addr(vip)}
		n.Text = append(n.Text, "  vips: [\""+vip+"\"]\n"...)
	}
	return n
}

// TestMain lets more tests run at once than there are cores: they wait more than they compute.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("8")
	}
	os.Exit(m.Run())
}
