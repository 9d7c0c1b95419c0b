package e2e

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// outsideIndex is the place on the underlay of a host that is no node.
const outsideIndex = 100

// newClientOutside puts a host on the underlay that knows containers by no route.
func (c *cluster) newClientOutside(t *testing.T) *place {
	t.Helper()
	p := newPlace(t, c.nodes[0].name+"-outside")
	c.plug(p, "eth0", outsideIndex)
	return p
}

// newFrontedPair is a pair of nodes with a client outside. Of service web the backends are on both
// nodes, of service far on the second one; the first node has both.
func newFrontedPair(t *testing.T, extra ...string) (p pairOfNodes, client *place) {
	t.Helper()
	p = newPairOfNodes(t, v4, distinctSubnets, append([]string{"uplinks: [" + underlayDevice + "]"}, extra...)...)
	client = p.newClientOutside(t)
	near := p.a.container(t, "near", p.a.bridged())
	near.serve(targetPort)
	p.a.writeServices("more.yaml", "services:\n"+entry("near", vip(11), backends(near.addr[:]...)))
	p.a.waitForBackends("near", 4)
	return p, client
}

// routeVIPs leads a client's packets for VIPs to a node.
func routeVIPs(client *place, to *node, i int) {
	client.ip("route add 192.0.2.0/24 via " + underlayAddress(v4, i).String())
	client.ip("-6 route add 2001:db8:ff::/64 via " + underlayAddress(v6, i).String())
}

// A client outside reaches backends on the node that it asks and behind it, and each of them sees the
// client's own address.
func TestClientOutsideReachesVIPsThroughAnUplink(t *testing.T) {
	t.Parallel()
	p, client := newFrontedPair(t)
	routeVIPs(client, p.a, 0)
	for i, server := range map[int]string{10: p.server.name, 11: p.a.name + "-near"} {
		eachWay(t, func(t *testing.T, family int, proto string) {
			var a answer
			eventually(t, time.Second, "the uplink answers", func() (err error) {
				a, err = client.askWithin(proto, front(vip(i), family), patience/4)
				return err
			})
			if want := underlayAddress(family, outsideIndex); a.Server != server || a.Client.Addr() != want {
				t.Errorf("%s answers and sees %s, want %s and %s", a.Server, a.Client, server, want)
			}
		})
	}
	// A port that nobody serves is refused by the VIP.
	if _, err := client.dial("tcp", netip.AddrPortFrom(vip(11)[v4], 9), 0); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a port that nobody serves: %v", err)
	}
}

// With announce the client's link is all that it needs to know.
func TestVIPsAreFoundOnTheLinkOfAnUplink(t *testing.T) {
	t.Parallel()
	p, client := newFrontedPair(t, "announce: true")
	// The second node has the same service, so that it may be the one that answers.
	p.b.writeServices("web.yaml", service("web", vip(10), backends(p.server.addr[:]...)))
	p.b.waitForBackends("web", 4)
	client.ip("route add 192.0.2.0/24 dev eth0")
	client.ip("-6 route add 2001:db8:ff::/64 dev eth0")
	eachWay(t, func(t *testing.T, family int, proto string) {
		eventually(t, 2*time.Second, "the VIP is found", func() error {
			a, err := client.askWithin(proto, front(vip(10), family), patience/4)
			if err == nil && a.Server != p.server.name {
				err = fmt.Errorf("%s answers", a.Server)
			}
			return err
		})
	})
}

// Devices come and go, and settings with them.
func TestUplinksAreFollowed(t *testing.T) {
	t.Parallel()
	n := newNode(t, "uplinks: [late.7]")
	n.errorsAreOK = true
	n.start()
	eventually(t, 3*time.Second, "the missing device is said", func() error {
		if s := n.mustTclb("status"); !strings.Contains(s, "uplink late.7 is not there") {
			return fmt.Errorf("status: %s", s)
		}
		return nil
	})
	far := newPlace(t, n.name+"-far")
	maps := n.maps()
	expect := func(what string, want int) {
		t.Helper()
		eventually(t, 3*time.Second, what, func() error {
			up, err := maps.Uplinks()
			if err == nil && len(up) != want {
				err = fmt.Errorf("uplinks %v, want %d", up, want)
			}
			return err
		})
	}
	for range 2 {
		join(n.place, "late.7", far, "eth0", nil, nil)
		expect("it comes", 1)
		n.do(func() error { return netlink.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "late.7"}}) })
		expect("it goes", 0)
	}
	join(n.place, "late.7", far, "eth0", nil, nil)
	expect("it is back", 1)
	n.configureProxy()
	n.hangUp()
	expect("it is listed no more", 0)
	eventually(t, time.Second, "nothing is attached", func() error {
		left, err := filepath.Glob(filepath.Join(n.bpffs, layout, "links", "uplink-*"))
		if len(left) > 0 {
			err = fmt.Errorf("left: %v", left)
		}
		return err
	})
	if s := n.mustTclb("status"); strings.Contains(s, "late.7") {
		t.Errorf("status: %s", s)
	}
}
