package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// vlanNode is a node with a trunk, behind which a backend is in VLAN 100, and with clients of every kind.
type vlanNode struct {
	*node
	fabric  *fabric
	backend *place
	clients map[string]*place // container, host, outside
}

// newVLANNode makes one whose trunk has these addresses.
func newVLANNode(t *testing.T, addrs ...string) vlanNode {
	t.Helper()
	c := newCluster(t, 1, v4, distinctSubnets)
	n := c.nodes[0]
	n.configureProxy("uplinks: [" + underlayDevice + "]")
	v := vlanNode{node: n, fabric: n.newFabric(t, addrs...)}
	v.backend = v.fabric.host(t, "tagged", 100, 7)
	v.backend.serve(targetPort)
	n.writeServices("web.yaml", service("web", vip(10), behind("100 7")))
	n.start()
	client := c.newClientOutside(t)
	routeVIPs(client, n, 0)
	v.clients = map[string]*place{"container": n.container(t, "client", n.bridged()).place, "host": n.place, "outside": client}
	n.rowsInState(t, "web", "active", 4, 5*time.Second)
	hostSource(t, n)
	return v
}

// waysBack gives a host in a VLAN what it needs where clients keep their addresses: containers and VIPs are on its
// link, everybody else behind a VIP.
func (v vlanNode) waysBack(host *place) {
	host.ip("route add " + v.subnets[v4] + " dev eth0")
	host.ip("-6 route add " + v.subnets[v6] + " dev eth0")
	host.ip("route add 192.0.2.0/24 dev eth0")
	host.ip("-6 route add 2001:db8:ff::/64 dev eth0")
	host.ip("route add 203.0.113.0/24 via 192.0.2.10")
	host.ip("-6 route add 2001:db8:e::/64 via " + vip(10)[v6].String())
}

// sees is whom a backend sees for each client where their addresses are kept: processes of the node have the VIP's.
func (v vlanNode) sees(who string, family int) netip.Addr {
	switch who {
	case "host":
		return vip(10)[family]
	case "outside":
		return underlayAddress(family, outsideIndex)
	}
	var c netip.Addr
	for _, e := range list[[]struct{ Addresses []netip.Addr }](v.node, "endpoint", "list") {
		for _, a := range e.Addresses {
			if familyOf(a) == family {
				c = a
			}
		}
	}
	return c
}

// everyWay runs f for every client, family and protocol.
func (v vlanNode) everyWay(t *testing.T, f func(t *testing.T, who string, client *place, family int, proto string)) {
	t.Helper()
	for _, who := range slices.Sorted(maps.Keys(v.clients)) {
		t.Run(who, func(t *testing.T) {
			eachWay(t, func(t *testing.T, family int, proto string) { f(t, who, v.clients[who], family, proto) })
		})
	}
}

// Where the trunk has an address in the backend's subnet, the backend needs nothing but its link.
func TestBackendInAVLANSeesTheTrunksAddress(t *testing.T) {
	t.Parallel()
	v := newVLANNode(t, translated...)
	v.everyWay(t, func(t *testing.T, _ string, client *place, family int, proto string) {
		a := client.mustAsk(t, proto, front(vip(10), family))
		if a.Server != v.backend.name || a.Client.Addr() != inVLAN(family, 1) {
			t.Errorf("%s answers and sees %s", a.Server, a.Client)
		}
	})
	v.carries(t)
}

// Elsewhere clients keep their addresses, and the node answers for those in the VLAN.
func TestBackendInAVLANSeesItsClients(t *testing.T) {
	t.Parallel()
	v := newVLANNode(t)
	v.waysBack(v.backend)
	v.everyWay(t, func(t *testing.T, who string, client *place, family int, proto string) {
		a := client.mustAsk(t, proto, front(vip(10), family))
		if want := v.sees(who, family); a.Server != v.backend.name || a.Client.Addr() != want {
			t.Errorf("%s answers and sees %s, want %s", a.Server, a.Client, want)
		}
	})
	v.carries(t)
}

