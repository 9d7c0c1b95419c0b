package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// nobodyUser is an account without any capability.
const nobodyUser = 65534

// newRootless makes a node whose proxy and commands are an unprivileged user's, with a run directory of that user's alone.
func newRootless(t *testing.T, extra ...string) *node {
	t.Helper()
	n := newNode(t, extra...)
	n.user = nobodyUser
	n.stateDir = filepath.Join(n.runDir, "state")
	for _, path := range []string{n.dir, n.runDir, n.services, n.cfg} {
		if err := os.Chown(path, nobodyUser, nobodyUser); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(n.runDir, "sizes.json")); err != nil {
		t.Fatal(err)
	}
	return n
}

// local is a service on a loopback VIP, served by processes of the node.
func local(name, vip string, port int, addresses ...string) string {
	list := make([]netip.Addr, len(addresses))
	for i, a := range addresses {
		list[i] = netip.MustParseAddr(a)
	}
	return fmt.Sprintf("- name: %s\n  vips: [%q]\n  ports: [{port: %d, targetPort: %d}, {port: %[3]d, protocol: udp, targetPort: %[4]d}]\n  %s\n",
		name, vip, port, targetPort, backends(list...))
}

// Without any permission, and without a word about the mode: VIPs of 127.0.0.0/8 and addresses of the node are served, every
// command works, and one line says what mode it came to be and why.
func TestRootlessServesAndObeys(t *testing.T) {
	t.Parallel()
	n := newRootless(t, "listen: 127.0.0.1:9464", "conntrack: {maxEntries: 4096}", "datapath: {"+smallMaps+"}")
	n.userspace = true // it comes to that
	n.outside(t)
	for _, a := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"} {
		n.serve(targetPort, netip.MustParseAddr(a))
	}
	other := netip.MustParseAddr("2001:db8:e::7")
	n.ip("address add " + other.String() + "/64 dev up0 nodad")
	n.serve(targetPort, other)
	n.writeServices("web.yaml", "services:\n"+
		local("web", "127.0.0.10", 8000, "127.0.0.1", "127.0.0.2")+
		local("own", uplink[v4].String(), 8001, "127.0.0.3")+
		local("six", uplink[v6].String(), 8002, other.String()))
	n.start()
	for _, at := range []string{"127.0.0.10:8000", uplink[v4].String() + ":8001", "[" + uplink[v6].String() + "]:8002"} {
		for _, proto := range []string{"tcp", "udp"} {
			n.mustAsk(t, proto, netip.MustParseAddrPort(at))
		}
	}
	if lines := strings.Count(n.log(), "level=WARN"); lines != 1 || strings.Count(n.log(), "BPF is not permitted here") != 1 {
		t.Errorf("%d warnings:\n%s", lines, n.log())
	}
	st := list[statusRow](n, "status")
	if st.Mode != "userspace" || !strings.Contains(st.ModeReason, "BPF is not permitted") || len(st.Problems) > 0 {
		t.Errorf("status %+v", st)
	}
	if text := n.mustTclb("status"); !strings.Contains(text, "userspace (BPF is not permitted: ") {
		t.Errorf("status:\n%s", text)
	}
	if _, text, err := n.get("/metrics"); err != nil || !strings.Contains(text, `tclb_datapath_info{mode="userspace"} 1`) {
		t.Errorf("metrics: %v", err)
	}
	if status, _, err := n.get("/healthz"); err != nil || status != 200 {
		t.Errorf("healthz: %d, %v", status, err)
	}
	n.writeServices("none.yaml", "services: []\n")
	for _, command := range []string{
		"service list", "service get web", "backend list", "backend weight web 127.0.0.1 300", "conntrack list", "conntrack flush", "backend drain web 127.0.0.1 --wait=5s",
		"backend undrain web 127.0.0.1", "endpoint list", "node list", "version", "validate " + filepath.Join(n.services, "none.yaml"),
	} {
		if r := n.tclb(strings.Fields(command)...); r.status != 0 {
			t.Errorf("tclb %s: %+v", command, r)
		}
	}
	file := filepath.Join(n.dir, "api.yaml")
	n.write(file, "services:\n"+local("api", "127.0.0.11", 8003, "127.0.0.3"))
	n.mustTclb("service", "apply", "-f", file)
	n.mustAsk(t, "tcp", netip.MustParseAddrPort("127.0.0.11:8003"))
	n.mustTclb("service", "delete", "api")
	n.stop()
	n.mustTclb("uninstall")
	if left := files(t, n.runDir); len(left) > 0 && !strings.Contains(strings.Join(left, " "), "state") {
		t.Errorf("left over: %v", left)
	}
}

// What this user cannot have is an error of its service, which says what to do; it is served once that is done.
func TestRootlessServiceThatCannotBeServed(t *testing.T) {
	t.Parallel()
	n := newRootless(t, inUserspace)
	n.errorsAreOK = true
	n.serve(targetPort, netip.MustParseAddr("127.0.0.1"))
	n.writeServices("web.yaml", "services:\n"+local("far", "10.96.0.9", 8000, "127.0.0.1")+local("low", "127.0.0.9", 80, "127.0.0.1")+
		local("fine", "127.0.0.8", 8000, "127.0.0.1"))
	n.start()
	n.mustAsk(t, "tcp", netip.MustParseAddrPort("127.0.0.8:8000"))
	text := strings.Join(list[statusRow](n, "status").Problems, "\n")
	for _, want := range []string{
		"service far: VIP 10.96.0.9 is no address of this node", "CAP_NET_ADMIN",
		"service low: listen on tcp 127.0.0.9:80", "ports below 1024 need CAP_NET_BIND_SERVICE",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in %s", want, text)
		}
	}
	if strings.Contains(text, "service fine") {
		t.Errorf("problems %s", text)
	}
	if errors := strings.Count(n.log(), "level=ERROR"); errors != 2 {
		t.Errorf("%d lines of two services:\n%s", errors, n.log())
	}
	if _, text, err := n.get("/metrics"); err != nil || strings.Contains(text, "tclb_reconcile_errors_total 0") {
		t.Errorf("metrics do not count it (%v)", err)
	}
	served := func(at string) {
		t.Helper()
		eventually(t, 3*felt, at+" is served", func() error {
			_, err := n.ask("tcp", netip.MustParseAddrPort(at))
			return err
		})
	}
	n.sysctl("net/ipv4/ip_unprivileged_port_start", "80") // nobody tells the proxy
	served("127.0.0.9:80")
	n.ip("address add 10.96.0.9/32 dev lo")
	served("10.96.0.9:8000")
	eventually(t, 3*felt, "the problems are gone", func() error {
		if st := list[statusRow](n, "status"); len(st.Problems) > 0 {
			return fmt.Errorf("%v", st.Problems)
		}
		return nil
	})
}

// Who asks for programs gets them, or an error: never another mode.
func TestModeEBPFNeverFallsBack(t *testing.T) {
	t.Parallel()
	n := newRootless(t, inKernel)
	n.errorsAreOK = true
	n.expectNoStart()
	if log := n.log(); strings.Contains(log, "userspace") || !strings.Contains(lastLine(log), "permitted") {
		t.Errorf("log:\n%s", log)
	}
}
