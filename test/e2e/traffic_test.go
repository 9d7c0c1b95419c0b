package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds a request: on one machine an answer takes less than a millisecond.
const patience = 2 * time.Second

// answer is what a server says: who it is, and which client it sees.
type answer struct {
	Server string
	Client netip.AddrPort
}

func parseAnswer(line string) (answer, error) {
	name, client, _ := strings.Cut(strings.TrimSpace(line), " ")
	at, err := netip.ParseAddrPort(client)
	if err != nil {
		return answer{}, fmt.Errorf("answer %q: %w", line, err)
	}
	return answer{name, netip.AddrPortFrom(at.Addr().Unmap(), at.Port())}, nil
}

// serve answers TCP and UDP requests on a port of all addresses, or of those given, until the place
// vanishes or stop is called.
func (p *place) serve(port int, addresses ...netip.Addr) (stop func()) {
	p.t.Helper()
	if len(addresses) == 0 {
		addresses = []netip.Addr{netip.IPv6Unspecified()}
	}
	var closers []func()
	for _, a := range addresses {
		at := netip.AddrPortFrom(a, uint16(port)).String()
		p.do(func() error {
			l, err := net.Listen("tcp", at)
			if err != nil {
				return err
			}
			u, err := net.ListenPacket("udp", at)
			if err != nil {
				return errors.Join(err, l.Close())
			}
			closers = append(closers, accept(l, p.converse), p.answerUDP(u))
			return nil
		})
	}
	stop = func() {
		for _, c := range closers {
			c()
		}
	}
	p.keep(stop)
	return stop
}

// handle runs f for every connection to a TCP port, until the place vanishes or stop is called.
func (p *place) handle(port int, f func(net.Conn)) (stop func()) {
	p.t.Helper()
	var l net.Listener
	p.do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
		return err
	})
	stop = accept(l, f)
	p.keep(stop)
	return stop
}

// accept runs f for every connection.
func accept(l net.Listener, f func(net.Conn)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(ctx, func() { c.Close() })
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	return func() { cancel(); l.Close() }
}

// converse answers each line of a connection.
func (p *place) converse(c net.Conn) {
	for lines := bufio.NewScanner(c); lines.Scan(); {
		if _, err := fmt.Fprintf(c, "%s %s\n", p.name, c.RemoteAddr()); err != nil {
			return
		}
	}
}

func (p *place) answerUDP(u net.PacketConn) (stop func()) {
	go func() {
		buf := make([]byte, 2048)
		for {
			_, from, err := u.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = u.WriteTo(fmt.Appendf(nil, "%s %s\n", p.name, from), from)
			}
		}
	}()
	return func() { u.Close() }
}

// conn is a connection (or a connected UDP socket) on which requests can be made.
type conn struct {
	net.Conn
	lines *bufio.Reader
}

