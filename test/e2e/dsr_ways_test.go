package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
)

// A narrow link between the backend's node and the client: its router tells the VIP, which is elsewhere.
func TestBackendsFindThePathsMTUOfDirectAnswers(t *testing.T) {
	t.Parallel()
	p, _ := newDirectPair(t)
	const mtu, routerIndex = 1280, 60
	p.withDirectBulk(t, 3<<20)
	router, host := newPlace(t, p.a.name+"-router"), newPlace(t, p.a.name+"-far")
	p.plug(router, "eth0", routerIndex)
	router.sysctl("net/ipv4/ip_forward", "1")
	router.sysctl("net/ipv6/conf/all/forwarding", "1")
	join(router, "far0", host, "eth0", []string{"203.0.112.129/25", "2001:db8:f::1/64"}, []string{"203.0.112.130/25", "2001:db8:f::2/64"})
	router.ip(fmt.Sprintf("link set far0 mtu %d", mtu))
	host.ip("route add default via 203.0.112.129")
	host.ip("-6 route add default via 2001:db8:f::1")
	routeVIPs(router, p.a, 0)
	for _, n := range p.nodes {
		n.ip("route add 203.0.112.128/25 via " + underlayAddress(v4, routerIndex).String())
		n.ip("-6 route add 2001:db8:f::/64 via " + underlayAddress(v6, routerIndex).String())
	}
	before := p.backByTunnel(t)
	p.a.writeServices("probe.yaml", fmt.Sprintf("services:\n- name: probe\n  dsr: true\n  vips: [%s, %q]\n  ports: [{protocol: udp, port: %d, targetPort: 8082}]\n  %s\n",
		vip(21)[v4], vip(21)[v6], servicePort, remote(p.b, p.server.addr[:]...)))
	p.a.waitForBackends("probe", 2)
	for family := range families {
		p.server.expectMTUOfClient(t, netip.AddrPortFrom(p.server.addr[family], 8082), host, front(vip(21), family), mtu)
	}
	p.client = &container{place: host}
	for family := range families {
		p.bothWays(t, family, 3<<20)
	}
	if n := p.backByTunnel(t) - before; n > 1<<20 {
		t.Errorf("%d bytes came back by the tunnel", n)
	}
}

// A node without tclb is told nothing, which it would not understand.
func TestPlainPeersAreNotTold(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, v4, distinctSubnets)
	a := c.nodes[0]
	const index = 50
	mac := net.HardwareAddr{2, 0, 0x5e, 0x10, 0, 7}
	peer, tunnel := c.plainPeer(t, a, index, mac)
	a.configureProxy("uplinks: ["+underlayDevice+"]", fmt.Sprintf("nodes: [{name: plain, address: %s, subnets: [%s/32], mac: %q}]", underlayAddress(v4, index), tunnel[v4], mac))
	a.start()
	c.waitForUplinks(t)
	client := c.newClientOutside(t)
	routeVIPs(client, a, 0)
	for family, host := range [2]string{"/32", "/128"} { // it answers by the tunnel
		via := [2]string{"198.51.100.254", "fe80::a"}[family]
		peer.ip(fmt.Sprintf("route add %s%s via %s dev vx onlink", underlayAddress(family, outsideIndex), host, via))
	}
	a.writeServices("web.yaml", service("web", vip(10), "dsr: true", fmt.Sprintf("backends:\n  - {address: %q, node: plain}\n  - {address: %q, node: plain}", tunnel[v4], tunnel[v6])))
	a.waitForBackends("web", 4)
	eachWay(t, func(t *testing.T, family int, proto string) {
		if got := client.mustAsk(t, proto, front(vip(10), family)); got.Server != peer.name {
			t.Errorf("%s answers, want %s", got.Server, peer.name)
		}
	})
	var known bool
	maps := a.maps()
	nodes, err := maps.Nodes()
	for _, n := range nodes {
		known = known || n.DSR
	}
	if err != nil || len(nodes) != 1 || known {
		t.Errorf("nodes %+v, %v", nodes, err)
	}
}
