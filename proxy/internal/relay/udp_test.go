package relay

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// echo answers datagrams with themselves behind a name.
func echo(t testing.TB, addr, name string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetReadBuffer(4 << 20) // all clients may ask at once
	go func() {
		for buf := make([]byte, 70000); ; {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(append([]byte(name), buf[:n]...), from)
		}
	}()
	return addrPort(c.LocalAddr())
}

// dialUDP is connected: it hears nothing that does not come from the VIP.
func dialUDP(t testing.TB, f lb.Frontend) *net.UDPConn {
	t.Helper()
	c, err := net.Dial("udp", netip.AddrPortFrom(f.VIP, f.Port).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

func ask(t testing.TB, c *net.UDPConn, what, want []byte) {
	t.Helper()
	if _, err := c.Write(what); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, 70000)
	n, err := c.Read(got)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:n], want) {
		t.Fatalf("answer has %d bytes, want %d", n, len(want))
	}
}

func TestDatagrams(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		s := &static{backends: []netip.AddrPort{echo(t, addr, "")}}
		r := newRelay(t, Options{Balancer: s})
		f := r.front(t, addr, lb.UDP)
		first := dialUDP(t, f)
		for _, n := range []int{0, 1, 1400, 9000, 65507} {
			what := bytes.Repeat([]byte{byte(n)}, n)
			ask(t, first, what, what)
		}
		for i := range 300 {
			what := []byte{byte(i), byte(i >> 8)}
			ask(t, dialUDP(t, f), what, what)
		}
	}
}

func TestManyClientsAtOnce(t *testing.T) {
	s := &static{backends: []netip.AddrPort{echo(t, "127.0.0.1", "")}}
	r := newRelay(t, Options{Balancer: s})
	f := r.front(t, "127.0.0.1", lb.UDP)
	var done sync.WaitGroup
	for i := range 200 {
		c := dialUDP(t, f)
		done.Go(func() {
			for n := range 20 {
				what := fmt.Appendf(nil, "client %d, datagram %d", i, n)
				got := make([]byte, 100)
				_, _ = c.Write(what)
				_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
				if n, err := c.Read(got); err != nil || !bytes.Equal(got[:n], what) {
					t.Errorf("%q was answered by %q, %v", what, got[:n], err)
					return
				}
			}
		})
	}
	done.Wait()
	if got := r.sessions.Load(); got != 200 {
		t.Errorf("there are %d sessions, want 200", got)
	}
}

func TestDatagramsGoToTheNextBackend(t *testing.T) {
	s := &static{backends: []netip.AddrPort{nobody(t), echo(t, "127.0.0.1", "")}}
	r := newRelay(t, Options{Balancer: s})
	c := dialUDP(t, r.front(t, "127.0.0.1", lb.UDP))
	ask(t, c, []byte("hello"), []byte("hello"))
	f := s.began(t, 0)
	if got := f.told(); len(got.failures) != 1 || got.failures[0] != Refused || got.connected != 1 || got.answered != 5 {
		t.Errorf("flow was told %+v", got)
	}
}

func TestSessionsEnd(t *testing.T) {
	s := &static{backends: []netip.AddrPort{echo(t, "127.0.0.1", "")}}
	r := newRelay(t, Options{Balancer: s, MaxSessions: 1})
	front := r.front(t, "127.0.0.1", lb.UDP)
	c := dialUDP(t, front)
	ask(t, c, []byte("a"), []byte("a"))

	s.idle.Store(int64(time.Hour))
	r.pass(59 * time.Minute)
	ask(t, c, []byte("b"), []byte("b"))
	r.pass(59 * time.Minute)
	ask(t, c, []byte("c"), []byte("c"))
	r.pass(61 * time.Minute)
	s.began(t, 0).ended(t)
	s.began(t, 0).expect(t, told{connected: 1, sent: 3, answered: 3, closings: 1, ends: 1})

	ask(t, c, []byte("d"), []byte("d")) // of a new session
	s.began(t, 1).gone()
	s.began(t, 1).ended(t)
	s.began(t, 1).gone()

	s.mu.Lock()
	s.refuse = true
	s.mu.Unlock()
	expectSilence(t, c)
	s.mu.Lock()
	s.refuse = false
	s.mu.Unlock()

	ask(t, c, []byte("e"), []byte("e"))
	if failed := r.Sync(nil); len(failed) > 0 {
		t.Fatal(failed)
	}
	ask(t, c, []byte("f"), []byte("f")) // a session survives its listener
	r.maxSessions = 2
	expectSilence(t, dialUDP(t, front))
	if failed := r.Sync([]lb.Frontend{front}); len(failed) > 0 {
		t.Fatal(failed)
	}
	ask(t, dialUDP(t, front), []byte("g"), []byte("g"))
	if failed := r.Sync(nil); len(failed) > 0 {
		t.Fatal(failed)
	}
	for n := range 4 {
		s.began(t, n).gone()
		s.began(t, n).ended(t)
	}
	l, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(front.VIP, front.Port)))
	if err != nil {
		t.Fatalf("the address is still taken when its last session has ended: %v", err)
	}
	l.Close()
}

