package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// schedulers are all there are.
var schedulers = []string{"maglev", "random", "round-robin", "least-conn", "bounded-load", "latency"}

// Ports of a pool's service beside the usual one, which converses: one more of that kind, one that has
// the usual one's target, and one that tells who took the connection and nothing else.
const (
	secondPort, secondTarget = 81, 8081
	sharedPort               = 82
	tellPort, tellTarget     = 443, 8443
)

// The VIPs of a pool's service: two of each family.
var poolVIPs = [2][2]netip.Addr{vip(10), vip(11)}

// pool is a node with a service whose backends, scheduler and weights a test changes while it runs.
type pool struct {
	*node
	servers []*container
	client  *container
}

// newPool starts a node with so many servers. The service has no backends before the first configure.
// extra lines are added to tclb.yaml.
func newPool(t *testing.T, servers int, extra ...string) *pool {
	t.Helper()
	p := &pool{node: newNode(t, extra...)}
	p.start()
	for i := range servers {
		s := p.container(t, fmt.Sprintf("web%d", i), p.bridged())
		s.serve(targetPort)
		s.serve(secondTarget)
		s.tell(tellTarget, byte(i))
		p.servers = append(p.servers, s)
	}
	p.client = p.container(t, "client", p.bridged())
	return p
}

// configure gives the service a scheduler and its backends their weights, of which a negative one leaves
// the backend out. more are further lines of the service. It returns when packets feel it.
func (p *pool) configure(scheduler string, weights []int, more ...string) {
	p.t.Helper()
	text := "services:\n- name: web\n  scheduler: " + scheduler + "\n  vips:\n"
	for _, v := range poolVIPs {
		text += fmt.Sprintf("  - %q\n  - %q\n", v[v4], v[v6])
	}
	text += "  ports:\n" +
		fmt.Sprintf("  - {name: stream, port: %d, targetPort: %d}\n", servicePort, targetPort) +
		fmt.Sprintf("  - {name: datagram, protocol: udp, port: %d, targetPort: %d}\n", servicePort, targetPort) +
		fmt.Sprintf("  - {name: second, port: %d, targetPort: %d}\n", secondPort, secondTarget) +
		fmt.Sprintf("  - {name: shared, port: %d, targetPort: %d}\n", sharedPort, targetPort) +
		fmt.Sprintf("  - {name: tell, port: %d, targetPort: %d}\n", tellPort, tellTarget) +
		"  backends:\n"
	for i, w := range weights {
		for _, a := range p.servers[i].addr {
			if w >= 0 {
				text += fmt.Sprintf("  - {address: %q, weight: %d}\n", a, w)
			}
		}
	}
	for _, line := range more {
		text += "  " + line + "\n"
	}
	p.applied(func() { p.writeServices("web.yaml", text) })
}

// applied makes a change of a service and waits until it is in the maps.
func (p *pool) applied(change func()) {
	p.t.Helper()
	type revisions struct{ Revision, Applied uint64 }
	before := list[revisions](p.node, "status")
	change()
	eventually(p.t, felt, "the change is in the maps", func() error {
		now := list[revisions](p.node, "status")
		if now.Revision == before.Revision || now.Applied < now.Revision {
			return fmt.Errorf("revision %d, applied %d; before %d", now.Revision, now.Applied, before.Revision)
		}
		return nil
	})
}

// weigh sets a server's weight by command.
func (p *pool) weigh(server, weight int) {
	p.t.Helper()
	for _, a := range p.servers[server].addr {
		p.mustTclb("backend", "weight", "web", a.String(), fmt.Sprint(weight))
	}
}

// index is which server gave an answer.
func (p *pool) index(t testing.TB, a answer) int {
	t.Helper()
	i := slices.IndexFunc(p.servers, func(c *container) bool { return c.name == a.Server })
	if i < 0 {
		t.Fatalf("%s answers, which is no server", a.Server)
	}
	return i
}

// hold opens a connection, and returns which server has it.
func (p *pool) hold(t testing.TB, proto string, family int) (*conn, int) {
	t.Helper()
	c := p.client.mustDial(t, proto, front(poolVIPs[0], family), 0)
	return c, p.index(t, p.client.mustHear(t, c))
}

// waitForActive waits until the backends of a protocol and family have so many connections.
func (p *pool) waitForActive(t testing.TB, proto string, family int, want []int) {
	t.Helper()
	eventually(t, felt, fmt.Sprintf("%v connections are active", want), func() error {
		got := make([]int, len(p.servers))
		rows, err := tryList[[]backendRow](p.node, "backend", "list", "web")
		if err != nil {
			return err
		}
		for _, r := range rows {
			at := slices.IndexFunc(p.servers, func(c *container) bool { return c.addr[family].String() == r.Address })
			if at >= 0 && r.Port == targetPort && r.Protocol == proto {
				got[at] += int(r.ActiveConnections)
			}
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("there are %v", got)
		}
		return nil
	})
}

// reset closes a TCP connection by a RST, which leaves nothing behind on either side.
func reset(t testing.TB, c *conn) {
	t.Helper()
	if err := errors.Join(c.Conn.(*net.TCPConn).SetLinger(0), c.Close()); err != nil {
		t.Error(err)
	}
}

// tell accepts TCP connections and sends each client one byte.
func (p *place) tell(port int, mark byte) {
	p.t.Helper()
	var l net.Listener
	p.do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
		return err
	})
	p.keep(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte{mark})
			c.Close()
		}
	}()
}

// draw makes IPv4 connections to a port that tells, one after the other, and returns who took each. They
// come from the ports given, each of which is free again afterwards.
func (p *place) draw(t testing.TB, to netip.AddrPort, firstPort, count int) []int {
	t.Helper()
	marks := make([]int, count)
	err := p.try(func() error { // on one thread, by blocking calls: the fastest that a client can be
		for i := range marks {
			var err error
			if marks[i], err = drawOnce(to, firstPort+i); err != nil {
				return fmt.Errorf("connection %d of %d, from port %d: %w", i, count, firstPort+i, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s draws from %s: %v", p.name, to, err)
	}
	return marks
}

func drawOnce(to netip.AddrPort, port int) (mark int, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	limit := unix.NsecToTimeval(int64(patience / time.Nanosecond))
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.Bind(fd, &unix.SockaddrInet4{Port: port}),
	)
	if err != nil {
		return 0, err
	}
	server := unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	if err := uninterrupted(func() error { return unix.Connect(fd, &server) }); err != nil {
		return 0, fmt.Errorf("connect: %w", err)
	}
	buf, n := make([]byte, 1), 0
	err = uninterrupted(func() (err error) {
		n, err = unix.Read(fd, buf)
		return err
	})
	if err != nil || n != 1 {
		return 0, fmt.Errorf("read %d bytes: %w", n, err)
	}
	return int(buf[0]), nil
}

// uninterrupted repeats a system call that the runtime's signals interrupt.
func uninterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// tally counts how often each server is in a list.
func tally(servers int, list []int) []int {
	out := make([]int, servers)
	for _, s := range list {
		out[s]++
	}
	return out
}

// alike is a list of equal weights.
func alike(n int) []int { return slices.Repeat([]int{100}, n) }
