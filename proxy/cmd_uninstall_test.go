package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/host"
)

// inNamespace runs f in a network namespace of its own: uninstall looks at every interface.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	space, err := ns.TempNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = space.Close() }()
	if err := space.Do(func(ns.NetNS) error { f(); return nil }); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// installation is a node with everything in it that uninstall has to find.
type installation struct {
	bpffs, runDir string
	device        netlink.Link
}

func (i installation) uninstall(t *testing.T) result {
	t.Helper()
	return tclb(t, "", nil, "--bpffs", i.bpffs, "--run-dir", i.runDir, "uninstall")
}

// install loads a datapath and attaches it to a veth by a link and by filters, and to the host.
func install(t *testing.T) installation {
	t.Helper()
	i := installation{bpffs: filepath.Join(t.TempDir(), "bpf"), runDir: filepath.Join(t.TempDir(), "run")}
	d, err := datapath.Load(datapath.Options{
		BPFFS: i.bpffs,
		Sizes: datapath.Sizes{MaxServices: 64, MaxBackends: 256, TableSlots: 16384, MaxConntrack: 4096},
	})
	must(t, err)
	t.Cleanup(func() { _ = unix.Unmount(i.bpffs, unix.MNT_DETACH) })
	defer func() { _ = d.Close() }()

	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "dev0"}, PeerName: "peer0"}))
	i.device, err = netlinksafe.LinkByName("dev0")
	must(t, err)
	must(t, netlink.LinkSetUp(i.device))
	index, links := i.device.Attrs().Index, datapath.LinkDir(i.bpffs)
	_, err = attach.Attach(d.Program("from_container"), index, attach.Ingress, filepath.Join(links, "one-in"))
	must(t, err)
	_, err = attach.AttachBy(d.Program("to_container"), index, attach.Egress, filepath.Join(links, "one-out"), attach.KindClsact)
	must(t, err)
	// A filter whose pin is lost.
	lost := filepath.Join(links, "lost")
	_, err = attach.AttachBy(d.Program("from_container"), index, attach.Ingress, lost, attach.KindClsact)
	must(t, err)
	must(t, os.Remove(lost))
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: host.Device}, PeerName: host.Peer}))

	dir, err := registry.Open(i.runDir)
	must(t, err)
	must(t, dir.Put(registry.Endpoint{ID: registry.EndpointID("c1", "eth0"), ContainerID: "c1", Ifname: "eth0"}))
	must(t, os.WriteFile(filepath.Join(i.runDir, "sizes.json"), []byte("{}"), 0o600))
	must(t, os.MkdirAll(filepath.Join(i.runDir, "state"), 0o700))
	must(t, os.WriteFile(filepath.Join(i.runDir, "state", "overrides.json"), []byte("{}"), 0o600))
	return i
}

func TestUninstallLeavesNothingButTheState(t *testing.T) {
	inNamespace(t, func() {
		i := install(t)
		dir, err := registry.Open(i.runDir)
		must(t, err)
		unlock, err := dir.LockProxy()
		must(t, err)
		refused := result{exitFailed, "", "tclb: a proxy runs on " + i.runDir + `: stop it first, for example with "systemctl stop tclb"` + "\n"}
		if got := i.uninstall(t); got != refused {
			t.Errorf("while a proxy runs: %+v, want %+v", got, refused)
		}
		if _, err := attach.Inspect(filepath.Join(datapath.LinkDir(i.bpffs), "one-in")); err != nil {
			t.Errorf("a refused uninstall removed something: %v", err)
		}
		unlock()

		got := i.uninstall(t)
		if got.status != exitDone || got.stderr != "" {
			t.Fatalf("%+v", got)
		}
		for _, want := range []string{"links/one-in", "links/one-out", "device " + host.Device, "/maps/", "/progs/", "/endpoints"} {
			if !strings.Contains(got.stdout, want) {
				t.Errorf("%q is not said to be removed in:\n%s", want, got.stdout)
			}
		}
		i.checkClean(t)
		if got := i.uninstall(t); got != (result{exitDone, "nothing to remove\n", ""}) {
			t.Errorf("the second time: %+v", got)
		}
	})
}

// checkClean looks for everything that install made. A bpffs has files of the kernel's besides.
func (i installation) checkClean(t *testing.T) {
	t.Helper()
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if left, err := netlinksafe.FilterList(i.device, parent); err == nil && len(left) > 0 {
			t.Errorf("filters are left: %v", left)
		}
	}
	if _, err := net.InterfaceByName(host.Device); err == nil {
		t.Errorf("%s is left", host.Device)
	}
	if left, err := filepath.Glob(filepath.Join(i.bpffs, "v*")); err != nil || len(left) > 0 {
		t.Errorf("pins are left: %v %v", left, err)
	}
	var left []string
	entries, err := os.ReadDir(i.runDir)
	must(t, err)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if diff := cmp.Diff([]string{"state"}, left); diff != "" {
		t.Errorf("run directory (-want +got):\n%s", diff)
	}
	if !exists(filepath.Join(i.runDir, "state", "overrides.json")) {
		t.Error("the state directory is gone")
	}
}

func TestUninstallOfACleanNodeMakesNothing(t *testing.T) {
	inNamespace(t, func() {
		i := installation{bpffs: filepath.Join(t.TempDir(), "bpf"), runDir: filepath.Join(t.TempDir(), "run")}
		if got := i.uninstall(t); got != (result{exitDone, "nothing to remove\n", ""}) {
			t.Errorf("%+v", got)
		}
		if exists(i.runDir) || exists(i.bpffs) {
			t.Error("uninstall made a directory")
		}
	})
}
