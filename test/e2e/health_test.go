package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Health checks of these tests, and how long a verdict may take: each interval is up to a tenth longer,
// and a file's change or a verdict may take `felt` on a busy machine.
const (
	checkEvery   = 200 * time.Millisecond
	checkTimeout = checkEvery
	checkRise    = 2
	checkFall    = 3

	falls = checkFall*checkEvery*11/10 + checkTimeout + felt
	rises = checkRise*checkEvery*11/10 + checkTimeout + felt
)

// checks is a line of a service.
func checks(how string) string {
	return fmt.Sprintf("healthCheck: {%s, interval: %s, timeout: %s, rise: %d, fall: %d}", how, checkEvery, checkTimeout, checkRise, checkFall)
}

// states waits until the backends have these states, given by address.
func (n *node) states(t *testing.T, within time.Duration, want map[netip.Addr]string) {
	t.Helper()
	eventually(t, within, fmt.Sprintf("states are %v", want), func() error {
		rows, err := tryList[[]backendRow](n, "backend", "list", "web")
		if err != nil {
			return err
		}
		for _, r := range rows {
			if s := want[netip.MustParseAddr(r.Address)]; r.State != s {
				return fmt.Errorf("%s is %s, want %s", r.Address, r.State, s)
			}
		}
		if len(rows) != 2*len(want) { // TCP and UDP
			return fmt.Errorf("%d rows, want %d", len(rows), 2*len(want))
		}
		return nil
	})
}

// inState gives all addresses of containers a state.
func inState(state string, containers ...*container) map[netip.Addr]string {
	out := make(map[netip.Addr]string)
	for _, c := range containers {
		for _, a := range c.addr {
			out[a] = state
		}
	}
	return out
}

func with(a, b map[netip.Addr]string) map[netip.Addr]string {
	for k, v := range b {
		a[k] = v
	}
	return a
}

// expectOnly makes requests of both protocols and families, which these servers alone must answer.
func expectOnly(t *testing.T, client *container, servers ...string) {
	t.Helper()
	for family := range families {
		for _, proto := range []string{"tcp", "udp"} {
			for server := range client.spread(t, proto, front(vip(10), family), 40) {
				if !slices.Contains(servers, server) {
					t.Errorf("%s over %s is answered by %s", families[family], proto, server)
				}
			}
		}
	}
}

func TestStoppedServerIsTakenOutAndComesBack(t *testing.T) {
	eachMode(t, testStoppedServerIsTakenOutAndComesBack)
}

func testStoppedServerIsTakenOutAndComesBack(t *testing.T, mode string) {
	n := newNode(t, mode)
	n.writeServices("web.yaml", service("web", vip(10), checks("type: tcp")))
	n.start()
	network := n.bridged(conf{"services": []string{"web"}})
	a, b := n.container(t, "a", network), n.container(t, "b", network)
	stop := a.serve(targetPort)
	b.serve(targetPort)
	client := n.container(t, "client", n.bridged())
	n.states(t, rises, inState("active", a, b)) // they may have fallen before they listened
	time.Sleep(falls)                           // nobody falls who serves
	n.states(t, 0, inState("active", a, b))
	expectServers(t, client, front(vip(10), v4), a.name, b.name)

	lines := n.fallen()
	stop()
	n.states(t, falls, with(inState("unhealthy", a), inState("active", b)))
	l := startLoad([]*container{client}, 10)
	expectOnly(t, client, b.name)
	st := list[statusRow](n, "status")
	if text := strings.Join(st.Problems, "\n"); !strings.Contains(text, a.addr[v4].String()+" fails its health checks since ") ||
		!strings.Contains(text, "connection refused") {
		t.Errorf("problems: %q", st.Problems)
	}
	if _, text, err := n.get("/metrics"); err != nil || strings.Contains(text, `tclb_health_checks_total{service="web",result="failure"} 0`) ||
		strings.Contains(text, `tclb_health_checks_total{service="web",result="success"} 0`) ||
		!strings.Contains(text, `tclb_backends{service="web",state="unhealthy"} 4`) {
		t.Errorf("metrics (%v):\n%s", err, text)
	}

	// A restart neither forgets it nor asks packets to find it out again.
	if mode == inKernel { // in userspace mode it ends what carries the load
		n.stop()
		n.start()
		expectOnly(t, client, b.name)
		n.states(t, felt, with(inState("unhealthy", a), inState("active", b)))
	}

	a.serve(targetPort)
	n.states(t, rises, inState("active", a, b))
	expectServers(t, client, front(vip(10), v4), a.name, b.name)
	l.end(t)
	if lines = n.fallen() - lines; lines != 2 {
		t.Errorf("%d lines in the log about 2 addresses that failed", lines)
	}
}

