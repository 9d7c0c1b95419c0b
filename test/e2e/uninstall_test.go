package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"
)

// programs counts the tcx programs on a node's device.
func (n *node) programs(t *testing.T, device string) int {
	t.Helper()
	count := 0
	n.do(func() error {
		l, err := netlinksafe.LinkByName(device)
		if err != nil {
			return err
		}
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			found, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: at})
			if err != nil {
				return err
			}
			count += len(found.Programs)
		}
		return nil
	})
	return count
}

func TestUninstallLeavesNothingOfOurs(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	server := n.container(t, "web", n.bridged(conf{"services": []string{"web"}}))
	server.serve(targetPort)
	client := n.container(t, "client", n.bridged())
	veth := client.hostInterface("eth0")
	n.waitForBackends("web", 4)
	hostSource(t, n)
	client.mustAsk(t, "tcp", front(vip(10), v4))
	if got := n.programs(t, veth); got != 2 {
		t.Fatalf("%d programs on %s, want 2", got, veth)
	}

	if r := n.tclb("uninstall"); r.status != 1 || !oneLine(r.stderr) || !strings.Contains(r.stderr, "stop it first") {
		t.Errorf("uninstall beside a proxy: %+v", r)
	}
	client.mustAsk(t, "tcp", front(vip(10), v4))
	n.stop()
	kept := append(files(t, n.stateDir), files(t, n.services)...)
	n.mustTclb("uninstall")

	for _, l := range n.links() {
		if strings.HasPrefix(l, "tclb") {
			t.Errorf("left over: link %s", l)
		}
	}
	for _, family := range []string{"-4", "-6"} {
		if routes := n.run("ip", family, "route", "show", "proto", "76", "table", "all"); routes != "" {
			t.Errorf("left over: routes %s", routes)
		}
	}
	for _, dir := range []string{n.bpffs, n.runDir} {
		if left := files(t, dir); len(left) > 0 {
			t.Errorf("left over below %s: %v", dir, left)
		}
	}
	if got := n.programs(t, veth); got != 0 {
		t.Errorf("left over: %d programs on %s", got, veth)
	}
	if now := append(files(t, n.stateDir), files(t, n.services)...); !slices.Equal(now, kept) {
		t.Errorf("state and services files are %v, were %v", now, kept)
	}
	client.mustAsk(t, "tcp", server.at(v4, targetPort)) // containers run on
	if r := n.tclb("uninstall"); r.status != 0 || !strings.Contains(r.stdout, "nothing to remove") {
		t.Errorf("a second uninstall: %+v", r)
	}

	// The node can be used again.
	n.write(filepath.Join(mkdir(t, n.runDir), "sizes.json"), "{}")
	again := n.container(t, "again", n.bridged(conf{"services": []string{"web"}}))
	again.serve(targetPort)
	n.start()
	expectServers(t, n.container(t, "client2", n.bridged()), front(vip(10), v4), again.name)
}

func mkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// oneLine says whether s is what a failure prints: exactly one line.
func oneLine(s string) bool {
	return strings.Count(s, "\n") == 1 && strings.HasSuffix(s, "\n") && strings.HasPrefix(s, "tclb: ")
}

// lastLine is what a proxy that cannot run prints after its log.
func lastLine(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return lines[len(lines)-1] + "\n"
}

func TestSecondProxyOnARunDirectoryExits(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start()
	r := n.tclb("proxy", "--log-level", "error")
	if r.status != 1 || !oneLine(r.stderr) || !strings.Contains(r.stderr, n.runDir) {
		t.Errorf("a second proxy: %+v", r)
	}
	if status, _, err := n.get("/healthz"); status != 200 || err != nil {
		t.Errorf("the first one: %d, %v", status, err)
	}
}

func TestAnotherLayoutIsRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	mkdir(t, n.bpffs)
	if err := unix.Mount("bpf", n.bpffs, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	foreign := mkdir(t, filepath.Join(n.bpffs, "v999", "maps"))
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(filepath.Join(foreign, "frontends")); err != nil {
		t.Fatal(err)
	}

	r := n.tclb("proxy", "--log-level", "error")
	if last := lastLine(r.stderr); r.status != 1 || !oneLine(last) || !strings.Contains(last, "v999") || !strings.Contains(last, layout) {
		t.Errorf("proxy: %+v, want one line that names v1 and v999", r)
	}
	c := n.newContainer(t, "client")
	addErr := c.add(n.bridged(), "eth0")
	var e *types.Error
	if !errors.As(addErr, &e) || e.Code != types.ErrTryAgainLater || !strings.Contains(e.Msg, "v999") {
		t.Errorf("ADD: %v, want code 11", addErr)
	}
	if err := c.del(n.bridged(), "eth0"); err != nil {
		t.Errorf("DEL: %v", err)
	}
	if left := files(t, n.bpffs); !slices.Equal(left, []string{"v999/maps/frontends"}) {
		t.Errorf("pins %v, want the foreign one alone", left)
	}
	n.expectNoAttachment(t)
}
