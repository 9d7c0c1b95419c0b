package relay

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// through is a client's connection, the backend's end of it, and what the flow was told.
type through struct {
	r              *Relay
	s              *static
	front          lb.Frontend
	backend        *net.TCPListener
	client, server *net.TCPConn
	flow           *flow
}

func connectThrough(t testing.TB, o Options) *through {
	t.Helper()
	c := &through{backend: listenTCP(t, "127.0.0.1")}
	c.s = &static{backends: []netip.AddrPort{addrPort(c.backend.Addr())}}
	o.Balancer = c.s
	c.r = newRelay(t, o)
	c.front = c.r.front(t, "127.0.0.1", lb.TCP)
	c.client = dial(t, c.front)
	c.server = accepted(t, c.backend)
	c.flow = c.s.began(t, 0)
	return c
}

func expectReset(t testing.TB, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("read: %v, want a reset", err)
	}
}

// expectGone is for a peer that has read the end: only what it writes tells it of a reset.
func expectGone(t testing.TB, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); errors.Is(err, unix.ECONNRESET) {
		return
	}
	for range 1000 {
		if _, err := c.Write([]byte("x")); err != nil {
			if !errors.Is(err, unix.EPIPE) {
				t.Errorf("write: %v, want a broken pipe", err)
			}
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("the peer of a reset connection goes on writing")
}

// reset closes a connection by a reset.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	c.Close()
}

func TestServerEndsFirst(t *testing.T) {
	c := connectThrough(t, Options{})
	_ = c.server.CloseWrite()
	expectEOF(t, c.client)
	big := bytes.Repeat([]byte("client"), 1<<18)
	say(t, c.client, c.server, big)
	if c.flow.told().closings != 0 {
		t.Error("closing although the client has not ended")
	}
	_ = c.client.CloseWrite()
	expectEOF(t, c.server)
	c.flow.ended(t)
	c.flow.expect(t, told{connected: 1, sent: uint64(len(big)), closings: 1, ends: 1})
}

func TestResetsArePassedOn(t *testing.T) {
	for _, ended := range []bool{false, true} { // reset by one that has ended its direction before
		c := connectThrough(t, Options{})
		say(t, c.client, c.server, []byte("hello"))
		if ended {
			_ = c.client.CloseWrite()
			expectEOF(t, c.server)
		}
		reset(c.client)
		c.flow.ended(t)
		expectGone(t, c.server)
		c.flow.expect(t, told{connected: 1, sent: 5, closings: 1, ends: 1})

		c = connectThrough(t, Options{})
		say(t, c.server, c.client, []byte("hello"))
		if ended {
			_ = c.server.CloseWrite()
			expectEOF(t, c.client)
		}
		reset(c.server)
		c.flow.ended(t)
		expectGone(t, c.client)
		c.flow.expect(t, told{connected: 1, answered: 5, closings: 1, ends: 1})
	}
}

// A server that answers before it has read everything closes by a reset. Its answer counts.
func TestAnswerBeforeResetArrives(t *testing.T) {
	c := connectThrough(t, Options{})
	_, _ = c.client.Write([]byte("more than the server reads"))
	say(t, c.client, c.server, nil)
	answer := []byte("413 content too large")
	_, _ = c.server.Write(answer)
	got := make([]byte, len(answer))
	if _, err := io.ReadFull(c.client, got); err != nil || !bytes.Equal(got, answer) {
		t.Fatalf("%q, %v", got, err)
	}
	reset(c.server)
	expectReset(t, c.client)
}

// full returns an address whose kernel answers no SYN: its queue is full.
func full(t testing.TB) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
	for range 2 {
		if c, err := net.DialTimeout("tcp", at.String(), 200*time.Millisecond); err == nil {
			t.Cleanup(func() { c.Close() })
		}
	}
	return at
}

func nobody(t testing.TB) netip.AddrPort {
	t.Helper()
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t, "127.0.0.1"))
}

func TestNextBackend(t *testing.T) {
	question := bytes.Repeat([]byte("question"), 1<<15)
	for _, speaksFirst := range []bool{true, false} {
		backend := listenTCP(t, "127.0.0.1")
		s := &static{backends: []netip.AddrPort{nobody(t), full(t), addrPort(backend.Addr())}}
		r := newRelay(t, Options{Balancer: s, ConnectTimeout: 50 * time.Millisecond})
		client := dial(t, r.front(t, "127.0.0.1", lb.TCP))
		if speaksFirst {
			go func() {
				_, _ = client.Write(question)
				_ = client.CloseWrite()
			}()
		}
		server := accepted(t, backend)
		if speaksFirst {
			got, err := io.ReadAll(server)
			if err != nil || !bytes.Equal(got, question) {
				t.Fatalf("%d bytes arrived, want %d: %v", len(got), len(question), err)
			}
		}
		say(t, server, client, []byte("answer"))
		f := s.began(t, 0)
		if got := f.told(); len(got.failures) != 2 || got.failures[0] != Refused || got.failures[1] != Unanswered || got.connected != 1 {
			t.Errorf("flow was told %+v", got)
		}
	}
}

