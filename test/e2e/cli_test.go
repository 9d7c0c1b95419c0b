package e2e

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// cliNode has a service with two containers, and a client.
func cliNode(t *testing.T, extra ...string) (n *node, servers [2]*container, client *container) {
	t.Helper()
	n = newNode(t, extra...)
	n.writeServices("web.yaml", service("web", vip(10), "scheduler: maglev"))
	n.start()
	for i := range servers {
		servers[i] = n.container(t, fmt.Sprintf("web%d", i), n.bridged(conf{"services": []string{"web"}}))
		servers[i].serve(targetPort)
	}
	client = n.container(t, "client", n.bridged())
	n.waitForBackends("web", 8)
	hostSource(t, n)
	return n, servers, client
}

// promised are the fields of each listing that programs may rely on.
var promised = map[string][]string{
	"service list":    {"name", "vips", "ports", "scheduler", "backends"},
	"service get web": {"name", "vips", "ports", "scheduler", "backends"},
	"backend list":    {"service", "address", "port", "protocol", "node", "weight", "state", "activeConnections", "totalConnections", "local"},
	"endpoint list":   {"containerID", "ifname", "hostInterface", "addresses", "services"},
	"node list":       {"name", "address", "reachable"},
	"conntrack list":  {"protocol", "client", "vip", "backend", "state", "node", "ageSeconds", "expiresSeconds", "packets", "bytes"},
}

func TestListingsHaveThePromisedFields(t *testing.T) { eachMode(t, testListingsHaveThePromisedFields) }

func testListingsHaveThePromisedFields(t *testing.T, mode string) {
	n, _, client := cliNode(t, mode)
	client.mustHear(t, client.mustDial(t, "tcp", front(vip(10), v4), 0))
	for command, fields := range promised {
		words := strings.Fields(command)
		rows := list[[]map[string]any](n, words...)
		if len(rows) == 0 {
			t.Errorf("tclb %s -o json is empty", command)
		}
		for _, row := range rows {
			for _, f := range fields {
				if _, ok := row[f]; !ok {
					t.Errorf("tclb %s: no field %s in %v", command, f, row)
				}
			}
		}
		if table := n.mustTclb(words...); words[1] == "list" && strings.Count(table, "\n") != len(rows)+1 {
			t.Errorf("tclb %s: a table of %d rows:\n%s", command, len(rows), table)
		}
		if yaml := n.mustTclb(append(words, "-o", "yaml")...); strings.Count(yaml, fields[0]+":") < len(rows) {
			t.Errorf("tclb %s -o yaml:\n%s", command, yaml)
		}
	}
	n.writeServices("web.yaml", "services: []\n")
	n.waitForBackends("", 0)
	if out := strings.TrimSpace(n.mustTclb("service", "list", "-o", "json")); out != "[]" {
		t.Errorf("no services are printed as %s", out)
	}
}

func TestListingsTellTheTruth(t *testing.T) {
	t.Parallel()
	n, servers, client := cliNode(t)
	services := list[[]serviceRow](n, "service", "get", "web")
	if len(services) != 1 {
		t.Fatalf("service get: %+v", services)
	}
	s, vips := services[0], vip(10)
	if s.Name != "web" || s.Scheduler != "maglev" || !slices.Equal(s.VIPs, vips[:]) ||
		len(s.Ports) != 2 || s.Ports[0].Port+s.Ports[1].Port != 2*servicePort || s.Ports[0].TargetPort != targetPort {
		t.Errorf("service %+v", s)
	}
	for _, b := range list[[]backendRow](n, "backend", "list", "web") {
		a := netip.MustParseAddr(b.Address)
		known := a == servers[0].addr[familyOf(a)] || a == servers[1].addr[familyOf(a)]
		if !known || b.Service != "web" || b.Port != targetPort || b.Node != n.name || b.Weight != 100 || b.State != "active" || !b.Local {
			t.Errorf("backend %+v", b)
		}
	}
	endpoints := list[[]endpointRow](n, "endpoint", "list")
	if len(endpoints) != 3 {
		t.Fatalf("endpoints %+v", endpoints)
	}
	for _, e := range endpoints {
		for _, c := range append(servers[:], client) {
			if e.ContainerID != c.id {
				continue
			}
			member := c != client
			if e.Ifname != "eth0" || e.HostInterface != c.hostInterface("eth0") || !slices.Equal(e.Addresses, c.addr[:]) ||
				member != slices.Contains(e.Services, "web") || e.Attach != "tcx" {
				t.Errorf("endpoint %+v of %s", e, c.name)
			}
		}
	}
	type nodeRow struct {
		Name      string
		Address   netip.Addr
		Reachable bool
	}
	own := hostSource(t, n)
	if rows := list[[]nodeRow](n, "node", "list"); len(rows) != 1 || rows[0] != (nodeRow{n.name, own[v4], true}) {
		t.Errorf("nodes %+v, want %s at %s", rows, n.name, own[v4])
	}
}

