package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

func TestAttachmentOnABridgeAndARoutedOne(t *testing.T) {
	n := newNode(t)
	c := n.container("c1")
	bridged := n.veth(c, "eth0", n.bridge, "192.0.2.7/24", "2001:db8::7/64")
	routed := n.veth(c, "eth1", nil, "198.51.100.7/32")
	n.mustCall("ADD", c, "eth0")
	n.mustCall("ADD", c, "eth1")

	for _, want := range []struct {
		addr  string
		host  netlink.Link
		up    netlink.Link
		upIdx int
	}{
		{"192.0.2.7", bridged, n.bridge, n.bridge.Attrs().Index},
		{"2001:db8::7", bridged, n.bridge, n.bridge.Attrs().Index},
		{"198.51.100.7", routed, routed, 0},
	} {
		e, ok := n.endpoint(want.addr, want.host)
		var up netlink.Link
		n.on(func() (err error) { // again: a bridge's MAC follows its ports
			up, err = netlink.LinkByIndex(want.up.Attrs().Index)
			return err
		})
		if !ok || int(e.UpIfindex) != want.upIdx || mac(e.UpMAC) != up.Attrs().HardwareAddr.String() {
			t.Errorf("%s: %+v %v, want index %d and %s", want.addr, e, ok, want.upIdx, up.Attrs().HardwareAddr)
		}
	}
	e := n.registered(c, "eth0")
	if e.HostInterface != bridged.Attrs().Name || e.Master != "tclbp-br0" || e.Attach != attach.KindTCX || e.NetnsCookie == 0 || e.DefaultRoute {
		t.Errorf("registered %+v", e)
	}
	if len(e.Addresses) != 2 {
		t.Errorf("addresses %v: link-local ones do not count", e.Addresses)
	}
	for _, ifname := range []string{"eth0", "eth1"} {
		n.mustCall("CHECK", c, ifname)
		id := registry.EndpointID("c1", ifname)
		for _, pin := range []string{inPin(n.bpffs, id), outPin(n.bpffs, id)} {
			if l, err := attach.Inspect(pin); err != nil || !l.Alive || l.Kind != attach.KindTCX {
				t.Errorf("%s: %+v, %v", pin, l, err)
			}
		}
	}
	n.mustCall("DEL", c, "eth0")
	n.mustCall("CHECK", c, "eth1")
	n.expectCode(codeDrift, "CHECK", c, "eth0")
	n.mustCall("DEL", c, "eth1")
	n.expectNothing()
}

func TestDefaultRouteIsSeen(t *testing.T) {
	n := newNode(t)
	for i, family := range []string{"192.0.2.1", "2001:db8::1"} {
		c := n.container(fmt.Sprintf("c%d", i))
		n.veth(c, "eth0", n.bridge, "192.0.2.7/24", "2001:db8::7/64")
		n.must(c.space.Do(func(ns.NetNS) error {
			l, err := netlinksafe.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: netip.MustParseAddr(family).AsSlice()})
		}))
		n.mustCall("ADD", c, "eth0")
		if !n.registered(c, "eth0").DefaultRoute {
			t.Errorf("default route by %s was not seen", family)
		}
	}
}

func TestDelMarksBackendsGone(t *testing.T) {
	n := newNode(t)
	c := n.container("c1")
	host := n.veth(c, "eth0", n.bridge, "192.0.2.7/24")
	n.mustCall("ADD", c, "eth0")
	backend := datapath.Backend{
		Address: netip.MustParseAddr("192.0.2.7"), Port: 80, Protocol: lb.TCP, Gen: 1, Service: 1,
		Ifindex: uint32(host.Attrs().Index), Live: true, New: true, Local: true, Weight: 1,
	}
	other := backend
	other.Ifindex++
	dp := n.datapath()
	n.must(dp.PutBackends([]uint32{1, 2}, []datapath.Backend{backend, other}))
	n.mustCall("DEL", c, "eth0")
	if b, err := dp.Backend(1); err != nil || b.Live || b.New {
		t.Errorf("the container's backend: %+v, %v", b, err)
	}
	if b, err := dp.Backend(2); err != nil || !b.Live || !b.New {
		t.Errorf("another container's backend: %+v, %v", b, err)
	}
}

func TestInterfacesThatAreNoVeth(t *testing.T) {
	n := newNode(t)
	c := n.container("c1")
	parent := n.veth(n.container("other"), "eth0", nil)
	n.on(func() error {
		return netlink.LinkAdd(&netlink.Macvlan{
			LinkAttrs: netlink.LinkAttrs{Name: "eth0", ParentIndex: parent.Attrs().Index, Namespace: netlink.NsFd(int(c.space.Fd()))},
			Mode:      netlink.MACVLAN_MODE_BRIDGE,
		})
	})
	n.must(c.space.Do(func(ns.NetNS) error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}})
	}))
	for ifname, want := range map[string]string{"eth0": "macvlan", "eth1": "bridge", "eth2": "no interface eth2"} {
		err := n.expectCode(codeInterface, "ADD", c, ifname)
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q does not say %q", ifname, err, want)
		}
	}
	n.expectNothing()
}

