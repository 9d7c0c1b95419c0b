package e2e

import (
	"net/netip"
	"testing"
)

// Of several backends a container now and then meets itself. It then sees the configured address, the
// others see its own. (Cilium hides clients behind one address: cilium#26100.)
func TestOneOfSeveralBackendsMeetsItself(t *testing.T) {
	t.Parallel()
	n := newNode(t, `datapath: {hairpinAddress: [169.254.99.9, "fd00:99::9"], `+smallMaps+`}`)
	hairpin := [2]netip.Addr{netip.MustParseAddr("169.254.99.9"), netip.MustParseAddr("fd00:99::9")}
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	members := n.bridged(conf{"services": []string{"web"}})
	self, other := n.container(t, "self", members), n.container(t, "other", members)
	self.serve(targetPort)
	other.serve(targetPort)
	n.waitForBackends("web", 8)
	eachWay(t, func(t *testing.T, family int, proto string) {
		sees := map[string]netip.Addr{self.name: hairpin[family], other.name: self.addr[family]}
		got := map[string]int{}
		for range 40 {
			a := self.mustAsk(t, proto, front(vip(10), family))
			if got[a.Server]++; a.Client.Addr() != sees[a.Server] {
				t.Fatalf("%s sees client %s, want %s", a.Server, a.Client, sees[a.Server])
			}
		}
		expectSpread(t, got, 40, self.name, other.name)
	})
}

// Whatever a flow may need, a container gets of itself: large messages, an answer to a socket that
// is not connected, a refusal. (Cilium has it for IPv6 only lately: cilium#26733, cilium#35371.)
func TestContainerTalksToItselfInFull(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	c := n.container(t, "web", n.bridged(conf{"services": []string{"web"}}))
	stop := c.serve(targetPort)
	n.waitForBackends("web", 4)
	for family, name := range families {
		to := front(vip(10), family)
		t.Run(name, func(t *testing.T) {
			c.mustConverse(t, c.mustDial(t, "tcp", to, 0), 20)
			if _, from, err := c.askUnconnected(to); err != nil || from != to {
				t.Errorf("an answer from %s, %v; want it from %s", from, err, to)
			}
		})
	}
	stop()
	eachWay(t, func(t *testing.T, family int, proto string) { expectRefusal(t, c.place, proto, front(vip(10), family)) })
}
