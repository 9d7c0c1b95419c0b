package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
)

// cluster is nodes that reach each other by an underlay: a namespace with a bridge, on which other hosts
// can be as well.
type cluster struct {
	t        *testing.T
	underlay *place
	nodes    []*node
	list     string // of the nodes, in tclb.yaml
}

// underlayDevice is the nodes' device there.
const underlayDevice = "under0"

// underlayAddress returns the address of the i-th node, or of another host, on the underlay.
func underlayAddress(family, i int) netip.Addr {
	if family == v4 {
		return netip.AddrFrom4([4]byte{203, 0, 113, byte(10 + i)})
	}
	a := netip.MustParseAddr("2001:db8:e::").As16()
	a[15] = byte(10 + i)
	return netip.AddrFrom16(a)
}

// distinctSubnets are those of the i-th node's containers where no two nodes have the same.
func distinctSubnets(i int) []string {
	return []string{fmt.Sprintf("198.51.100.%d/26", 64*i), fmt.Sprintf("2001:db8:a:%d::/64", i)}
}

// sameSubnets is what nodes have whose runtimes nobody told otherwise.
func sameSubnets(int) []string { return subnetsA }

// newCluster makes nodes that tunnel over addresses of that family. No proxy runs yet: see start. extra
// lines are added to each tclb.yaml.
func newCluster(t *testing.T, count, family int, subnets func(i int) []string, extra ...string) *cluster {
	t.Helper()
	c := &cluster{t: t}
	c.list = "nodes:"
	for i := range count {
		n := newNode(t)
		n.subnets, n.underlay = subnets(i), underlayAddress(family, i)
		if c.underlay == nil {
			c.underlay = newSwitch(t, n.name+"-underlay")
		}
		c.plug(n.place, underlayDevice, i)
		c.nodes = append(c.nodes, n)
		c.list += fmt.Sprintf("\n- {name: %s, address: %q, subnets: [%q, %q]}", n.name, n.underlay, n.subnets[v4], n.subnets[v6])
	}
	for _, n := range c.nodes {
		n.configureProxy(append(extra, c.list)...)
	}
	return c
}

// newSwitch makes a namespace with a bridge.
func newSwitch(t *testing.T, name string) *place {
	t.Helper()
	p := newPlace(t, name)
	p.do(func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "switch0"}})
	})
	p.configure("switch0")
	return p
}

// plug connects a place to the underlay, as its i-th host.
func (c *cluster) plug(p *place, device string, i int) {
	c.t.Helper()
	port := fmt.Sprintf("port%d", i)
	join(p, device, c.underlay, port,
		[]string{underlayAddress(v4, i).String() + "/24", underlayAddress(v6, i).String() + "/64"}, nil)
	c.underlay.do(func() error {
		bridge, err := netlinksafe.LinkByName("switch0")
		if err != nil {
			return err
		}
		l, err := netlinksafe.LinkByName(port)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(l, bridge)
	})
}

// start runs all proxies.
func (c *cluster) start() {
	c.t.Helper()
	for _, n := range c.nodes {
		n.start()
	}
}

// remote are lines of a services file for backends on another node.
func remote(on *node, addresses ...netip.Addr) string {
	out := "backends:"
	for _, a := range addresses {
		out += fmt.Sprintf("\n  - {address: %q, node: %s}", a, on.name)
	}
	return out
}