// fallen counts the lines in the log about backends that became unhealthy.
func (n *node) fallen() int { return strings.Count(n.log(), `msg="backend is unhealthy" service=web`) }

// readiness answers HTTP requests by a status that a test changes.
func (c *container) readiness(port int) *atomic.Int32 {
	status := new(atomic.Int32)
	status.Store(200)
	c.handle(port, func(conn net.Conn) {
		request := make([]byte, 4096)
		k, _ := conn.Read(request)
		if !strings.HasPrefix(string(request[:k]), "GET /ready?deep=1 HTTP/1.1\r\n") {
			return
		}
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 %d Whatever\r\nContent-Length: 0\r\n\r\n", status.Load())
	})
	return status
}

func TestUnreadyServerKeepsItsStreamsAndLosesItsDatagrams(t *testing.T) {
	eachMode(t, testUnreadyServerKeepsItsStreamsAndLosesItsDatagrams)
}

func testUnreadyServerKeepsItsStreamsAndLosesItsDatagrams(t *testing.T, mode string) {
	n := newNode(t, mode)
	n.writeServices("web.yaml", service("web", vip(10), checks("type: http, port: 9000, path: \"/ready?deep=1\", expect: 200")))
	n.start()
	network := n.bridged(conf{"services": []string{"web"}})
	a, b := n.container(t, "a", network), n.container(t, "b", network)
	ready := map[string]*atomic.Int32{}
	for _, c := range []*container{a, b} {
		ready[c.name] = c.readiness(9000)
		c.serve(targetPort)
	}
	client := n.container(t, "client", n.bridged())
	n.states(t, rises, inState("active", a, b)) // they may have fallen before they listened
	stream, datagrams := heldBy(t, client, "tcp", a), heldBy(t, client, "udp", a)

	ready[a.name].Store(503)
	n.states(t, falls, with(inState("unhealthy", a), inState("active", b)))
	expectOnly(t, client, b.name)
	if got := client.mustHear(t, stream); got.Server != a.name {
		t.Errorf("the stream went to %s", got.Server)
	}
	if got := client.mustHear(t, datagrams); got.Server != b.name {
		t.Errorf("datagrams of one socket still go to %s", got.Server)
	}

	ready[b.name].Store(500)
	n.states(t, falls, inState("unhealthy", a, b))
	for family := range families { // all fail: all serve
		expectServers(t, client, front(vip(10), family), a.name, b.name)
	}
	ready[a.name].Store(200)
	n.states(t, rises, with(inState("active", a), inState("unhealthy", b)))
	expectOnly(t, client, a.name)
	client.mustHear(t, stream)
	if text := strings.Join(list[statusRow](n, "status").Problems, "\n"); !strings.Contains(text, "status 500, want 200") {
		t.Errorf("problems: %s", text)
	}
}

// heldBy returns a connection that the given server answers.
func heldBy(t *testing.T, client *container, proto string, server *container) *conn {
	t.Helper()
	for range 100 {
		if c := client.mustDial(t, proto, front(vip(10), v4), 0); client.mustHear(t, c).Server == server.name {
			return c
		}
	}
	t.Fatalf("no %s connection to %s in 100", proto, server.name)
	return nil
}