// Where there is no room, who was carried least recently gives way: by the relay's own bound, or the Balancer's.
func TestTheLeastUsedSessionGivesWay(t *testing.T) {
	for _, bound := range []Options{{MaxSessions: 3}, {}} {
		s := &static{backends: []netip.AddrPort{echo(t, "127.0.0.1", "")}}
		if bound.MaxSessions == 0 {
			s.room = 3
		}
		bound.Balancer = s
		r := newRelay(t, bound)
		front := r.front(t, "127.0.0.1", lb.UDP)
		var clients []*net.UDPConn
		for range 3 {
			clients = append(clients, dialUDP(t, front))
			ask(t, clients[len(clients)-1], []byte("a"), []byte("a"))
		}
		ask(t, clients[0], []byte("b"), []byte("b"))
		for n, gives := range []int{1, 2, 0} {
			ask(t, dialUDP(t, front), []byte("c"), []byte("c"))
			s.began(t, gives).ended(t)
			if got := s.began(t, gives).told(); got.gaveWay != 1 || got.ends != 1 {
				t.Errorf("flow %d was told %+v", gives, got)
			}
			s.began(t, 3+n)
		}
		if got := r.sessions.Load(); got != 3 {
			t.Errorf("%d sessions", got)
		}
	}
}

// Nobody gives way where there is nobody.
func TestNoRoomAtAll(t *testing.T) {
	s := &static{backends: []netip.AddrPort{echo(t, "127.0.0.1", "")}, refuse: true}
	r := newRelay(t, Options{Balancer: noRoom{s}})
	expectSilence(t, dialUDP(t, r.front(t, "127.0.0.1", lb.UDP)))
}

// noRoom has none.
type noRoom struct{ *static }

func (noRoom) Begin(lb.Frontend, netip.AddrPort, func()) (Flow, error) { return nil, ErrFull }

func TestAnswersKeepASession(t *testing.T) {
	backend, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	s := &static{backends: []netip.AddrPort{addrPort(backend.LocalAddr())}}
	s.idle.Store(int64(time.Hour))
	r := newRelay(t, Options{Balancer: s})
	c := dialUDP(t, r.front(t, "127.0.0.1", lb.UDP))
	if _, err := c.Write([]byte("subscribe")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	_, from, err := backend.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		r.pass(59 * time.Minute)
		_, _ = backend.WriteToUDPAddrPort([]byte("news"), from)
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != "news" {
			t.Fatalf("%q, %v", buf[:n], err)
		}
	}
}

// expectSilence sends a datagram that is not answered.
func expectSilence(t *testing.T, c *net.UDPConn) {
	t.Helper()
	_, _ = c.Write([]byte("is anybody there"))
	_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := c.Read(make([]byte, 100)); err == nil {
		t.Errorf("%d bytes came back, want nothing", n)
	}
}

// One worker reads both families into the same addresses: a client is the same one whatever was there before.
func TestClientsOfBothFamilies(t *testing.T) {
	s := &static{backends: []netip.AddrPort{echo(t, "127.0.0.1", "")}}
	r := newRelay(t, Options{Balancer: s, Threads: 1})
	four := lb.Frontend{VIP: netip.MustParseAddr("127.0.0.1"), Port: freePort(t, "127.0.0.1"), Protocol: lb.UDP}
	six := lb.Frontend{VIP: netip.MustParseAddr("::1"), Port: four.Port, Protocol: lb.UDP}
	if failed := r.Sync([]lb.Frontend{four, six}); len(failed) > 0 {
		t.Fatal(failed)
	}
	clients := []*net.UDPConn{dialUDP(t, four), dialUDP(t, six)}
	for range 3 {
		for _, c := range clients {
			ask(t, c, []byte("hello"), []byte("hello"))
		}
	}
	if got := r.sessions.Load(); got != 2 {
		t.Errorf("two clients have %d sessions", got)
	}
	for i, c := range clients {
		if got := s.began(t, i).client; got != addrPort(c.LocalAddr()) {
			t.Errorf("the Balancer was told of client %s, want %s", got, c.LocalAddr())
		}
	}
}
