package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// The link to the outside: the node's addresses there, and a host's behind it.
var (
	uplink   = [2]netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:e::1")}
	external = [2]netip.Addr{netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8:e::2")}
)

// outside makes a host behind the node, which has a route back through it.
func (n *node) outside(t *testing.T) *place {
	t.Helper()
	p := newPlace(t, n.name+"-outside")
	join(n.place, "up0", p, "eth0",
		[]string{uplink[v4].String() + "/24", uplink[v6].String() + "/64"},
		[]string{external[v4].String() + "/24", external[v6].String() + "/64"})
	p.ip("route add default via " + uplink[v4].String())
	p.ip("-6 route add default via " + uplink[v6].String())
	return p
}

// unattached starts a container on the bridge that our plugin never sees.
func (n *node) unattached(t *testing.T, name string) *container {
	t.Helper()
	return n.container(t, name, n.network("red", n.bridge("red0", subnetsA)))
}

// backends is the line of a services file for backends of both families.
func backends(addresses ...netip.Addr) string {
	out := "backends: ["
	for i, a := range addresses {
		if i > 0 {
			out += ", "
		}
		out += fmt.Sprintf("{address: %q}", a)
	}
	return out + "]"
}

// mixedNode has a service for every kind of backend: on VIP 10 attached containers, 11 a process of
// the host, 12 a container that is not attached, 13 a host outside.
type mixedNode struct {
	*node
	attached   *container
	unattached *container
	outside    *place
}

func newMixedNode(t *testing.T) mixedNode {
	t.Helper()
	n := newNode(t)
	n.strictReversePath()
	m := mixedNode{node: n, outside: n.outside(t)}
	m.attached = n.container(t, "attached", n.bridged(conf{"services": []string{"on-container"}}))
	m.unattached = n.unattached(t, "unattached")
	for _, p := range []*place{m.attached.place, m.unattached.place, m.outside} {
		p.serve(targetPort)
	}
	n.serve(targetPort, uplink[:]...)
	n.writeServices("all.yaml", "services:\n"+
		entry("on-container", vip(10))+
		entry("on-host", vip(11), backends(uplink[:]...))+
		entry("on-unattached", vip(12), backends(m.unattached.addr[:]...))+
		entry("on-outside", vip(13), backends(external[:]...)))
	n.start()
	n.waitForBackends("on-container", 4)
	return m
}

// expect asks each service from a place. sees is the address that the server of a VIP has to see.
func (m mixedNode) expect(t *testing.T, from *place, sees func(vip, family int) netip.Addr) {
	t.Helper()
	for i, server := range []string{m.attached.name, m.node.name, m.unattached.name, m.outside.name} {
		if server == from.name && server != m.node.name {
			continue // reaching oneself is another matter
		}
		eachWay(t, func(t *testing.T, family int, proto string) {
			a, err := from.ask(proto, front(vip(10+i), family))
			if err != nil {
				t.Fatalf("%s asks the service on %s: %v", from.name, server, err)
			}
			if want := sees(10+i, family); a.Server != server || a.Client.Addr() != want {
				t.Errorf("%s answers %s and sees client %s, want %s and %s", a.Server, from.name, a.Client, server, want)
			}
			if proto == "tcp" {
				return
			}
			_, source, err := from.askUnconnected(front(vip(10+i), family))
			if err != nil || source != front(vip(10+i), family) {
				t.Errorf("the answer comes from %s, %v; want the VIP", source, err)
			}
		})
	}
}

func TestContainerReachesBackendsWithoutOurPrograms(t *testing.T) {
	t.Parallel()
	m := newMixedNode(t)
	client := m.container(t, "client", m.bridged())
	m.expect(t, client.place, func(_, family int) netip.Addr { return client.addr[family] })
}

func TestHostProcessReachesVIPsUnderStrictReversePathFilter(t *testing.T) {
	t.Parallel()
	m := newMixedNode(t)
	own := hostSource(t, m.node)
	m.expect(t, m.place, func(v, family int) netip.Addr {
		if v == 10 {
			return own[family]
		}
		return vip(v)[family] // a source of its own would be a martian on the way back
	})
}

// strictReversePath has the node drop what comes by another device than answers would take, as some
// distributions do. It must be called before any device is there, so that all have it.
func (n *node) strictReversePath() {
	n.t.Helper()
	n.sysctl("net/ipv4/conf/all/rp_filter", "1")
	n.sysctl("net/ipv4/conf/default/rp_filter", "1")
}

// hostSource is the address by which the host sends to VIPs: of the route to them.
func hostSource(t *testing.T, n *node) [2]netip.Addr {
	t.Helper()
	var out [2]netip.Addr
	for family := range families {
		eventually(t, time.Second, "VIPs are routed", func() error {
			c, err := n.dial("udp", front(vip(10), family), 0)
			if err != nil {
				return err
			}
			defer c.Close()
			out[family] = netip.MustParseAddrPort(c.LocalAddr().String()).Addr()
			return nil
		})
	}
	return out
}

func TestUnattachedContainerReachesVIPsThroughTheHost(t *testing.T) {
	t.Parallel()
	m := newMixedNode(t)
	client := m.node.unattached(t, "client")
	hostSource(t, m.node) // waits for the routes
	m.expect(t, client.place, func(v, family int) netip.Addr {
		if v == 10 {
			return client.addr[family]
		}
		return vip(v)[family]
	})
}
