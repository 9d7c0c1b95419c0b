package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// tcpNode has one backend of a service, and a client.
func tcpNode(t *testing.T, more ...string) (n *node, server, client *container) {
	t.Helper()
	n = newNode(t)
	n.writeServices("web.yaml", service("web", vip(10), more...))
	n.start()
	server, client = n.container(t, "web", n.bridged(conf{"services": []string{"web"}})), n.container(t, "client", n.bridged())
	n.waitForBackends("web", 4)
	return n, server, client
}

// sequences are the numbers that the next bytes of a connection will have: the client's, and the server's.
func sequences(t *testing.T, c *conn) (client, server uint32) {
	t.Helper()
	const sending, receiving, withoutProbe = 2, 1, -1
	set := func(option, value int) { setOption(t, c.Conn, unix.SOL_TCP, option, value) }
	set(unix.TCP_REPAIR, 1)
	set(unix.TCP_REPAIR_QUEUE, sending)
	client = uint32(getOption(t, c.Conn, unix.SOL_TCP, unix.TCP_QUEUE_SEQ))
	set(unix.TCP_REPAIR_QUEUE, receiving)
	server = uint32(getOption(t, c.Conn, unix.SOL_TCP, unix.TCP_QUEUE_SEQ))
	set(unix.TCP_REPAIR, withoutProbe)
	return client, server
}

// state is what conntrack says of a client's flow; "" if it knows none.
func (n *node) state(t *testing.T, client netip.AddrPort) string {
	t.Helper()
	flows := list[[]flowRow](n, "conntrack", "list")
	i := slices.IndexFunc(flows, func(f flowRow) bool { return f.Client == client })
	if i < 0 {
		return ""
	}
	return flows[i].State
}

// A reset with a wrong number is forged, or late from an earlier life of the port. Neither end
// believes it, so we must not: the flow would expire in seconds. (Calico notes the time of any, and
// waits.)
func TestForgedResetEndsNothing(t *testing.T) {
	t.Parallel()
	n, server, client := tcpNode(t, "timeouts: {tcpFin: 1s}")
	server.serve(targetPort)
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			c := client.mustDial(t, "tcp", front(vip(10), family), 0)
			seen := client.mustHear(t, c).Client
			own, peers := sequences(t, c)
			backend := server.at(family, targetPort)
			for _, offset := range []uint32{1000, 1 << 20, 1 << 30, 1 << 31, 1<<32 - 1<<20} {
				server.send(t, built(t, packet.Spec{Src: backend, Dst: seen, Protocol: lb.TCP, Flags: packet.RST, Seq: peers + offset}))
				server.send(t, built(t, packet.Spec{Src: backend, Dst: seen, Protocol: lb.TCP, Flags: packet.RST | packet.ACK, Seq: peers + offset, Ack: own}))
				client.send(t, built(t, packet.Spec{Src: seen, Dst: front(vip(10), family), Protocol: lb.TCP, Flags: packet.RST, Seq: own + offset}))
				if got := n.state(t, seen); got != "established" {
					t.Errorf("after resets that are %d ahead the flow is %q", offset, got)
				}
				client.mustHear(t, c)
				own, peers = sequences(t, c)
			}

			// The server's own is believed: by the client, and by us.
			server.send(t, built(t, packet.Spec{Src: backend, Dst: seen, Protocol: lb.TCP, Flags: packet.RST, Seq: peers}))
			if _, err := c.ask(); err == nil {
				t.Error("the client did not believe the true reset: nothing was tested")
			}
			if got := n.state(t, seen); got == "established" || got == "opening" {
				t.Errorf("after a true reset the flow is %q", got)
			}
		})
	}
}

// A client that has said everything may listen for as long as the server speaks.
func TestHalfClosedConnectionGoesOn(t *testing.T) {
	t.Parallel()
	n, server, client := tcpNode(t, "timeouts: {tcpFin: 500ms}")
	const lines, pause = 10, 250 * time.Millisecond
	server.handle(targetPort, func(c net.Conn) {
		asked, _ := io.ReadAll(c)
		for range lines {
			time.Sleep(pause)
			fmt.Fprintf(c, "%d\n", len(asked))
		}
	})
	hostSource(t, n)
	for _, from := range []*place{client.place, n.place} {
		for family, name := range families {
			t.Run(from.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				c := from.mustDial(t, "tcp", front(vip(10), family), 0)
				if _, err := c.Write([]byte("all")); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(c.Conn.(*net.TCPConn).CloseWrite(), c.SetReadDeadline(time.Now().Add(2*lines*pause))); err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(c)
				if err != nil || len(got) != 2*lines {
					t.Errorf("%d of %d bytes come, %v", len(got), 2*lines, err)
				}
			})
		}
	}
}

