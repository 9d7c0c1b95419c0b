package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// short are times within which a test sees flows end of which no copies come.
const short = "timeouts: {tcpFin: 1s, tcpEstablished: 1h, udp: 30s}"

// newDirectPair is a pair of nodes with uplinks and a client outside, which knows the first one. Service web of
// that one has its backend on the second, which may answer by itself. more are further lines of the service.
func newDirectPair(t *testing.T, more ...string) (p pairOfNodes, client *place) {
	t.Helper()
	c := newCluster(t, 2, v4, distinctSubnets, "uplinks: ["+underlayDevice+"]")
	p = pairOfNodes{cluster: c, a: c.nodes[0], b: c.nodes[1]}
	c.start()
	c.waitForUplinks(t)
	p.server = p.b.container(t, "server", p.b.bridged())
	p.server.serve(targetPort)
	p.a.writeServices("web.yaml", service("web", vip(10), append(more, "dsr: true", remote(p.b, p.server.addr[:]...))...))
	p.a.waitForBackends("web", 4)
	client = p.newClientOutside(t)
	routeVIPs(client, p.a, 0)
	p.watchTunnel("RETURN")
	return p, client
}

// waitForUplinks waits until the nodes answer what comes in by the underlay.
func (c *cluster) waitForUplinks(t *testing.T) {
	t.Helper()
	for _, n := range c.nodes {
		maps := n.maps()
		eventually(t, 5*time.Second, n.name+" has its uplink", func() error {
			up, err := maps.Uplinks()
			if got := n.programs(t, underlayDevice); err == nil && (len(up) != 1 || got != 2) {
				err = fmt.Errorf("uplinks %v, %d programs", up, got)
			}
			return err
		})
	}
}

// watchTunnel counts what comes to the first node by the second one's tunnel, or drops it all.
func (p pairOfNodes) watchTunnel(verdict string) {
	p.t.Helper()
	p.a.run("iptables", "-w", "-I", "INPUT", "-s", p.b.underlay.String(), "-p", "udp", "--dport", "4789", "-j", verdict)
}

// backByTunnel is how many bytes the newest rule has met.
func (p pairOfNodes) backByTunnel(t *testing.T) (bytes int) {
	t.Helper()
	for line := range strings.Lines(p.a.run("iptables", "-w", "-L", "INPUT", "-v", "-x", "-n")) {
		if fields := strings.Fields(line); strings.Contains(line, "dpt:4789") {
			if _, err := fmt.Sscan(fields[1], &bytes); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			return bytes
		}
	}
	t.Fatal("the rule is gone")
	return 0
}

// asks is eachWay for a client that asks the service and is seen by its own address.
func (p pairOfNodes) asks(t *testing.T, client *place) {
	t.Helper()
	eachWay(t, func(t *testing.T, family int, proto string) {
		var a answer
		eventually(t, time.Second, "the VIP answers", func() (err error) {
			a, err = client.askWithin(proto, front(vip(10), family), patience/4)
			return err
		})
		if want := underlayAddress(family, outsideIndex); a.Server != p.server.name || a.Client.Addr() != want {
			t.Errorf("%s answers and sees %s, want %s and %s", a.Server, a.Client, p.server.name, want)
		}
	})
}

type directRow struct {
	Protocol, State string
	Client          netip.AddrPort
	DSR             bool
}

// flowOf finds a node's row of a connection.
func (n *node) flowOf(c *conn) (directRow, bool) {
	n.t.Helper()
	at := netip.MustParseAddrPort(c.LocalAddr().String())
	rows := list[[]directRow](n, "conntrack", "list")
	i := slices.IndexFunc(rows, func(r directRow) bool {
		return r.Client == at && r.Protocol == c.RemoteAddr().Network()
	})
	if i < 0 {
		return directRow{}, false
	}
	return rows[i], true
}

// active is how many connections the service has by the first node's count.
func (p pairOfNodes) active() (n uint64) {
	p.t.Helper()
	for _, r := range list[[]backendRow](p.a, "backend", "list", "web") {
		if r.Protocol == "tcp" {
			n += r.ActiveConnections
		}
	}
	return n
}

