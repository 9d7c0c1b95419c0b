package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

// The lines of tclb.yaml for who carries packets: programs in the kernel, these and the host's stack, or the proxy itself.
const (
	byTheStack  = "datapath: {mode: ebpf, hostStack: true, " + smallMaps + "}"
	inKernel    = "datapath: {mode: ebpf, " + smallMaps + "}"
	inUserspace = "datapath: {mode: userspace, " + smallMaps + "}"
)

// eachMode runs a test that must hold whoever carries packets. f gets the line for tclb.yaml.
func eachMode(t *testing.T, f func(t *testing.T, mode string)) {
	t.Parallel()
	for name, mode := range map[string]string{"ebpf": inKernel, "host stack": byTheStack, "userspace": inUserspace} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, mode)
		})
	}
}

// A proxy in userspace mode does not run beside programs that would take its packets away: those of a proxy before.
func TestUserspaceRefusesToRunBesideADatapath(t *testing.T) {
	t.Parallel()
	n := newNode(t, inKernel)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	server := n.container(t, "web", n.bridged(conf{"services": []string{"web"}}))
	server.serve(targetPort)
	client := n.container(t, "client", n.bridged())
	n.waitForBackends("web", 4)
	n.stop()
	n.configureProxy(inUserspace)
	n.expectNoStart()
	if line := lastLine(n.log()); !strings.Contains(line, "run tclb uninstall first") {
		t.Errorf("it says %s", line)
	}
	client.mustAsk(t, "tcp", front(vip(10), v4)) // the datapath runs on
	n.mustTclb("uninstall")
	n.writeServices("web.yaml", service("web", vip(10), backends(server.addr[:]...)))
	n.start()
	n.waitForBackends("web", 4)
	eachWay(t, func(t *testing.T, family int, proto string) { client.mustAsk(t, proto, front(vip(10), family)) })
}

// Containers that came before any proxy have programs which know no VIPs: they are in nobody's way.
func TestUserspaceTakesContainersThatCameFirst(t *testing.T) {
	t.Parallel()
	n := newNode(t, inUserspace)
	server := n.container(t, "web", n.bridged(conf{"services": []string{"web"}}))
	server.serve(targetPort)
	client := n.container(t, "client", n.bridged())
	if got := n.programs(t, client.hostInterface("eth0")); got != 2 {
		t.Fatalf("%d programs: this tests nothing", got)
	}
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	n.waitForBackends("web", 4)
	eachWay(t, func(t *testing.T, family int, proto string) { client.mustAsk(t, proto, front(vip(10), family)) })
}

// A container that joined in userspace mode has no programs. A proxy in the other mode reaches it through the host's
// stack, as any container that is not attached.
func TestContainerOfUserspaceModeServesInTheOther(t *testing.T) {
	t.Parallel()
	n := newNode(t, inUserspace)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	server := n.container(t, "web", n.bridged(conf{"services": []string{"web"}}))
	server.serve(targetPort)
	n.waitForBackends("web", 4)
	n.kill() // so that its routes are left
	n.configureProxy(inKernel)
	n.start()
	n.waitForBackends("web", 4)
	if routes := n.ip("route show table local proto 76"); routes != "" {
		t.Errorf("routes of userspace mode are left: %s", routes)
	}
	client := n.container(t, "client", n.bridged())
	if got := n.programs(t, client.hostInterface("eth0")); got != 2 {
		t.Errorf("%d programs on a new container", got)
	}
	hostSource(t, n)
	for _, from := range []*place{client.place, n.place} {
		eachWay(t, func(t *testing.T, family int, proto string) {
			if a := from.mustAsk(t, proto, front(vip(10), family)); a.Server != server.name {
				t.Errorf("%+v", a)
			}
		})
	}
}

// What userspace mode cannot do is a mistake with its place where the mode was asked for.
func TestUserspaceModeSaysWhatItCannotDo(t *testing.T) {
	t.Parallel()
	n := newNode(t, inUserspace, "uplinks: [up0]")
	n.errorsAreOK = true
	n.expectNoStart()
	if want := n.cfg + ":4:10: uplinks: uplinks is for programs in the kernel"; !strings.Contains(n.log(), want) {
		t.Errorf("%q is not in\n%s", want, n.log())
	}
	n.configureProxy(inUserspace)
	n.writeServices("web.yaml", service("web", vip(10), "dsr: true"))
	n.start()
	text := strings.Join(list[statusRow](n, "status").Problems, "\n")
	if want := "web.yaml:7:8: services[0].dsr: dsr is done by programs in the kernel"; !strings.Contains(text, want) {
		t.Errorf("%q is not among the problems %s", want, text)
	}
	r := n.tclb("validate", filepath.Join(n.services, "web.yaml"))
	if r.status != 1 || !strings.Contains(r.stdout, "web.yaml:7:8: services[0].dsr: ") {
		t.Errorf("validate: %+v", r)
	}
	n.writeServices("web.yaml", service("web", vip(10), `backends: [{address: 198.51.100.9, vlan: {device: eth77, id: 5}}]`))
	n.configureProxy(inKernel)
	if r := n.tclb("validate", filepath.Join(n.services, "web.yaml")); r.status != 1 || !strings.Contains(r.stdout, `device "eth77" is not there`) {
		t.Errorf("validate: %+v", r)
	}
}