// carries sends what is large: whole frames, fragments both ways, and a stream in segments that devices cut.
func (v vlanNode) carries(t *testing.T) {
	t.Helper()
	const echoPort, size = 8082, 100 << 20
	v.backend.echo(echoPort)
	v.backend.handle(bulkPort, bulk(size))
	v.writeServices("large.yaml", fmt.Sprintf("services:\n- name: large\n  vips: [%s, %q]\n  ports: [{name: echo, protocol: udp, port: 7, targetPort: %d}, {name: bulk, protocol: tcp, port: %d, targetPort: %d}]\n  %s\n",
		vip(20)[v4], vip(20)[v6], echoPort, servicePort, bulkPort, behind("100 7")))
	v.rowsInState(t, "large", "active", 4, 5*time.Second)
	for _, who := range slices.Sorted(maps.Keys(v.clients)) {
		for family, name := range families {
			t.Run("large/"+who+"/"+name, func(t *testing.T) {
				client, to := v.clients[who], netip.AddrPortFrom(vip(20)[family], 7)
				for _, size := range []int{1, 1452, 1472, 8000, 30000} {
					client.expectEcho(t, to, size)
				}
				client.bothWays(t, front(vip(20), family), size)
			})
		}
	}
	if n := v.backend.wrongChecksums(t); n != 0 {
		t.Errorf("%d packets came with wrong checksums", n)
	}
}

// Two VLANs may have the same addresses, and other frames with a tag are somebody else's.
func TestVLANsWithTheSameAddresses(t *testing.T) {
	t.Parallel()
	v := newVLANNode(t, translated...)
	twin := v.fabric.host(t, "twin", 200, 7)
	twin.serve(targetPort)
	v.writeServices("web.yaml", service("web", vip(10), behind("100 7", "200 7")))
	v.rowsInState(t, "web", "active", 8, 5*time.Second)
	v.everyWay(t, func(t *testing.T, _ string, client *place, family int, proto string) {
		expectSpread(t, client.spread(t, proto, front(vip(10), family), 60), 60, v.backend.name, twin.name)
	})
	// A guest of the node is in VLAN 300 of the same trunk by programs of its own.
	guest, friend := newPlace(t, v.name+"-guest"), v.fabric.host(t, "friend", 300, 7)
	join(guest, "eth0", v.place, "guest", []string{inVLAN(v4, 9).String() + "/24", inVLAN(v6, 9).String() + "/64"}, nil)
	v.access(trunkDevice, 300, "guest")
	friend.serve(targetPort)
	v.fabric.configure("trunk", "203.0.113.225/30")
	v.configure(trunkDevice, "203.0.113.226/30")
	v.fabric.serve(targetPort)
	for range 2 { // with and without from_trunk
		eachWay(t, func(t *testing.T, family int, proto string) {
			if a := guest.mustAsk(t, proto, netip.AddrPortFrom(inVLAN(family, 7), targetPort)); a.Server != friend.name {
				t.Errorf("%s answers in VLAN 300", a.Server)
			}
			if a := v.mustAsk(t, proto, netip.MustParseAddrPort("203.0.113.225:8080")); a.Server != v.fabric.name {
				t.Errorf("%s answers without a tag", a.Server)
			}
		})
		v.writeServices("web.yaml", service("web", vip(10)))
		v.waitForBackends("web", 0)
		v.nothingIsTagged(t)
	}
}

