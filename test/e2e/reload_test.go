package e2e

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// felt is how soon packets must feel a change.
const felt = time.Second

// inFlight bounds a request that may be on its way to a backend while that is removed: it is lost,
// and must not hide how soon the next ones feel the change.
const inFlight = felt / 4

// expectServers polls with requests until exactly these servers answer.
func expectServers(t *testing.T, client *container, to netip.AddrPort, servers ...string) {
	t.Helper()
	eventually(t, felt, fmt.Sprintf("%s is served by %v", to, servers), func() error {
		got := map[string]int{}
		for range 16 * len(servers) {
			a, err := client.askWithin("tcp", to, inFlight)
			if err != nil {
				return err
			}
			got[a.Server]++
		}
		for _, s := range servers {
			if got[s] == 0 || len(got) != len(servers) {
				return fmt.Errorf("served by %v", got)
			}
		}
		return nil
	})
}

func TestChangesOfFilesAreFelt(t *testing.T) { eachMode(t, testChangesOfFilesAreFelt) }

func testChangesOfFilesAreFelt(t *testing.T, mode string) {
	n := newNode(t, mode)
	n.start()
	a, b := n.container(t, "a", n.bridged()), n.container(t, "b", n.bridged())
	a.serve(targetPort)
	b.serve(targetPort)
	client := n.container(t, "client", n.bridged())
	to := front(vip(10), v4)
	write := func(c ...*container) {
		var all []netip.Addr
		for _, c := range c {
			all = append(all, c.addr[v4])
		}
		n.writeServices("web.yaml", service("web", vip(10), backends(all...)))
	}
	write(a)
	expectServers(t, client, to, a.name)
	write(a, b)
	expectServers(t, client, to, a.name, b.name)
	write(b)
	expectServers(t, client, to, b.name)
	n.writeServices("web.yaml", service("web", vip(11), backends(b.addr[:]...)))
	expectServers(t, client, front(vip(11), v4), b.name)
	expectServers(t, client, front(vip(11), v6), b.name)
	eventually(t, felt, "the old VIP is gone", func() error { return expectNoAnswer(client, to) })
	n.writeServices("web.yaml", "services: []\n")
	eventually(t, felt+patience, "the VIP is gone", func() error { return expectNoAnswer(client, front(vip(11), v4)) })
}

func expectNoAnswer(client *container, to netip.AddrPort) error {
	if a, err := client.ask("tcp", to); err == nil {
		return fmt.Errorf("%s answers: %+v", to, a)
	}
	return nil
}

type statusRow struct {
	Ready bool

	Mode, ModeReason string
	HostStack        bool
	Findings         []struct {
		File, Key, Reason string
		Line, Column      int
	}
	Problems []string
}

func TestInvalidFileChangesNothing(t *testing.T) { eachMode(t, testInvalidFileChangesNothing) }

func testInvalidFileChangesNothing(t *testing.T, mode string) {
	n := newNode(t, mode)
	n.errorsAreOK = true
	server := n.container(t, "web", n.bridged())
	server.serve(targetPort)
	client := n.container(t, "client", n.bridged())
	good := service("web", vip(10), backends(server.addr[:]...))
	n.writeServices("web.yaml", good)
	n.start()
	served := func() {
		t.Helper()
		for family := range families {
			expectServers(t, client, front(vip(10), family), server.name)
		}
	}
	served()

	bad := strings.Replace(good, "port: 80,", "port: 0,", 1)
	line := 1 + strings.Count(bad[:strings.Index(bad, "port: 0,")], "\n")
	column := strings.Index(strings.Split(bad, "\n")[line-1], "port: 0,") + len("port: ") + 1
	where := fmt.Sprintf("%s:%d:%d: services[0].ports[0].port", filepath.Join(n.services, "web.yaml"), line, column)
	n.writeServices("web.yaml", bad)
	finding := func() error {
		st := list[statusRow](n, "status")
		if len(st.Findings) != 1 || len(st.Problems) != 1 || !strings.Contains(st.Problems[0], where) {
			return fmt.Errorf("status %+v, want a finding at %s", st, where)
		}
		return nil
	}
	eventually(t, felt, "status shows the finding", finding)
	if text := n.mustTclb("status"); !strings.Contains(text, where) {
		t.Errorf("tclb status does not show %s:\n%s", where, text)
	}
	metric := fmt.Sprintf("tclb_config_errors{file=%q} ", filepath.Join(n.services, "web.yaml"))
	n.expectMetric(t, metric+"1")
	if !strings.Contains(n.log(), where) {
		t.Errorf("the log does not name %s", where)
	}
	served()

	n.stop()
	n.start()
	eventually(t, felt, "status shows the finding after a restart", finding)
	served()

	n.writeServices("web.yaml", good)
	eventually(t, felt, "the finding is gone", func() error {
		if st := list[statusRow](n, "status"); len(st.Findings)+len(st.Problems) > 0 {
			return fmt.Errorf("status %+v", st)
		}
		return nil
	})
	n.expectMetric(t, metric+"0")
	served()
}