func TestHostSideMustBeHere(t *testing.T) {
	n := newNode(t)
	c := n.container("c1")
	elsewhere := n.namespace()
	n.must(c.space.Do(func(ns.NetNS) error {
		far := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "far", PeerNamespace: netlink.NsFd(int(elsewhere.Fd()))}
		near := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}, PeerName: "eth2"}
		if err := netlink.LinkAdd(far); err != nil {
			return err
		}
		return netlink.LinkAdd(near)
	}))
	// Unrelated interfaces of the node have the numbers of the missing peers.
	for range 4 {
		n.veth(n.container("other"), "eth0", nil)
	}
	for _, ifname := range []string{"eth0", "eth1"} {
		n.expectCode(codePeer, "ADD", c, ifname)
	}
	n.expectCode(types.ErrInvalidNetNS, "ADD", container{"c1", n.space}, "eth0")
	n.expectNothing()
}

func TestForeignFiltersKeepRunning(t *testing.T) {
	n := newNode(t)
	c := n.container("c1")
	host := n.veth(c, "eth0", n.bridge, "192.0.2.7/24")
	counter, prog := n.counter()
	n.on(func() error {
		err := netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: host.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
		}})
		if err != nil {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: host.Attrs().Index, Parent: netlink.MakeHandle(0xffff, 0), Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL,
			},
			Fd: prog.FD(), Name: "foreign", DirectAction: true,
		})
	})
	n.mustCall("ADD", c, "eth0")
	if e := n.registered(c, "eth0"); e.Attach != attach.KindTCX {
		t.Errorf("attach %s beside an ingress qdisc, want tcx", e.Attach)
	}
	before := counter()
	n.must(c.space.Do(func(ns.NetNS) error { return sendTo("192.0.2.1") })) // an ARP request at least
	if counter() == before {
		t.Error("the filter behind from_container saw no packet")
	}
	n.mustCall("DEL", c, "eth0")
	n.expectNothing()
}

func (n *node) counter() (func() uint64, *ebpf.Program) {
	n.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	n.must(err)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.LoadMapValue(asm.R1, m.FD(), 0), asm.Mov.Imm(asm.R2, 1), asm.StoreXAdd(asm.R1, asm.R2, asm.DWord),
		asm.Mov.Imm(asm.R0, -1), asm.Return(),
	}})
	n.must(err)
	n.Cleanup(func() { _ = p.Close(); _ = m.Close() })
	return func() (v uint64) {
		n.must(m.Lookup(uint32(0), &v))
		return v
	}, p
}

func sendTo(addr string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: netip.MustParseAddr(addr).As4()})
}

func TestAddAfterTheVethDiedWithoutDel(t *testing.T) {
	n := newNode(t)
	c := n.container("c1")
	old := n.veth(c, "eth0", n.bridge, "192.0.2.7/24")
	n.mustCall("ADD", c, "eth0")
	n.on(func() error { return netlink.LinkDel(old) })
	id := registry.EndpointID("c1", "eth0")
	if l, err := attach.Inspect(inPin(n.bpffs, id)); err != nil || l.Alive || l.Ifindex != 0 {
		t.Fatalf("the pin of a dead veth: %+v, %v", l, err)
	}
	host := n.veth(c, "eth0", n.bridge, "192.0.2.8/24")
	n.expectCode(codeDrift, "CHECK", c, "eth0")
	n.mustCall("ADD", c, "eth0")
	n.mustCall("CHECK", c, "eth0")
	if _, ok := n.endpoint("192.0.2.7", old); ok {
		t.Error("the dead veth's address is still in the map")
	}
	if _, ok := n.endpoint("192.0.2.8", host); !ok {
		t.Error("the new address is not in the map")
	}
	n.on(func() error { return netlink.LinkDel(host) })
	n.mustCall("DEL", c, "eth0")
	n.mustCall("DEL", c, "eth0")
	n.expectNothing()
}

// A crash of ADD, or of DEL, may stop between any two steps.
func TestCrashBetweenSteps(t *testing.T) {
	id := registry.EndpointID("c1", "eth0")
	for name, crash := range map[string]func(n *node, host netlink.Link){
		"before the file": func(n *node, _ netlink.Link) { n.must(os.Remove(filepath.Join(n.runDir, "endpoints", id+".json"))) },
		"half a temporary": func(n *node, _ netlink.Link) {
			n.must(os.WriteFile(filepath.Join(n.runDir, "endpoints", "."+id+".tmp"), []byte("{"), 0o600))
		},
		"before egress": func(n *node, _ netlink.Link) {
			n.must(os.Remove(filepath.Join(n.runDir, "endpoints", id+".json")))
			n.must(attach.Detach(outPin(n.bpffs, id), 0))
		},
		"after retiring": func(n *node, host netlink.Link) {
			_, err := n.datapath().RetireEndpoint(uint32(host.Attrs().Index), nil)
			n.must(err)
			n.must(attach.Detach(inPin(n.bpffs, id), 0))
		},
	} {
		for _, next := range []string{"ADD", "DEL"} {
			t.Run(name+" then "+next, func(t *testing.T) {
				n := newNode(t)
				c := n.container("c1")
				host := n.veth(c, "eth0", n.bridge, "192.0.2.7/24")
				n.mustCall("ADD", c, "eth0")
				crash(n, host)
				if next == "ADD" {
					n.mustCall("ADD", c, "eth0")
					n.mustCall("CHECK", c, "eth0")
				}
				n.mustCall("DEL", c, "eth0")
				n.expectNothing()
			})
		}
	}
}

