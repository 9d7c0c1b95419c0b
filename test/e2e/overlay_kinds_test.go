package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tc-loadbalancer/tclb/pkg/overlay"
)

// A backend on another node need not be a container that is attached there.
func TestBackendOnAnotherNodeMayBeAnyProcess(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, v4, distinctSubnets)
	for _, n := range c.nodes {
		n.strictReversePath()
	}
	c.start()
	a, b := c.nodes[0], c.nodes[1]
	client := a.container(t, "client", a.bridged())
	plain := b.container(t, "plain", b.network("red", b.bridge("red0", b.subnets)))
	plain.serve(targetPort)
	own := [2]netip.Addr{underlayAddress(v4, 1), underlayAddress(v6, 1)}
	b.serve(targetPort, own[:]...)
	a.writeServices("all.yaml", "services:\n"+entry("process", vip(10), remote(b, own[:]...))+
		entry("plain", vip(11), remote(b, plain.addr[:]...)))
	a.waitForBackends("process", 4)
	a.waitForBackends("plain", 4)
	hairpin := [2]netip.Addr{netip.MustParseAddr("169.254.77.1"), netip.MustParseAddr("fd00:7c1b::1")}
	for i, server := range map[int]string{10: b.name, 11: plain.name} {
		eachWay(t, func(t *testing.T, family int, proto string) {
			got, err := client.ask(proto, front(vip(i), family))
			if err != nil || got.Server != server || got.Client.Addr() != hairpin[family] {
				t.Errorf("%s answers and sees %s, %v; want %s and %s", got.Server, got.Client, err, server, hairpin[family])
			}
		})
	}
}

// plainPeer makes a node without tclb, the index-th: a VXLAN device with a VNI and addresses, told by hand where a
// is. It serves at these addresses.
func (c *cluster) plainPeer(t *testing.T, a *node, index int, mac net.HardwareAddr) (peer *place, tunnel [2]netip.Addr) {
	t.Helper()
	peer = newPlace(t, a.name+"-peer")
	c.plug(peer, "eth0", index)
	tunnel = [2]netip.Addr{netip.MustParseAddr("198.51.100.250"), netip.MustParseAddr("2001:db8:a:fa::1")}
	peer.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = "vx", mac
		return netlink.LinkAdd(&netlink.Vxlan{
			LinkAttrs: attrs, VxlanId: 7654, Port: 4789, SrcAddr: underlayAddress(v4, index).AsSlice(),
		})
	})
	peer.configure("vx", tunnel[v4].String()+"/32", tunnel[v6].String()+"/128")
	far := overlay.MAC(a.underlay)
	gateway := [2]string{"198.51.100.254", "fe80::a"}
	peer.run("bridge", "fdb", "add", net.HardwareAddr(far[:]).String(), "dev", "vx", "dst", a.underlay.String())
	for family, subnet := range a.subnets {
		peer.ip(fmt.Sprintf("neigh add %s lladdr %s dev vx nud permanent", gateway[family], net.HardwareAddr(far[:])))
		peer.ip(fmt.Sprintf("route add %s via %s dev vx onlink", subnet, gateway[family]))
	}
	peer.serve(targetPort)
	return peer, tunnel
}

func TestPlainVXLANPeer(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, v4, distinctSubnets)
	a := c.nodes[0]
	const index = 50
	mac := net.HardwareAddr{2, 0, 0x5e, 0x10, 0, 7}
	peer, tunnel := c.plainPeer(t, a, index, mac)
	a.configureProxy(fmt.Sprintf("nodes: [{name: plain, address: %s, subnets: [%s/32], mac: %q}]", underlayAddress(v4, index), tunnel[v4], mac))
	a.start()
	client := a.container(t, "client", a.bridged())
	list := "backends:"
	for _, address := range tunnel {
		list += fmt.Sprintf("\n  - {address: %q, node: plain}", address)
	}
	a.writeServices("web.yaml", service("web", vip(10), list))
	a.waitForBackends("web", 4)
	eachWay(t, func(t *testing.T, family int, proto string) {
		if got := client.mustAsk(t, proto, front(vip(10), family)); got.Server != peer.name || got.Client.Addr() != client.addr[family] {
			t.Errorf("%s answers and sees %s, want %s and %s", got.Server, got.Client, peer.name, client.addr[family])
		}
	})
	conn := client.mustDial(t, "tcp", front(vip(10), v4), 0)
	client.mustConverse(t, conn, 3)
}

// What the node's own processes use at an address that is a VIP too is theirs.
func TestAVIPThatIsTheNodesOwnAddressLeavesItsProcessesAlone(t *testing.T) {
	t.Parallel()
	p, client := newFrontedPair(t)
	routeVIPs(client, p.a, 0)
	p.a.configure("lo", vip(11)[v4].String()+"/32", vip(11)[v6].String()+"/128")
	const ownPort = 2222
	p.a.serve(ownPort, vip(11)[v4], vip(11)[v6])
	maps := p.a.maps()
	eventually(t, 5*time.Second, "the VIPs are known to be the node's", func() error {
		frontends, err := maps.Frontends()
		if err != nil {
			return err
		}
		for key, f := range frontends {
			if key.Port == 0 && (key.VIP == vip(11)[v4] || key.VIP == vip(11)[v6]) && !f.Own {
				err = fmt.Errorf("%v: %+v", key, f)
			}
		}
		return err
	})
	eachWay(t, func(t *testing.T, family int, proto string) {
		if a := client.mustAsk(t, proto, netip.AddrPortFrom(vip(11)[family], ownPort)); a.Server != p.a.name {
			t.Errorf("port %d of the node is answered by %s", ownPort, a.Server)
		}
		if a := client.mustAsk(t, proto, front(vip(11), family)); a.Server != p.a.name+"-near" {
			t.Errorf("the service is answered by %s", a.Server)
		}
	})
}