type flowRow struct {
	Protocol, State, Node      string
	Client, VIP, Backend       netip.AddrPort
	AgeSeconds, ExpiresSeconds int64
	Packets, Bytes             uint64
}

func TestConntrackListShowsOpenFlows(t *testing.T) {
	t.Parallel()
	n, servers, client := cliNode(t)
	eachWay(t, func(t *testing.T, family int, proto string) {
		c := client.mustDial(t, proto, front(vip(10), family), 0)
		a := client.mustHear(t, c)
		backend := servers[0]
		if a.Server != backend.name {
			backend = servers[1]
		}
		rows := slices.DeleteFunc(list[[]flowRow](n, "conntrack", "list"), func(f flowRow) bool { return f.Client != a.Client || f.Protocol != proto })
		if len(rows) != 1 {
			t.Fatalf("%d flows of %s: %+v", len(rows), a.Client, rows)
		}
		f := rows[0]
		if f.VIP != front(vip(10), family) || f.Backend != backend.at(family, targetPort) || f.State != "established" || f.Node != n.name {
			t.Errorf("flow %+v", f)
		}
		if f.Packets < 2 || f.Bytes < f.Packets*28 || f.ExpiresSeconds <= 0 || f.AgeSeconds < 0 || f.AgeSeconds > 60 {
			t.Errorf("flow %+v", f)
		}
	})
	n.mustTclb("conntrack", "flush", "--service", "web")
	if left := list[[]flowRow](n, "conntrack", "list", "--service", "web"); len(left) > 0 {
		t.Errorf("after a flush: %+v", left)
	}
}

func TestConnectionCountsFollowConnections(t *testing.T) {
	t.Parallel()
	n, _, client := cliNode(t)
	count := func() (active, total uint64) {
		for _, b := range list[[]backendRow](n, "backend", "list", "web") {
			if b.Protocol == "tcp" {
				active, total = active+b.ActiveConnections, total+b.TotalConnections
			}
		}
		return active, total
	}
	expect := func(active, total uint64) {
		t.Helper()
		eventually(t, felt, "connections are counted", func() error {
			if a, s := count(); a != active || s != total {
				return fmt.Errorf("%d active of %d, want %d of %d", a, s, active, total)
			}
			return nil
		})
	}
	expect(0, 0)
	var open []*conn
	for i := range 6 {
		c := client.mustDial(t, "tcp", front(vip(10), i%2), 0)
		client.mustHear(t, c)
		open = append(open, c)
	}
	expect(6, 6)
	for _, c := range open[:4] {
		c.Close()
	}
	expect(2, 6)
	n.stop()
	n.start()
	expect(2, 6)
	client.mustHear(t, open[5])
	for _, c := range open[4:] {
		c.Close()
	}
	expect(0, 6)
}

// families of the contract's metrics.
var metricFamilies = strings.Fields(`tclb_services tclb_backends tclb_endpoints tclb_nodes
	tclb_packets_total tclb_bytes_total tclb_connections_total tclb_active_connections tclb_drops_total
	tclb_conntrack_entries tclb_conntrack_capacity tclb_conntrack_evictions_total
	tclb_table_build_seconds tclb_table_moved_slots_total tclb_reconcile_seconds
	tclb_reconcile_errors_total tclb_config_errors tclb_health_checks_total
	tclb_tunnel_drops_total tclb_build_info`)

func TestMetricsHaveEveryFamily(t *testing.T) { eachMode(t, testMetricsHaveEveryFamily) }

func testMetricsHaveEveryFamily(t *testing.T, mode string) {
	n := newNode(t, mode)
	n.start()
	families := func() string {
		t.Helper()
		status, text, err := n.get("/metrics")
		if err != nil || status != 200 {
			t.Fatalf("/metrics: %d, %v", status, err)
		}
		for _, f := range metricFamilies {
			if !strings.Contains(text, "# HELP "+f+" ") || !strings.Contains(text, "# TYPE "+f+" ") {
				t.Errorf("no family %s", f)
			}
		}
		return text
	}
	if empty := families(); !strings.Contains(empty, `tclb_drops_total{reason="`) || !strings.Contains(empty, "\ntclb_services 0\n") {
		t.Errorf("metrics of an empty node:\n%s", empty)
	}
	n.writeServices("web.yaml", service("web", vip(10)))
	server := n.container(t, "web", n.bridged(conf{"services": []string{"web"}}))
	server.serve(targetPort)
	client := n.container(t, "client", n.bridged())
	n.waitForBackends("web", 4)
	eventually(t, felt, "both containers are known", func() error {
		rows, err := tryList[[]endpointRow](n, "endpoint", "list")
		if err == nil && len(rows) != 2 {
			err = fmt.Errorf("%+v", rows)
		}
		return err
	})
	client.spread(t, "tcp", front(vip(10), v4), 3)
	families()
	n.expectMetric(t, "tclb_services 1")
	n.expectMetric(t, "tclb_endpoints 2")
	n.expectMetric(t, `tclb_backends{service="web",state="active"} 4`)
	_, text, _ := n.get("/metrics")
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(line, `tclb_connections_total{service="web"`) && strings.Contains(line, server.addr[v4].String()) && strings.HasSuffix(line, " 3") {
			return
		}
	}
	t.Errorf("three connections are not counted:\n%s", text)
}

