package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// The service of most tests, and where it is.
const (
	servicePort = 80
	targetPort  = 8080
)

// vip is the i-th VIP of both families, i below 128.
func vip(i int) [2]netip.Addr {
	v6 := netip.MustParseAddr("2001:db8:ff::").As16()
	v6[15] = byte(i)
	return [2]netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), netip.AddrFrom16(v6)}
}

// service is a services file with one service on two VIPs, TCP and UDP. more are further lines of it.
func service(name string, vips [2]netip.Addr, more ...string) string {
	return "services:\n" + entry(name, vips, more...)
}

// entry is one service of a services file.
func entry(name string, vips [2]netip.Addr, more ...string) string {
	out := "- name: " + name + "\n" +
		fmt.Sprintf("  vips: [%s, \"%s\"]\n", vips[v4], vips[v6]) +
		fmt.Sprintf("  ports:\n  - {name: stream, protocol: tcp, port: %d, targetPort: %d}\n", servicePort, targetPort) +
		fmt.Sprintf("  - {name: datagram, protocol: udp, port: %d, targetPort: %d}\n", servicePort, targetPort)
	for _, line := range more {
		out += "  " + line + "\n"
	}
	return out
}

// front is the service's port of a VIP.
func front(vips [2]netip.Addr, family int) netip.AddrPort {
	return netip.AddrPortFrom(vips[family], servicePort)
}

// eachWay runs f for both families and both protocols.
func eachWay(t *testing.T, f func(t *testing.T, family int, proto string)) {
	t.Helper()
	for family, name := range families {
		for _, proto := range []string{"tcp", "udp"} {
			t.Run(name+"/"+proto, func(t *testing.T) { f(t, family, proto) })
		}
	}
}

// waitForBackends waits until a service (or "" for all) has so many rows (backends by port) in the maps, which is
// when packets reach them.
func (n *node) waitForBackends(service string, want int) {
	n.t.Helper()
	eventually(n.t, time.Second, fmt.Sprintf("%s has %d backends", service, want), func() error {
		rows, err := tryList[[]backendRow](n, strings.Fields("backend list "+service)...)
		if err != nil {
			return err // the service itself may be new
		}
		if len(rows) != want {
			return fmt.Errorf("%d rows: %+v", len(rows), rows)
		}
		return nil
	})
}

type backendRow struct {
	Service, Address, Protocol, Node, State string
	Port, Weight                            int
	ActiveConnections, TotalConnections     uint64
	Local                                   bool
}

// expectSpread checks that every server got its share of n requests, within what chance explains.
func expectSpread(t *testing.T, got map[string]int, n int, servers ...string) {
	t.Helper()
	least := n / len(servers) / 3
	for _, s := range servers {
		if got[s] < least {
			t.Errorf("%s answered %d of %d requests, want at least %d: %v", s, got[s], n, least, got)
		}
	}
	if len(got) != len(servers) {
		t.Errorf("answers of %v, want %v only", got, servers)
	}
}

// Every channel by which a container names its service leads requests to it.
func TestVIPIsServedByMembers(t *testing.T) {
	t.Parallel()
	for _, channel := range []struct {
		name    string
		entry   conf
		options []option
	}{
		{"conflist", conf{"services": []string{"web"}}, nil},
		{"CNI_ARGS", conf{}, []option{args("TCLB_SERVICES", "other,web")}},
		{"aliases", conf{}, []option{capability("aliases", map[string][]string{"red": {"web", "0123456789ab"}})}},
	} {
		t.Run(channel.name, func(t *testing.T) {
			n := newNode(t)
			n.writeServices("web.yaml", service("web", vip(10)))
			n.start()
			members := n.bridged(channel.entry)
			var servers []string
			for i := range 3 {
				c := n.container(t, fmt.Sprintf("web%d", i), members, channel.options...)
				c.serve(targetPort)
				servers = append(servers, c.name)
			}
			client := n.container(t, "client", n.bridged(conf{"joinByName": false}))
			n.waitForBackends("web", 3*4)
			eachWay(t, func(t *testing.T, family int, proto string) {
				const requests = 90
				got := map[string]int{}
				for range requests {
					a := client.mustAsk(t, proto, front(vip(10), family))
					if a.Client.Addr() != client.addr[family] {
						t.Fatalf("%s sees client %s, want %s", a.Server, a.Client, client.addr[family])
					}
					got[a.Server]++
				}
				expectSpread(t, got, requests, servers...)
			})
			for family, name := range families {
				t.Run(name+"/unconnected UDP", func(t *testing.T) {
					a, from, err := client.askUnconnected(front(vip(10), family))
					if err != nil || from != front(vip(10), family) || a.Client.Addr() != client.addr[family] {
						t.Errorf("answer %+v from %s, %v; want it from %s", a, from, err, front(vip(10), family))
					}
				})
			}
		})
	}
}

// A container that is its own backend sees itself as the hairpin address: what came from its own
// would be taken for forged.
func TestContainerReachesItselfThroughTheVIP(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	c := n.container(t, "web", n.bridged(conf{"services": []string{"web"}}))
	c.serve(targetPort)
	n.waitForBackends("web", 4)
	hairpin := [2]netip.Addr{netip.MustParseAddr("169.254.77.1"), netip.MustParseAddr("fd00:7c1b::1")}
	eachWay(t, func(t *testing.T, family int, proto string) {
		if a := c.mustAsk(t, proto, front(vip(10), family)); a.Client.Addr() != hairpin[family] {
			t.Errorf("it sees client %s, want %s", a.Client, hairpin[family])
		}
	})
}

// Only sources that a service allows get through, from wherever they ask.
func TestServiceAdmitsAllowedSourcesOnly(t *testing.T) {
	eachMode(t, testServiceAdmitsAllowedSourcesOnly)
}

func testServiceAdmitsAllowedSourcesOnly(t *testing.T, mode string) {
	n := newNode(t, mode)
	n.start()
	server := n.container(t, "web", n.bridged(conf{"services": []string{"web"}}))
	server.serve(targetPort)
	admitted, other := n.container(t, "admitted", n.bridged()), n.container(t, "other", n.bridged())
	n.writeServices("web.yaml", service("web", vip(10), fmt.Sprintf("allow: [%s/32, \"%s/128\"]", admitted.addr[v4], admitted.addr[v6])))
	n.waitForBackends("web", 4)
	hostSource(t, n)
	eachWay(t, func(t *testing.T, family int, proto string) {
		admitted.mustAsk(t, proto, front(vip(10), family))
		for _, p := range []*place{other.place, n.place} {
			if a, err := p.ask(proto, front(vip(10), family)); err == nil {
				t.Errorf("%s got through: %+v", p.name, a)
			}
		}
	})
	n.writeServices("web.yaml", service("web", vip(10)))
	expectServers(t, other, front(vip(10), v4), server.name)
}