func TestHundredContainersAtOnce(t *testing.T) {
	n := newNode(t)
	const spaces, each = 20, 5
	type target struct {
		c      container
		ifname string
	}
	var targets []target
	for i := range spaces {
		c := n.container(fmt.Sprintf("c%d", i))
		for j := range each {
			ifname := fmt.Sprintf("eth%d", j)
			n.veth(c, ifname, n.bridge, fmt.Sprintf("10.9.%d.%d/16", j, i+1))
			targets = append(targets, target{c, ifname})
		}
	}
	all := func(verbs ...string) {
		var wg sync.WaitGroup
		for _, x := range targets {
			wg.Go(func() {
				for _, verb := range verbs {
					if _, err := n.call(verb, x.c, x.ifname, nil); err != nil {
						t.Errorf("%s %s %s: %v", verb, x.c.id, x.ifname, err)
					}
				}
			})
		}
		wg.Wait()
	}
	all("ADD") // the first of them loads the datapath
	eps, err := n.datapath().Endpoints()
	if err != nil || len(eps) != len(targets) {
		t.Errorf("%d endpoints in the map, %v, want %d", len(eps), err, len(targets))
	}
	all("CHECK", "DEL", "ADD", "DEL")
	n.expectNothing()
}

func TestGCAndStatusOnTheRealThing(t *testing.T) {
	n := newNode(t)
	c := n.container("c1")
	if _, err := n.call("STATUS", c, "eth0", nil); err != nil {
		t.Errorf("STATUS on a fresh node: %v", err)
	}
	n.veth(c, "eth0", n.bridge, "192.0.2.7/24")
	n.mustCall("ADD", c, "eth0")
	if _, err := n.call("GC", c, "", map[string]any{"cni.dev/valid-attachments": nil}); err != nil {
		t.Errorf("GC: %v", err)
	}
	n.expectNothing()
}

func TestOtherLayoutIsRefusedAndLeftAlone(t *testing.T) {
	n := newNode(t)
	n.must(os.MkdirAll(n.bpffs, 0o700))
	n.must(unix.Mount("bpf", n.bpffs, "bpf", 0, "mode=0700"))
	mount := n.bpffs
	t.Cleanup(func() { n.bpffs = mount }) // for its unmounting
	n.bpffs = filepath.Join(mount, "tclb")
	n.must(os.MkdirAll(filepath.Join(n.bpffs, "v99"), 0o700))
	c := n.container("c1")
	n.veth(c, "eth0", n.bridge, "192.0.2.7/24")
	err := n.expectCode(types.ErrTryAgainLater, "ADD", c, "eth0")
	if want := fmt.Sprintf("v%d", datapath.LayoutVersion); !strings.Contains(err.Msg, "v99") || !strings.Contains(err.Msg, want) || strings.Contains(err.Msg, "\n") {
		t.Errorf("%q does not name v99 and %s in one line", err.Msg, want)
	}
	if _, err := n.call("STATUS", c, "eth0", nil); err == nil || err.Code != types.ErrPluginNotAvailable {
		t.Errorf("STATUS: %v, want code %d", err, types.ErrPluginNotAvailable)
	}
	n.mustCall("DEL", c, "eth0")
	left, readErr := os.ReadDir(n.bpffs)
	if readErr != nil || len(left) != 1 {
		t.Errorf("the bpffs holds %v, %v, want v99 alone", left, readErr)
	}
	files, readErr := os.ReadDir(filepath.Join(n.runDir, "endpoints"))
	if readErr != nil || len(files) != 0 {
		t.Errorf("registered %v, %v", files, readErr)
	}
}

func TestRunWithoutArgumentsNamesTheVersion(t *testing.T) {
	n := newNode(t)
	out, err := n.exec(nil)
	if err != nil || out != "CNI tclb-cni plugin v0.0.0-dev\n" {
		t.Errorf("printed %q, %v", out, err)
	}
	out, err = n.exec([]byte(`{"cniVersion":"1.0.0"}`), "CNI_COMMAND=VERSION", "CNI_PATH=dummy", "CNI_IFNAME=dummy", "CNI_NETNS=dummy")
	if err != nil || !strings.Contains(out, `"supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]`) {
		t.Errorf("VERSION printed %q, %v", out, err)
	}
}