// Writing may be the first to learn that a backend cannot be had.
func TestNextBackendAfterAFailedWrite(t *testing.T) {
	backend := listenTCP(t, "127.0.0.1")
	s := &static{backends: []netip.AddrPort{full(t), addrPort(backend.Addr())}}
	r := newRelay(t, Options{Balancer: s, ConnectTimeout: time.Hour, Threads: 1})
	client := dial(t, r.front(t, "127.0.0.1", lb.TCP))
	_, _ = client.Write([]byte("question"))
	for held := 0; held == 0; {
		r.conns(func(c *conn) {
			if held = c.holds(); held > 0 {
				_ = unix.Shutdown(c.backend.fd, unix.SHUT_RDWR)
				c.up.full = false
				c.advance()
			}
		})
	}
	got := make([]byte, 8)
	if _, err := io.ReadFull(accepted(t, backend), got); err != nil || string(got) != "question" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestNoBackendIsAReset(t *testing.T) {
	s := &static{backends: []netip.AddrPort{nobody(t), nobody(t)}}
	r := newRelay(t, Options{Balancer: s})
	front := r.front(t, "127.0.0.1", lb.TCP)
	expectNoService(t, front)
	f := s.began(t, 0)
	f.ended(t)
	if got := f.told(); len(got.failures) != 2 || got.closings != 0 || got.connected != 0 || got.ends != 1 {
		t.Errorf("flow was told %+v", got)
	}
	s.mu.Lock()
	s.refuse = true
	s.mu.Unlock()
	expectNoService(t, front)
}

// expectNoService wants a reset: as an answer to connecting, if it was so quick, or later.
func expectNoService(t testing.TB, f lb.Frontend) {
	t.Helper()
	c, err := net.Dial("tcp", netip.AddrPortFrom(f.VIP, f.Port).String())
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
}

// A client that gives up while the backend is being connected to is let go at once.
func TestClientResetsWhileConnecting(t *testing.T) {
	s := &static{backends: []netip.AddrPort{full(t)}}
	r := newRelay(t, Options{Balancer: s, ConnectTimeout: time.Hour})
	client := dial(t, r.front(t, "127.0.0.1", lb.TCP))
	f := s.began(t, 0)
	fill(client, make([]byte, 1<<20))
	r.conns(func(c *conn) {
		if c.holds() == 0 || c.holds() > smallRest {
			t.Errorf("the relay holds %d bytes, want at most %d", c.holds(), smallRest)
		}
	})
	reset(client)
	f.ended(t)
	f.expect(t, told{ends: 1})
}

func TestGone(t *testing.T) {
	c := connectThrough(t, Options{})
	say(t, c.client, c.server, []byte("hello"))
	c.flow.gone()
	expectReset(t, c.client)
	expectReset(t, c.server)
	c.flow.ended(t)
	c.flow.gone() // is allowed
	other := dial(t, c.front)
	say(t, other, accepted(t, c.backend), []byte("hello"))
	c.flow.expect(t, told{connected: 1, sent: 5, closings: 1, ends: 1})
}

// pass moves the relay's clock.
func (r *Relay) pass(d time.Duration) {
	r.skew.Add(int64(d))
	for _, w := range r.workers {
		w.do(func() {})
	}
}

func TestIdleConnectionEnds(t *testing.T) {
	c := connectThrough(t, Options{})
	c.s.idle.Store(int64(time.Hour))
	c.r.pass(59 * time.Minute)
	say(t, c.client, c.server, []byte("still here"))
	c.r.pass(59 * time.Minute)
	say(t, c.server, c.client, []byte("still here"))
	c.r.pass(61 * time.Minute)
	expectReset(t, c.client)
	expectReset(t, c.server)
	c.flow.ended(t)
}

// An urgent byte arrives in its place, as any other, and nothing waits behind it.
func TestUrgentByte(t *testing.T) {
	c := connectThrough(t, Options{})
	long := bytes.Repeat([]byte("x"), 2*spliceAfter)
	for _, way := range []struct{ from, to *net.TCPConn }{{c.client, c.server}, {c.server, c.client}} {
		for _, before := range [][]byte{[]byte("abc"), long} {
			say(t, way.from, way.to, before)
			raw, err := way.from.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if err := raw.Control(func(fd uintptr) { err = unix.Send(int(fd), []byte("!"), unix.MSG_OOB) }); err != nil {
				t.Fatal(err)
			}
			_, _ = way.from.Write([]byte("efg"))
			got := make([]byte, 4)
			if _, err := io.ReadFull(way.to, got); err != nil || string(got) != "!efg" {
				t.Errorf("%q, %v", got, err)
			}
		}
	}
}

// Bytes and the end that arrive together are one event.
func TestEndBehindTheLastBytes(t *testing.T) {
	c := connectThrough(t, Options{Threads: 1})
	say(t, c.client, c.server, []byte("hello"))
	say(t, c.server, c.client, []byte("hello"))
	for _, way := range []struct{ from, to *net.TCPConn }{{c.client, c.server}, {c.server, c.client}} {
		busy, goOn := make(chan struct{}), make(chan struct{})
		c.r.workers[0].post(func() { close(busy); <-goOn })
		<-busy
		_, _ = way.from.Write([]byte("last words"))
		_ = way.from.CloseWrite()
		close(goOn)
		if got, err := io.ReadAll(way.to); err != nil || string(got) != "last words" {
			t.Errorf("%q, %v", got, err)
		}
	}
	c.flow.ended(t)
}
