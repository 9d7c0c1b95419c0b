package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// static is a Balancer whose flows try the same backends one after the other.
type static struct {
	backends []netip.AddrPort
	idle     atomic.Int64 // a duration
	refuse   bool
	room     int // 0: for all

	mu    sync.Mutex
	flows []*flow
}

func (s *static) Begin(front lb.Frontend, client netip.AddrPort, gone func()) (Flow, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse {
		return nil, errors.New("refused")
	}
	if s.room > 0 && len(s.flows)-s.over() >= s.room {
		return nil, fmt.Errorf("begin: %w", ErrFull)
	}
	f := &flow{s: s, front: front, client: client, gone: gone, over: make(chan struct{})}
	s.flows = append(s.flows, f)
	return f, nil
}

// over counts the flows that have ended. s.mu is held.
func (s *static) over() (n int) {
	for _, f := range s.flows {
		n += min(f.told().ends, 1)
	}
	return n
}

// flow notes what it is told.
type flow struct {
	s      *static
	front  lb.Frontend
	client netip.AddrPort
	gone   func()
	over   chan struct{}

	mu  sync.Mutex
	at  int
	was told
}

// told is what a flow was told.
type told struct {
	connected, closings, ends int
	gaveWay                   int
	sent, answered            uint64
	failures                  []Failure
}

func (f *flow) told() told {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.was
}

func (f *flow) expect(t testing.TB, want told) {
	t.Helper()
	if got := f.told(); !reflect.DeepEqual(got, want) {
		t.Errorf("flow was told %+v, want %+v", got, want)
	}
}

func (f *flow) Backend() netip.AddrPort { return f.s.backends[f.at] }
func (f *flow) Idle() time.Duration     { return time.Duration(f.s.idle.Load()) }
func (f *flow) Connected()              { f.mu.Lock(); f.was.connected++; f.mu.Unlock() }
func (f *flow) Sent(_, n uint64)        { f.mu.Lock(); f.was.sent += n; f.mu.Unlock() }
func (f *flow) Answered(_, n uint64)    { f.mu.Lock(); f.was.answered += n; f.mu.Unlock() }
func (f *flow) GiveWay()                { f.mu.Lock(); f.was.gaveWay++; f.mu.Unlock() }
func (f *flow) Closing()                { f.mu.Lock(); f.was.closings++; f.mu.Unlock() }

func (f *flow) Failed(why Failure) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.was.failures = append(f.was.failures, why)
	if f.at+1 == len(f.s.backends) {
		return false
	}
	f.at++
	return true
}

func (f *flow) End() {
	f.mu.Lock()
	f.was.ends++
	first := f.was.ends == 1
	f.mu.Unlock()
	if first {
		close(f.over)
	}
}

// began waits for the nth flow.
func (s *static) began(t testing.TB, n int) *flow {
	t.Helper()
	for range 1000 {
		s.mu.Lock()
		if len(s.flows) > n {
			defer s.mu.Unlock()
			return s.flows[n]
		}
		s.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("no flow %d", n)
	return nil
}

func (f *flow) ended(t testing.TB) {
	t.Helper()
	select {
	case <-f.over:
	case <-time.After(10 * time.Second):
		t.Fatal("the flow has not ended")
	}
}

// listenTCP returns a listener on a free port of this address.
func listenTCP(t testing.TB, addr string) *net.TCPListener {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort()
	case *net.UDPAddr:
		return a.AddrPort()
	}
	panic("no address")
}

// freePort returns a port that nobody has now.
func freePort(t testing.TB, addr string) uint16 {
	t.Helper()
	l := listenTCP(t, addr)
	defer l.Close()
	return addrPort(l.Addr()).Port()
}

func newRelay(t testing.TB, o Options) *Relay {
	t.Helper()
	r := New(o)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = r.Shutdown(ctx)
	})
	return r
}

// front has the relay listen.
func (r *Relay) front(t testing.TB, addr string, protocol lb.Protocol) lb.Frontend {
	t.Helper()
	f := lb.Frontend{VIP: netip.MustParseAddr(addr), Port: freePort(t, addr), Protocol: protocol}
	if failed := r.Sync([]lb.Frontend{f}); len(failed) > 0 {
		t.Fatal(failed)
	}
	return f
}

func dial(t testing.TB, f lb.Frontend) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", netip.AddrPortFrom(f.VIP, f.Port).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

func accepted(t testing.TB, l *net.TCPListener) *net.TCPConn {
	t.Helper()
	_ = l.SetDeadline(time.Now().Add(20 * time.Second))
	c, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// say writes at one end and reads the same at the other.
func say(t testing.TB, from, to net.Conn, what []byte) {
	t.Helper()
	failed := make(chan error, 1)
	go func() {
		_, err := from.Write(what)
		failed <- err
	}()
	got := make([]byte, len(what))
	if _, err := io.ReadFull(to, got); err != nil {
		t.Fatalf("read: %v", err)
	}
	if err := <-failed; err != nil {
		t.Fatalf("write: %v", err)
	}
	if !bytes.Equal(got, what) {
		t.Fatal("other bytes arrived than were sent")
	}
}

func expectEOF(t testing.TB, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read %d bytes and %v, want the end", n, err)
	}
}

func TestBothWays(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		backend := listenTCP(t, addr)
		s := &static{backends: []netip.AddrPort{addrPort(backend.Addr())}}
		r := newRelay(t, Options{Balancer: s})
		client := dial(t, r.front(t, addr, lb.TCP))
		server := accepted(t, backend)
		say(t, server, client, []byte("hello first"))
		say(t, client, server, []byte("question"))
		big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB: spliced
		say(t, client, server, big)
		say(t, server, client, big)
		say(t, client, server, []byte("small again"))
		_ = client.CloseWrite()
		expectEOF(t, server)
		say(t, server, client, big)
		_ = server.CloseWrite()
		expectEOF(t, client)
		f := s.began(t, 0)
		f.ended(t)
		f.expect(t, told{connected: 1, closings: 1, ends: 1, sent: uint64(len(big) + 8 + 11), answered: uint64(2*len(big) + 11)})
	}
}