// nothingIsTagged waits until programs know no VLAN and run on no trunk.
func (n *node) nothingIsTagged(t *testing.T) {
	t.Helper()
	eventually(t, 5*time.Second, "nothing is left of VLANs", func() error {
		d := n.maps()
		vlans, err := d.VLANs()
		sources, err2 := d.Sources()
		neighbours, err3 := d.Neighbours()
		left, err4 := filepath.Glob(filepath.Join(n.bpffs, layout, "links", "trunk-*"))
		if len(vlans)+len(sources)+len(neighbours)+len(left) > 0 {
			return fmt.Errorf("left: %v, %v, %v, %v", vlans, sources, neighbours, left)
		}
		return errors.Join(err, err2, err3, err4)
	})
}

// A trunk may be an uplink as well: what has no tag is of clients outside.
func TestATrunkMayBeAnUplink(t *testing.T) {
	t.Parallel()
	n := newNode(t, "uplinks: ["+trunkDevice+"]")
	f := n.newFabric(t, append([]string{"203.0.113.226/30", "2001:db8:e::2/64"}, translated...)...)
	f.configure("trunk", "203.0.113.225/30", "2001:db8:e::1/64")
	backend := f.host(t, "tagged", 100, 7)
	backend.serve(targetPort)
	n.writeServices("all.yaml", "services:\n"+entry("web", vip(10), behind("100 7"))+entry("near", vip(11)))
	n.start()
	near := n.container(t, "near", n.bridged(conf{"services": []string{"near"}}))
	near.serve(targetPort)
	n.rowsInState(t, "web", "active", 4, 5*time.Second)
	n.waitForBackends("near", 4)
	f.ip("route add 192.0.2.0/24 via 203.0.113.226")
	f.ip("-6 route add 2001:db8:ff::/64 via 2001:db8:e::2")
	eachWay(t, func(t *testing.T, family int, proto string) {
		for i, server := range map[int]string{10: backend.name, 11: near.name} {
			if a := f.mustAsk(t, proto, front(vip(i), family)); a.Server != server {
				t.Errorf("%s answers, want %s", a.Server, server)
			}
		}
	})
}

// A command names one of two twins by its VLAN.
func TestABackendIsNamedByItsVLAN(t *testing.T) {
	t.Parallel()
	v := newVLANNode(t, translated...)
	twin := v.fabric.host(t, "twin", 200, 7)
	twin.serve(targetPort)
	v.writeServices("web.yaml", service("web", vip(10), behind("100 7", "200 7")))
	v.rowsInState(t, "web", "active", 8, 5*time.Second)
	v.mustTclb("backend", "drain", "web", fmt.Sprintf("%s.100/%s", trunkDevice, inVLAN(v4, 7)))
	expectSpread(t, v.clients["container"].spread(t, "tcp", front(vip(10), v4), 30), 30, twin.name)
	var tags []int
	for _, r := range list[[]struct {
		State string
		VLAN  struct {
			Device string
			ID     int
		}
	}](v.node, "backend", "list", "web") {
		if r.State == "draining" && r.VLAN.Device == trunkDevice {
			tags = append(tags, r.VLAN.ID)
		}
	}
	if !slices.Equal(tags, []int{100, 100}) {
		t.Errorf("draining are backends in VLANs %v", tags)
	}
	// Connections of the other one are not waited for.
	v.mustTclb("conntrack", "flush") // what was asked of the first one
	v.clients["container"].mustHear(t, v.clients["container"].mustDial(t, "tcp", front(vip(10), v4), 0))
	v.mustTclb("backend", "drain", "web", fmt.Sprintf("%s.100/%s", trunkDevice, inVLAN(v4, 7)), "--wait=3s")
}