func TestSIGHUPReloadsAndABadFileKeepsTheSettings(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.errorsAreOK = true
	n.start()
	hup := func() {
		t.Helper()
		if err := n.proxy.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	hostStack := func(want bool) {
		t.Helper()
		eventually(t, felt, "settings are reloaded", func() error {
			if st := list[statusRow](n, "status"); st.HostStack != want {
				return fmt.Errorf("hostStack is %v", st.HostStack)
			}
			return nil
		})
	}
	n.configureProxy("datapath: {hostStack: true, " + smallMaps + "}")
	hup()
	hostStack(true)

	n.configureProxy("datapath: {hostStack: false, nonsense: 1}")
	hup()
	eventually(t, felt, "the mistake is shown", func() error {
		st := list[statusRow](n, "status")
		if len(st.Findings) != 1 || st.Findings[0].File != n.cfg || !strings.HasSuffix(st.Findings[0].Key, "nonsense") {
			return fmt.Errorf("findings %+v", st.Findings)
		}
		return nil
	})
	hostStack(true)

	n.configureProxy()
	hup()
	hostStack(false)
	if st := list[statusRow](n, "status"); len(st.Findings) > 0 {
		t.Errorf("findings %+v", st.Findings)
	}
	if !strings.Contains(n.log(), "settings reloaded") {
		t.Error("the log does not say that settings were reloaded")
	}
}

func TestCommandsChangeServices(t *testing.T) { eachMode(t, testCommandsChangeServices) }

func testCommandsChangeServices(t *testing.T, mode string) {
	n, servers, client := cliNode(t, mode)
	file := filepath.Join(n.dir, "apply.yaml")
	n.write(file, service("api", vip(20), backends(servers[0].addr[:]...)))
	n.mustTclb("service", "apply", "-f", file)
	expectServers(t, client, front(vip(20), v6), servers[0].name)
	n.mustTclb("service", "delete", "api")
	if rows := list[[]serviceRow](n, "service", "list"); len(rows) != 1 || rows[0].Name != "web" {
		t.Errorf("services %+v", rows)
	}
	n.write(file, service("web", vip(21)))
	if r := n.tclb("service", "apply", "-f", file); r.status != 1 {
		t.Errorf("apply over a service of another file: %+v", r)
	}

	drained := servers[0].addr[v4].String()
	n.mustTclb("backend", "drain", "web", drained)
	expectServers(t, client, front(vip(10), v4), servers[1].name)
	n.stop()
	n.start()
	expectServers(t, client, front(vip(10), v4), servers[1].name)
	n.mustTclb("backend", "undrain", "web", drained)
	expectServers(t, client, front(vip(10), v4), servers[0].name, servers[1].name)
	n.mustTclb("backend", "weight", "web", servers[1].id, "0")
	expectServers(t, client, front(vip(10), v6), servers[0].name)
	n.mustTclb("backend", "weight", "web", servers[1].id, "default")
	expectServers(t, client, front(vip(10), v6), servers[0].name, servers[1].name)
}

func TestExitStatuses(t *testing.T) { eachMode(t, testExitStatuses) }

func testExitStatuses(t *testing.T, mode string) {
	n := newNode(t, mode)
	n.start()
	file := filepath.Join(n.dir, "bad.yaml")
	n.write(file, "services:\n- name: web\n  colour: red\n  ports: [{protocol: tcp, port: 0}]\n")
	for _, c := range []struct {
		args   string
		status int
	}{
		{"version", 0},
		{"status", 0},
		{"service list", 0},
		{"service get missing", 1},
		{"service delete missing", 1},
		{"frobnicate", 2},
		{"service", 2},
		{"service get", 2},
		{"status --colour", 2},
		{"service list -o xml", 2},
	} {
		r := n.tclb(strings.Fields(c.args)...)
		if r.status != c.status || c.status != 0 && !oneLine(r.stderr) {
			t.Errorf("tclb %s: %+v, want exit status %d", c.args, r, c.status)
		}
	}
	r := n.tclb("validate", file)
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if r.status != 1 || len(lines) != 2 || !strings.HasPrefix(lines[0], file+":3:3: services[0].colour: ") ||
		!strings.HasPrefix(lines[1], file+":4:") || !strings.Contains(r.stderr, "2") {
		t.Errorf("validate: %+v", r)
	}
	n.stop()
	if r := n.tclb("status"); r.status != 1 || !oneLine(r.stderr) {
		t.Errorf("status without a proxy: %+v", r)
	}
	if _, _, err := n.get("/healthz"); err == nil {
		t.Error("a stopped proxy answers")
	}
}
