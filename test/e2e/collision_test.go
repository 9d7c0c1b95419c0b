package e2e

import (
	"fmt"
	"net/netip"
	"testing"
)

// One port of a client leads to one backend by several ways: the replies would be the same packet.
func TestOneClientPortByTwoWays(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.writeServices("all.yaml", "services:\n"+entry("web", vip(10))+entry("api", vip(11)))
	n.start()
	server := n.container(t, "server", n.bridged(conf{"services": []string{"web", "api"}}))
	server.serve(targetPort)
	client := n.container(t, "client", n.bridged())
	n.waitForBackends("web", 4)
	n.waitForBackends("api", 4)

	port := 40000
	for _, ways := range []struct {
		name          string
		first, second func(family int) netip.AddrPort
	}{
		{"two VIPs", viaVIP(10), viaVIP(11)},
		{"VIP, then direct", viaVIP(10), func(family int) netip.AddrPort { return server.at(family, targetPort) }},
		{"direct, then VIP", func(family int) netip.AddrPort { return server.at(family, targetPort) }, viaVIP(10)},
	} {
		t.Run(ways.name, func(t *testing.T) {
			eachWay(t, func(t *testing.T, family int, proto string) {
				port++
				first := client.mustDial(t, proto, ways.first(family), port)
				if a := client.mustHear(t, first); a.Client.Port() != uint16(port) || a.Client.Addr() != client.addr[family] {
					t.Errorf("the first is seen as %s, want port %d", a.Client, port)
				}
				second := client.mustDial(t, proto, ways.second(family), port)
				seen := client.mustHear(t, second).Client
				if seen.Port() == uint16(port) || seen.Addr() != client.addr[family] {
					t.Errorf("the second is seen as %s, want another port than %d", seen, port)
				}
				// Both live on, in turn.
				for range 3 {
					if a := client.mustHear(t, first); a.Client.Port() != uint16(port) {
						t.Errorf("the first is now seen as %s", a.Client)
					}
					if a := client.mustHear(t, second); a.Client != seen {
						t.Errorf("the second is now seen as %s, was %s", a.Client, seen)
					}
				}
			})
		})
	}
}

func viaVIP(i int) func(family int) netip.AddrPort {
	return func(family int) netip.AddrPort { return front(vip(i), family) }
}

// A connection that gave way in a full table goes on: its next packet leads to the table's choice,
// which is the backend that it has.
func TestConnectionSurvivesItsEviction(t *testing.T) {
	t.Parallel()
	n := newNode(t, "conntrack: {maxEntries: 256}")
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	for i := range 3 {
		n.container(t, fmt.Sprintf("web%d", i), n.bridged(conf{"services": []string{"web"}})).serve(targetPort)
	}
	client, other := n.container(t, "client", n.bridged()), n.container(t, "other", n.bridged())
	n.waitForBackends("web", 12)
	for family := range families {
		t.Run(families[family], func(t *testing.T) {
			var open []*conn
			var servers []string
			for range 6 {
				c := client.mustDial(t, "tcp", front(vip(10), family), 0)
				open = append(open, c)
				servers = append(servers, client.mustHear(t, c).Server)
			}
			for range 600 {
				other.mustAsk(t, "udp", front(vip(10), family))
			}
			tracked := list[[]flowRow](n, "conntrack", "list")
			for _, c := range open {
				for _, f := range tracked {
					if f.Client.String() == c.LocalAddr().String() {
						t.Errorf("%s is tracked still: nothing was tested", f.Client)
					}
				}
			}
			for i, c := range open {
				a, err := c.ask()
				if err != nil || a.Server != servers[i] {
					t.Errorf("connection %s of %s is answered by %+v, %v", c.LocalAddr(), servers[i], a, err)
				}
			}
		})
	}
}