// Ports are used again at once by clients that make many connections; a packet lost costs a second each time.
// (The like of it made IPVS wait or lose them: kubernetes#81775; Calico: calico#4661.)
func TestPortIsUsedAgainAtOnce(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.writeServices("web.yaml", service("web", vip(10), "scheduler: random"))
	n.start()
	for i := range 3 {
		n.container(t, fmt.Sprintf("web%d", i), n.bridged(conf{"services": []string{"web"}})).handle(targetPort, func(c net.Conn) {
			line, _ := bufio.NewReader(c).ReadString('\n')
			_, _ = io.WriteString(c, line) // and is the first to close
		})
	}
	client := n.container(t, "client", n.bridged())
	n.waitForBackends("web", 3*4)
	hostSource(t, n)
	port := 44000
	for _, from := range []*place{client.place, n.place} {
		for _, way := range []struct {
			name  string
			close func(c *conn) error
		}{
			{"server closes", func(c *conn) error {
				_, err := io.ReadAll(c.lines)
				return err
			}},
			{"client resets", func(c *conn) error { return c.Conn.(*net.TCPConn).SetLinger(0) }},
		} {
			for family, name := range families {
				t.Run(from.name+"/"+way.name+"/"+name, func(t *testing.T) {
					port++
					for i := range 200 {
						begin := time.Now()
						if err := from.requestFrom(port, front(vip(10), family), way.close); err != nil || time.Since(begin) > time.Second {
							t.Fatalf("connection %d from port %d takes %v: %v", i, port, time.Since(begin), err)
						}
					}
				})
			}
		}
	}
}

// requestFrom makes a request from a port and closes the connection by f. The kernel may take a moment to
// give the port back.
func (p *place) requestFrom(port int, to netip.AddrPort, f func(c *conn) error) error {
	c, err := p.dial("tcp", to, port)
	for end := time.Now().Add(time.Second / 2); err != nil && time.Now().Before(end); c, err = p.dial("tcp", to, port) {
		if !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("who\n")); err != nil {
		return err
	}
	if _, err := c.lines.ReadString('\n'); err != nil {
		return err
	}
	return f(c)
}

// A connection that is no longer known goes on where the choice is a function of its addresses, and else is
// reset at once, whoever speaks first. It never hangs, as moby#31208 does after 900 s.
func TestForgottenConnectionGoesOnOrIsReset(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	const idle = "timeouts: {tcpEstablished: 2s}"
	n.writeServices("all.yaml", "services:\n"+entry("steady", vip(10), "scheduler: maglev", idle)+entry("random", vip(11), "scheduler: random", idle))
	n.start()
	accepted := make(chan net.Conn, 100)
	for i := range 3 {
		c := n.container(t, fmt.Sprintf("web%d", i), n.bridged(conf{"services": []string{"steady", "random"}}))
		c.handle(targetPort, func(s net.Conn) {
			accepted <- s
			c.converse(s)
		})
	}
	clients := []*place{n.container(t, "client", n.bridged()).place, n.place, n.unattached(t, "plain").place}
	n.waitForBackends("", 2*3*4)
	hostSource(t, n)
	forget := map[string]func(t *testing.T){
		"flushed": func(*testing.T) { n.mustTclb("conntrack", "flush") },
		"expired": func(t *testing.T) {
			eventually(t, 15*time.Second, "idle flows are forgotten", func() error {
				if left := list[[]flowRow](n, "conntrack", "list"); len(left) > 0 {
					return fmt.Errorf("%d flows are left", len(left))
				}
				return nil
			})
		},
	}
	for how, f := range forget {
		t.Run(how, func(t *testing.T) {
			flows := openForgettable(t, clients, accepted)
			f(t)
			for _, x := range flows {
				x.expectFate(t)
			}
		})
	}
}

// forgettable is a connection, of both of whose ends the test has hold.
type forgettable struct {
	from         *place
	c            *conn
	server       net.Conn
	name         string // of the server
	steady       bool   // the choice is a function of the addresses
	serverSpeaks bool
}

func openForgettable(t *testing.T, clients []*place, accepted chan net.Conn) (out []forgettable) {
	t.Helper()
	for _, from := range clients {
		for family := range families {
			for v := 10; v <= 11; v++ {
				for _, serverSpeaks := range []bool{false, true} {
					if serverSpeaks && v == 10 {
						continue // ends as with any other
					}
					c := from.mustDial(t, "tcp", front(vip(v), family), 0)
					x := forgettable{from: from, c: c, steady: v == 10, serverSpeaks: serverSpeaks}
					x.name, x.server = from.mustHear(t, c).Server, <-accepted
					out = append(out, x)
				}
			}
		}
	}
	return out
}

// soon is how long a reset may take: much less than any retransmission timeout that has doubled.
const soon = time.Second

// expectFate has a connection used again that was forgotten.
func (x forgettable) expectFate(t *testing.T) {
	t.Helper()
	who := fmt.Sprintf("connection %s to %s (server speaks %v)", x.c.LocalAddr(), x.c.RemoteAddr(), x.serverSpeaks)
	if x.serverSpeaks {
		begin, err := time.Now(), error(nil)
		for err == nil && time.Since(begin) < soon { // the first write only provokes the reset
			_, err = x.server.Write([]byte("news\n"))
			time.Sleep(time.Millisecond)
		}
		if err == nil { // else the reader was told first, and closed it
			t.Errorf("%s: the server is told nothing, want a reset", who)
		}
	}
	a, err := x.c.askWithin(soon)
	switch {
	case x.steady && (err != nil || a.Server != x.name):
		t.Errorf("%s: %s answers, %v; want %s to", who, a.Server, err, x.name)
	case !x.steady && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE):
		t.Errorf("%s: %+v, %v; want a reset", who, a, err)
	}
}