// expectMetric checks that the metrics have this line.
func (n *node) expectMetric(t *testing.T, line string) {
	t.Helper()
	_, text, err := n.get("/metrics")
	if err != nil || !strings.Contains("\n"+text, "\n"+line+"\n") {
		t.Errorf("no line %q in the metrics (%v):\n%s", line, err, text)
	}
}

type serviceRow struct {
	Name      string
	VIPs      []netip.Addr
	Scheduler string
	Ports     []struct {
		Name, Protocol   string
		Port, TargetPort int
	}
	Backends []backendRow
}

func TestServiceWithoutVIPsGetsThemFromThePool(t *testing.T) {
	eachMode(t, testServiceWithoutVIPsGetsThemFromThePool)
}

func testServiceWithoutVIPsGetsThemFromThePool(t *testing.T, mode string) {
	pool := [2]netip.Prefix{netip.MustParsePrefix("192.0.2.128/25"), netip.MustParsePrefix("2001:db8:fe::/112")}
	n := newNode(t, mode, fmt.Sprintf("vipPool: [%s, %q]", pool[v4], pool[v6]))
	ports := fmt.Sprintf("  ports: [{protocol: tcp, port: %d, targetPort: %d}]\n", servicePort, targetPort)
	n.writeServices("web.yaml", "services:\n- name: web\n"+ports+"- name: api\n"+ports)
	n.start()
	n.container(t, "web", n.bridged(conf{"services": []string{"web", "api"}})).serve(targetPort)
	client := n.container(t, "client", n.bridged())
	n.waitForBackends("web", 2)
	assigned := func() map[netip.Addr]string {
		out := map[netip.Addr]string{}
		for _, s := range list[[]serviceRow](n, "service", "list") {
			for _, v := range s.VIPs {
				if !pool[familyOf(v)].Contains(v) || out[v] != "" {
					t.Errorf("%s has VIP %s, which is another's or not of the pool", s.Name, v)
				}
				out[v] = s.Name
			}
		}
		return out
	}
	before := assigned()
	if len(before) != 4 {
		t.Fatalf("VIPs %v, want two for each of two services", before)
	}
	for v := range before {
		expectServers(t, client, netip.AddrPortFrom(v, servicePort), n.name+"-web")
	}
	n.stop()
	n.start()
	for v, name := range assigned() {
		if before[v] != name {
			t.Errorf("after a restart %s has VIP %s", name, v)
		}
	}
}

func TestMembersWaitForTheirService(t *testing.T) { eachMode(t, testMembersWaitForTheirService) }

func testMembersWaitForTheirService(t *testing.T, mode string) {
	n := newNode(t, mode)
	n.start()
	network := n.bridged()
	named := n.container(t, "named", network, args("TCLB_SERVICES", "later", "TCLB_PORT", "9090"))
	named.serve(9090)
	alias := n.container(t, "alias", network, capability("aliases", map[string][]string{"red": {"later"}}))
	alias.serve(targetPort)
	client := n.container(t, "client", network)
	for _, e := range list[[]endpointRow](n, "endpoint", "list") {
		if len(e.Services) > 0 {
			t.Errorf("%+v joined a service that does not exist", e)
		}
	}
	n.writeServices("later.yaml", service("later", vip(10)))
	eachWay(t, func(t *testing.T, family int, _ string) {
		expectServers(t, client, front(vip(10), family), named.name, alias.name)
	})
	if err := named.del(network, "eth0"); err != nil {
		t.Fatal(err)
	}
	expectServers(t, client, front(vip(10), v4), alias.name)
	n.waitForBackends("later", 4)
}

type endpointRow struct {
	ContainerID, Ifname, HostInterface, Attach string
	Addresses                                  []netip.Addr
	Services                                   []string
}