func (p pairOfNodes) expectActive(t *testing.T, want uint64, within time.Duration) {
	t.Helper()
	eventually(t, within, fmt.Sprintf("%d connections", want), func() error {
		if got := p.active(); got != want {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
}

// expectDirect makes a connection and asserts that both nodes know that it is answered directly, or that none is.
func (p pairOfNodes) expectDirect(t *testing.T, client *place, want bool) {
	t.Helper()
	eachWay(t, func(t *testing.T, family int, proto string) {
		c := client.mustDial(t, proto, front(vip(10), family), 0)
		client.mustHear(t, c)
		if row, ok := p.b.flowOf(c); !ok || row.DSR != want {
			t.Errorf("at the backend's node: %+v, %v", row, ok)
		}
		c.Close()
	})
}

// withDirectBulk adds services that give n bytes, and that echo.
func (p pairOfNodes) withDirectBulk(t *testing.T, n int) {
	t.Helper()
	p.withBulk(t, n)
	p.server.echo(bulkPort)
	p.a.writeServices("bulk.yaml", fmt.Sprintf("services:\n- name: bulk\n  dsr: true\n  vips: [%s, %q]\n  ports: [{port: %d, targetPort: %d}, {name: echo, protocol: udp, port: %d, targetPort: %d}]\n  %s\n",
		vip(20)[v4], vip(20)[v6], servicePort, bulkPort, servicePort, bulkPort, remote(p.b, p.server.addr[:]...)))
	p.a.waitForBackends("bulk", 4)
}

// The answers of a backend's node do not pass the node that chose, whatever their size; that one counts right.
func TestBackendsNodeAnswersClientsOutside(t *testing.T) {
	t.Parallel()
	const size = 128 << 20
	p, client := newDirectPair(t)
	p.asks(t, client)
	p.expectDirect(t, client, true)
	p.withDirectBulk(t, size)
	before := p.backByTunnel(t)
	p.client = &container{place: client}
	for family := range families {
		p.bothWays(t, family, size)
		client.echoes(t, front(vip(20), family), 8000)
	}
	if n := p.backByTunnel(t) - before; n > size/100 {
		t.Errorf("%d bytes came back by the tunnel", n)
	}
	for _, at := range []*place{client, p.server.place, p.a.place, p.b.place} {
		if n := at.wrongChecksums(t); n != 0 {
			t.Errorf("%s met %d wrong checksums", at.name, n)
		}
	}
	c := client.mustDial(t, "tcp", front(vip(10), v4), 0)
	client.mustHear(t, c)
	p.expectActive(t, 1, felt)
	if row, ok := p.a.flowOf(c); !ok || !row.DSR || row.State != "established" {
		t.Errorf("at the node that chose: %+v, %v", row, ok)
	}
	c.Close()
	p.expectActive(t, 0, patience)
}

// echoes sends a datagram until it comes back, after a small one: nothing can be said behind a fragment.
func (p *place) echoes(t *testing.T, to netip.AddrPort, size int) {
	t.Helper()
	c := p.mustDial(t, "udp", to, 0)
	data, buf := pattern(size, 3), make([]byte, 65536)
	if _, err := c.Write([]byte("small")); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, fmt.Sprintf("%d bytes come back from %s", size, to), func() error {
		err := c.SetDeadline(time.Now().Add(patience / 8))
		if err == nil {
			_, err = c.Write(data)
		}
		n := 0
		if err == nil {
			n, err = c.Read(buf)
		}
		if err == nil && !bytes.Equal(buf[:n], data) {
			err = fmt.Errorf("%d bytes come back, or others", n)
		}
		return err
	})
}

// Nothing has to come back by the tunnel, not even a word about flows: those that end are missed a while later.
func TestDirectAnswersNeedNoTunnelBack(t *testing.T) {
	t.Parallel()
	p, client := newDirectPair(t, short)
	p.withDirectBulk(t, 16<<20)
	p.watchTunnel("DROP")
	p.asks(t, client)
	p.client = &container{place: client}
	for family := range families {
		p.bothWays(t, family, 16<<20)
		client.echoes(t, front(vip(20), family), 8000)
	}
	p.expectActive(t, 0, 10*time.Second)
	c := client.mustDial(t, "tcp", front(vip(10), v6), 0)
	client.mustConverse(t, c, 5)
	p.expectActive(t, 1, felt)
	if n := p.backByTunnel(t); n == 0 {
		t.Error("nothing was dropped: the test shows nothing")
	}
	c.Close()
	p.expectActive(t, 0, 10*time.Second)
}

// A node that has no uplink, or no way to the client by one, answers by the node that chose, and so does one
// without tclb: TestPlainPeersAreNotTold.
func TestDirectAnswersFallBackToTheChooser(t *testing.T) {
	t.Parallel()
	p, client := newDirectPair(t)
	open := client.mustDial(t, "tcp", front(vip(10), v4), 0)
	client.mustHear(t, open)
	p.b.configureProxy(p.list)
	p.b.hangUp()
	maps := p.b.maps()
	eventually(t, 5*time.Second, "the uplink is one no more", func() error {
		up, err := maps.Uplinks()
		if err == nil && len(up) > 0 {
			err = fmt.Errorf("uplinks %v", up)
		}
		return err
	})
	before := p.backByTunnel(t)
	p.asks(t, client)
	p.expectDirect(t, client, false)
	if n := p.backByTunnel(t) - before; n < 500 {
		t.Errorf("%d bytes came back by the tunnel", n)
	}
	client.mustHear(t, open)
	p.expectActive(t, 1, felt)
}

// Neither a process of the backend's node nor a container that nobody attached has a program in front of it, and
// strict reverse path filters of both nodes have nothing to say.
func TestAnyProcessAnswersClientsDirectly(t *testing.T) {
	t.Parallel()
	p, client := newDirectPair(t)
	for _, n := range p.nodes {
		n.strictReversePath()
	}
	plain := p.b.container(t, "plain", p.b.network("red", p.b.bridge("red0", p.b.subnets)))
	plain.serve(targetPort)
	own := [2]netip.Addr{underlayAddress(v4, 1), underlayAddress(v6, 1)}
	p.b.serve(targetPort, own[:]...)
	p.a.writeServices("all.yaml", "services:\n"+entry("process", vip(11), "dsr: true", remote(p.b, own[:]...))+
		entry("plain", vip(12), "dsr: true", remote(p.b, plain.addr[:]...)))
	p.a.waitForBackends("process", 4)
	p.a.waitForBackends("plain", 4)
	p.watchTunnel("DROP")
	for i, server := range map[int]string{11: p.b.name, 12: plain.name} {
		eachWay(t, func(t *testing.T, family int, proto string) {
			c := client.mustDial(t, proto, front(vip(i), family), 0)
			if a := client.mustHear(t, c); a.Server != server {
				t.Errorf("%s answers, want %s", a.Server, server)
			}
		})
	}
}

// Proxies may stop: those who know what packets say are programs.
func TestDirectAnswersOutliveTheProxies(t *testing.T) {
	t.Parallel()
	p, client := newDirectPair(t)
	c := client.mustDial(t, "tcp", front(vip(10), v4), 0)
	client.mustHear(t, c)
	p.b.kill()
	client.mustHear(t, c)
	before := p.backByTunnel(t)
	p.asks(t, client)
	client.mustConverse(t, c, 10)
	if n := p.backByTunnel(t) - before; n > 5000 {
		t.Errorf("%d bytes came back by the tunnel", n)
	}
	p.b.start()
	client.mustHear(t, c)
	p.a.kill()
	p.asks(t, client)
	p.a.start()
	client.mustHear(t, c)
	p.expectActive(t, 1, felt)
}

// A drain waits for flows of which the node sees half, and no longer.
func TestDrainWaitsForDirectFlows(t *testing.T) {
	t.Parallel()
	for verdict, more := range map[string][]string{"RETURN": nil, "DROP": {short}} { // with copies, and without
		t.Run(verdict, func(t *testing.T) {
			t.Parallel()
			p, client := newDirectPair(t, more...)
			c := client.mustDial(t, "tcp", front(vip(10), v4), 0)
			client.mustHear(t, c)
			p.watchTunnel(verdict)
			address := p.server.addr[v4].String()
			if r := p.a.tclb("backend", "drain", "web", address, "--wait=500ms"); r.status != 3 {
				t.Errorf("while there is a flow: exit status %d, %s%s", r.status, r.stdout, r.stderr)
			}
			client.mustHear(t, c)
			done := make(chan result, 1)
			go func() { done <- p.a.tclb("backend", "drain", "web", address, "--wait=20s") }()
			c.Close()
			if r := <-done; r.status != 0 {
				t.Errorf("without one: exit status %d, %s%s", r.status, r.stdout, r.stderr)
			}
		})
	}
}

// Nodes choose alike: when the one that chose is gone the next one goes on, and the backend's node, which was
// answering directly all the time, hears of it from there.
func TestDirectFlowGoesOnByAnotherNode(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, v4, distinctSubnets, "uplinks: ["+underlayDevice+"]")
	c.start()
	c.waitForUplinks(t)
	b := c.nodes[1]
	server := b.container(t, "server", b.bridged())
	server.serve(targetPort)
	for _, n := range []*node{c.nodes[0], c.nodes[2]} {
		n.writeServices("web.yaml", service("web", vip(10), "dsr: true", remote(b, server.addr[:]...)))
		n.waitForBackends("web", 4)
	}
	client := c.newClientOutside(t)
	routeVIPs(client, c.nodes[0], 0)
	var flows []*conn
	for i := range 8 {
		f := client.mustDial(t, "tcp", front(vip(10), i%2), 0)
		client.mustHear(t, f)
		flows = append(flows, f)
	}
	c.underlay.ip("link set port0 down")
	client.ip("route replace 192.0.2.0/24 via " + underlayAddress(v4, 2).String())
	client.ip("-6 route replace 2001:db8:ff::/64 via " + underlayAddress(v6, 2).String())
	for _, f := range flows {
		client.mustHear(t, f)
		client.mustHear(t, f)
		if row, ok := b.flowOf(f); !ok || !row.DSR {
			t.Errorf("at the backend's node: %+v, %v", row, ok)
		}
		if row, ok := c.nodes[2].flowOf(f); !ok || !row.DSR || row.State != "established" {
			t.Errorf("at the node that goes on: %+v, %v", row, ok)
		}
	}
}