// dial connects from a port, or from any if that is 0.
func (p *place) dial(network string, to netip.AddrPort, port int) (*conn, error) {
	d := net.Dialer{Timeout: patience, Control: reuse}
	if port == 0 && network == "udp" {
		port = p.freshPort()
	}
	if port != 0 {
		if d.LocalAddr = net.Addr(&net.TCPAddr{Port: port}); network == "udp" {
			d.LocalAddr = &net.UDPAddr{Port: port}
		}
	}
	var c net.Conn
	err := p.try(func() (err error) {
		c, err = d.Dial(network, to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return &conn{c, bufio.NewReader(c)}, nil
}

// freshPort is one that no datagram of the place has left from. The kernel takes any that is free, also one of a socket that was closed,
// whose flow is still known and keeps its backend; and, with reuse, one that is not free.
func (p *place) freshPort() int {
	const first, last = 10000, 30000 // below those that the kernel takes
	return first + int(p.ports.Add(1)-1)%(last-first)
}

// reuse lets sockets share a local port, as long as they are connected to different addresses.
func reuse(_, _ string, raw syscall.RawConn) error {
	var err error
	return errors.Join(raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}), err)
}

// ask makes one request.
func (c *conn) ask() (answer, error) { return c.askWithin(patience) }

func (c *conn) askWithin(d time.Duration) (answer, error) {
	if err := c.SetDeadline(time.Now().Add(d)); err != nil {
		return answer{}, err
	}
	if _, err := c.Write([]byte("who\n")); err != nil {
		return answer{}, err
	}
	line, err := c.lines.ReadString('\n')
	if err != nil {
		return answer{}, err
	}
	return parseAnswer(line)
}

// ask makes one request on a connection of its own.
func (p *place) ask(network string, to netip.AddrPort) (answer, error) {
	return p.askWithin(network, to, patience)
}

func (p *place) askWithin(network string, to netip.AddrPort, d time.Duration) (answer, error) {
	c, err := p.dial(network, to, 0)
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	a, err := c.askWithin(d)
	if err != nil {
		return answer{}, fmt.Errorf("ask %s from %s: %w", to, c.LocalAddr(), err)
	}
	return a, nil
}

// mustAsk is ask for requests that must be answered.
func (p *place) mustAsk(t testing.TB, network string, to netip.AddrPort) answer {
	t.Helper()
	a, err := p.ask(network, to)
	if err != nil {
		t.Fatalf("%s asks %s %s: %v", p.name, network, to, err)
	}
	return a
}

// mustDial is dial for connections that must come about.
func (p *place) mustDial(t testing.TB, network string, to netip.AddrPort, port int) *conn {
	t.Helper()
	c, err := p.dial(network, to, port)
	if err != nil {
		t.Fatalf("%s dials %s %s from port %d: %v", p.name, network, to, port, err)
	}
	p.keep(func() { c.Close() })
	return c
}

// mustHear makes a request on a connection, which must be answered.
func (p *place) mustHear(t testing.TB, c *conn) answer {
	t.Helper()
	a, err := c.ask()
	if err != nil {
		t.Fatalf("%s asks %s from %s: %v", p.name, c.RemoteAddr(), c.LocalAddr(), err)
	}
	return a
}

// lineSize is the length of the requests of a long conversation: the servers' scanners take no more.
const lineSize = 60000

// mustConverse makes requests of lineSize bytes, each of which must be answered at once.
func (p *place) mustConverse(t testing.TB, c *conn, requests int) {
	t.Helper()
	line := append(bytes.Repeat([]byte{'x'}, lineSize-1), '\n')
	for i := range requests {
		err := c.SetDeadline(time.Now().Add(patience))
		if err == nil {
			_, err = c.Write(line)
		}
		if err == nil {
			_, err = c.lines.ReadString('\n')
		}
		if err != nil {
			t.Fatalf("%s makes request %d of %d bytes to %s: %v", p.name, i, lineSize, c.RemoteAddr(), err)
		}
	}
}

// askUnconnected makes one UDP request from a socket that takes answers from anywhere, and
// returns where the answer came from.
func (p *place) askUnconnected(to netip.AddrPort) (answer, netip.AddrPort, error) {
	var u *net.UDPConn
	err := p.try(func() (err error) {
		u, err = net.ListenUDP("udp", nil)
		return err
	})
	if err != nil {
		return answer{}, netip.AddrPort{}, err
	}
	defer u.Close()
	if err := u.SetDeadline(time.Now().Add(patience)); err != nil {
		return answer{}, netip.AddrPort{}, err
	}
	if _, err := u.WriteToUDPAddrPort([]byte("who\n"), to); err != nil {
		return answer{}, netip.AddrPort{}, err
	}
	buf := make([]byte, 2048)
	n, from, err := u.ReadFromUDPAddrPort(buf)
	if err != nil {
		return answer{}, netip.AddrPort{}, err
	}
	a, err := parseAnswer(string(buf[:n]))
	return a, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
}

// spread asks n times and counts who answered.
func (p *place) spread(t testing.TB, network string, to netip.AddrPort, n int) map[string]int {
	t.Helper()
	out := make(map[string]int)
	for range n {
		out[p.mustAsk(t, network, to).Server]++
	}
	return out
}