// A backend that changes its MAC address is found again; one that is away is passed over until it is back.
func TestNeighboursInAVLANAreFollowed(t *testing.T) {
	t.Parallel()
	v := newVLANNode(t, translated...)
	client := v.clients["container"]
	open := client.mustDial(t, "tcp", front(vip(10), v4), 0)
	client.mustHear(t, open)
	v.backend.ip("link set eth0 address 02:00:5e:10:00:77")
	eventually(t, 15*time.Second, "the new address is known", func() error {
		_, err := client.askWithin("udp", front(vip(10), v4), patience/8)
		return err
	})
	if a, err := open.askWithin(15 * time.Second); err != nil || a.Server != v.backend.name {
		t.Errorf("a connection of before: %v %v", a, err)
	}
	spare := v.fabric.host(t, "spare", 100, 8)
	spare.serve(targetPort)
	v.writeServices("web.yaml", service("web", vip(10), behind("100 7", "100 8")))
	v.rowsInState(t, "web", "active", 8, 5*time.Second)
	v.backend.ip("link set eth0 down")
	v.statusSays(t, fmt.Sprintf("nobody in VLAN %s.100 says that it has %s", trunkDevice, inVLAN(v4, 7)), true)
	expectSpread(t, client.spread(t, "tcp", front(vip(10), v4), 30), 30, spare.name)
	v.backend.ip("link set eth0 up")
	v.backend.configure("eth0", inVLAN(v6, 7).String()+"/64") // which went with the link
	v.rowsInState(t, "web", "active", 8, 15*time.Second)
	expectSpread(t, client.spread(t, "tcp", front(vip(10), v4), 60), 60, v.backend.name, spare.name)
}

// A device may come late, go, and come back as another one.
func TestTrunksAreFollowed(t *testing.T) {
	t.Parallel()
	v := newVLANNode(t, translated...)
	client := v.clients["container"]
	v.ip("link del " + trunkDevice)
	v.statusSays(t, "device eth1 is not there", true)
	v.fabric.plugTrunk(translated...)
	v.rowsInState(t, "web", "active", 4, 15*time.Second)
	v.statusSays(t, "device eth1 is not there", false)
	eachWay(t, func(t *testing.T, family int, proto string) { client.mustAsk(t, proto, front(vip(10), family)) })
	v.ip("link set " + trunkDevice + " down")
	v.statusSays(t, "device eth1 is down", true)
}

// A MAC address that is given is not asked for: that of a router in the VLAN, for one.
func TestBackendWithAGivenMAC(t *testing.T) {
	t.Parallel()
	v := newVLANNode(t, translated...)
	silent := v.fabric.host(t, "silent", 100, 9)
	silent.serve(targetPort)
	silent.ip("link set eth0 address 02:00:5e:10:00:09 arp off")
	v.writeServices("web.yaml", service("web", vip(10), behind("100 9")))
	v.rowsInState(t, "web", "unhealthy", 4, 5*time.Second)
	silent.ip("neigh replace " + inVLAN(v4, 1).String() + " dev eth0 lladdr " + v.mac(trunkDevice))
	silent.ip("-6 neigh replace " + inVLAN(v6, 1).String() + " dev eth0 lladdr " + v.mac(trunkDevice))
	v.writeServices("web.yaml", service("web", vip(10), behind("100 9 02:00:5e:10:00:09")))
	v.rowsInState(t, "web", "active", 4, 5*time.Second)
	v.everyWay(t, func(t *testing.T, _ string, client *place, family int, proto string) {
		client.mustAsk(t, proto, front(vip(10), family))
	})
}

// A proxy that ends and comes back changes nothing for packets to VLANs.
func TestProxyRestartsUnderLoadToVLANs(t *testing.T) {
	t.Parallel()
	v := newVLANNode(t, translated...)
	var clients []*container
	for i := range 2 {
		clients = append(clients, v.container(t, fmt.Sprintf("load%d", i), v.bridged()))
	}
	open := clients[0].mustDial(t, "tcp", front(vip(10), v4), 0)
	clients[0].mustHear(t, open)
	before := v.mapState(t)
	l := startLoad(clients, 10)
	v.kill()
	v.start()
	v.stop()
	v.start()
	v.rowsInState(t, "web", "active", 4, 5*time.Second)
	l.end(t)
	expectSameMaps(t, before, v.mapState(t))
	clients[0].mustHear(t, open)
}
