package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
)

type nodeRow struct {
	Name, Address string
	Reachable     bool
	MTU           int
}

// row is how a node lists another one.
func (n *node) row(of *node) nodeRow {
	n.t.Helper()
	rows := list[[]nodeRow](n, "node", "list")
	i := slices.IndexFunc(rows, func(r nodeRow) bool { return r.Name == of.name })
	if i < 0 {
		n.t.Fatalf("%s is not in %+v", of.name, rows)
	}
	return rows[i]
}

// hangUp has the proxy read its files again.
func (n *node) hangUp() {
	n.t.Helper()
	if err := n.proxy.Process.Signal(syscall.SIGHUP); err != nil {
		n.t.Fatal(err)
	}
}

// Flows to another node outlive the proxies of both: killed, and started again.
func TestTunnelledFlowsOutliveTheProxies(t *testing.T) {
	t.Parallel()
	p := newPairOfNodes(t, v4, distinctSubnets)
	c := p.client.mustDial(t, "tcp", front(vip(10), v4), 0)
	p.client.mustHear(t, c)
	before := p.a.maps()
	nodes, err := before.Nodes()
	if err != nil || len(nodes) != 1 {
		t.Fatalf("nodes %v, %v", nodes, err)
	}
	p.a.kill()
	p.b.kill()
	p.client.mustHear(t, c)
	p.client.mustAsk(t, "tcp", front(vip(10), v6))
	p.a.start()
	p.b.start()
	p.client.mustHear(t, c)
	p.client.mustAsk(t, "udp", front(vip(10), v6))
	after, err := p.a.maps().Nodes()
	if err != nil || fmt.Sprint(after) != fmt.Sprint(nodes) {
		t.Errorf("nodes were %v, are %v, %v", nodes, after, err)
	}
	rows := list[[]struct{ Client, Backend, Node string }](p.a, "conntrack", "list")
	for _, r := range rows {
		if r.Node != p.b.name {
			t.Errorf("flow to %s on node %q, want %s", r.Backend, r.Node, p.b.name)
		}
	}
	if rows := list[[]struct{ Client, Backend, Node string }](p.b, "conntrack", "list"); len(rows) == 0 || rows[0].Node != p.b.name {
		t.Errorf("flows at the backend's node: %+v", rows)
	}
}

// Nodes come and go with SIGHUP: what is not listed is not known, and nothing is left of it.
func TestNodesFollowTheList(t *testing.T) {
	t.Parallel()
	p := newPairOfNodes(t, v4, distinctSubnets)
	if row := p.a.row(p.b); row.MTU != 1450 || !row.Reachable || row.Address != p.b.underlay.String() {
		t.Errorf("node %+v", row)
	}
	p.client.mustAsk(t, "tcp", front(vip(10), v4))
	p.a.configureProxy()
	p.a.hangUp()
	maps := p.a.maps()
	eventually(t, 5*time.Second, "the node is forgotten", func() error {
		nodes, err := maps.Nodes()
		if links := p.a.links(); err == nil && (len(nodes) > 0 || slices.Contains(links, "tclbvx")) {
			err = fmt.Errorf("nodes %v, devices %v", nodes, links)
		}
		return err
	})
	if _, err := p.client.ask("tcp", front(vip(10), v4)); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a service on no node that is known: %v", err)
	}
	if s := p.a.mustTclb("status"); !strings.Contains(s, "is on node "+p.b.name+", which is not known") {
		t.Errorf("status: %s", s)
	}
	p.a.configureProxy(p.list)
	p.a.hangUp()
	eventually(t, 5*time.Second, "the node is back", func() error {
		_, err := p.client.askWithin("tcp", front(vip(10), v4), patience/4)
		return err
	})
}

// Port and VNI of the tunnel change without a restart.
func TestTunnelSettingsAreReloaded(t *testing.T) {
	t.Parallel()
	p := newPairOfNodes(t, v6, distinctSubnets)
	p.client.mustAsk(t, "tcp", front(vip(10), v4))
	for _, n := range p.nodes {
		n.configureProxy(p.list, "tunnel: {port: 4790, vni: 16777215, mtu: 1300}")
		n.hangUp()
	}
	maps := p.a.maps()
	eventually(t, 5*time.Second, "the tunnel is as it should be now", func() error {
		s, err := maps.Settings()
		if row := p.a.row(p.b); err == nil && (s.Tunnel.VNI != 16777215 || row.MTU != 1300) {
			err = fmt.Errorf("settings %+v, node %+v", s.Tunnel, row)
		}
		if err == nil {
			_, err = p.client.askWithin("tcp", front(vip(10), v6), patience/4)
		}
		return err
	})
	if s := p.a.run("ip", "-d", "link", "show", "tclbvx"); !strings.Contains(s, "dstport 4790") {
		t.Errorf("the device: %s", s)
	}
}

// The device is ours: whatever becomes of it, it is there again.
func TestTunnelDeviceIsRepaired(t *testing.T) {
	t.Parallel()
	p := newPairOfNodes(t, v4, distinctSubnets)
	for _, harm := range []func(netlink.Link) error{netlink.LinkSetDown, netlink.LinkDel} {
		p.a.do(func() error {
			l, err := netlinksafe.LinkByName("tclbvx")
			if err != nil {
				return err
			}
			return harm(l)
		})
		eventually(t, 5*time.Second, "the tunnel is there again", func() error {
			_, err := p.client.askWithin("tcp", front(vip(10), v4), patience/4)
			return err
		})
	}
}

// A smaller link on the way is noticed without an operator, and container MTUs are none of its business.
func TestSmallerUnderlayIsNoticed(t *testing.T) {
	t.Parallel()
	p := newPairOfNodes(t, v6, distinctSubnets)
	c := p.client.mustDial(t, "tcp", front(vip(10), v4), 0)
	p.client.mustConverse(t, c, 3)
	for _, n := range p.nodes {
		n.ip("link set " + underlayDevice + " mtu 1400")
	}
	eventually(t, 5*time.Second, "less fits", func() error {
		if row := p.a.row(p.b); row.MTU != 1330 {
			return fmt.Errorf("node %+v", row)
		}
		return nil
	})
	for family := range families {
		c := p.client.mustDial(t, "tcp", front(vip(10), family), 0)
		p.client.mustConverse(t, c, 3)
	}
	p.client.mustConverse(t, c, 3)
}

func TestUninstallTakesTheTunnelAway(t *testing.T) {
	t.Parallel()
	p := newPairOfNodes(t, v4, distinctSubnets, "uplinks: ["+underlayDevice+"]")
	p.client.mustAsk(t, "tcp", front(vip(10), v4))
	eventually(t, 3*time.Second, "programs are on the uplink", func() error {
		if got := p.a.programs(t, underlayDevice); got != 2 {
			return fmt.Errorf("%d programs", got)
		}
		return nil
	})
	p.a.stop()
	p.a.mustTclb("uninstall")
	if got := p.a.programs(t, underlayDevice); got != 0 {
		t.Errorf("%d programs on the uplink", got)
	}
	for _, l := range p.a.links() {
		if strings.HasPrefix(l, "tclb") {
			t.Errorf("device %s is left", l)
		}
	}
}

// A port that is somebody else's is said, with what to do.
func TestTakenTunnelPortIsSaid(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, v4, distinctSubnets)
	n := c.nodes[0]
	n.errorsAreOK = true
	n.serve(4789)
	n.start()
	eventually(t, 3*time.Second, "status says it", func() error {
		if s := n.mustTclb("status"); !strings.Contains(s, "set tunnel.port to a free one") {
			return fmt.Errorf("status: %s", s)
		}
		return nil
	})
}
