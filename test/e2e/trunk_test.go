package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
)

// trunkDevice is the node's device that carries VLANs.
const trunkDevice = "eth1"

// inVLAN is the address of the i-th host in a VLAN. All VLANs have the same subnets.
func inVLAN(family, i int) netip.Addr {
	if family == v4 {
		return netip.AddrFrom4([4]byte{198, 18, 100, byte(i)})
	}
	a := netip.MustParseAddr("2001:db8:64::").As16()
	a[15] = byte(i)
	return netip.AddrFrom16(a)
}

// fabric is a switch with a trunk port, to which a node's device leads, and a bridge for each VLAN.
type fabric struct {
	*place
	n     *node
	ports int
	vlans map[int]func() // by id: what takes it off the trunk
}

// newFabric gives a node a device that carries VLANs, with these addresses.
func (n *node) newFabric(t *testing.T, addrs ...string) *fabric {
	t.Helper()
	f := &fabric{place: newPlace(t, n.name+"-fabric"), n: n, vlans: map[int]func(){}}
	f.plugTrunk(addrs...)
	return f
}

func (f *fabric) plugTrunk(addrs ...string) {
	f.t.Helper()
	join(f.n.place, trunkDevice, f.place, "trunk", addrs, nil)
	for id, off := range f.vlans {
		off()
		f.vlans[id] = f.access("trunk", id, fmt.Sprintf("up%d", id))
	}
}

// vlan makes a bridge for a VLAN, once.
func (f *fabric) vlan(id int) (bridge string) {
	f.t.Helper()
	bridge = fmt.Sprintf("vlan%d", id)
	if f.vlans[id] == nil {
		up := fmt.Sprintf("up%d", id)
		f.do(func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}) })
		f.configure(bridge)
		join(f.place, up, f.place, fmt.Sprintf("down%d", id), nil, nil)
		f.ip(fmt.Sprintf("link set down%d master %s", id, bridge))
		f.vlans[id] = f.access("trunk", id, up)
	}
	return bridge
}

// translated are the addresses of a trunk device as whom clients go to backends.
var translated = []string{inVLAN(v4, 1).String() + "/24", inVLAN(v6, 1).String() + "/64"}

// host puts a host into a VLAN: its i-th, which knows of no tag.
func (f *fabric) host(t *testing.T, name string, id, i int) *place {
	t.Helper()
	p := newPlace(t, f.n.name+"-"+name)
	f.ports++
	port := fmt.Sprintf("port%d", f.ports)
	join(p, "eth0", f.place, port, []string{inVLAN(v4, i).String() + "/24", inVLAN(v6, i).String() + "/64"}, nil)
	f.ip("link set " + port + " master " + f.vlan(id))
	return p
}

// The fields of struct __sk_buff that say which tag a frame has.
const (
	skbTagged = 20
	skbTag    = 24
)

// access makes a device of the place a port that is in one VLAN of a trunk: frames with its tag go there without
// it, and what comes from there goes out of the trunk with it. A kernel without VLAN devices has nothing for that.
func (p *place) access(trunk string, id int, port string) (off func()) {
	p.t.Helper()
	var ends []func()
	p.do(func() error {
		t, err := netlinksafe.LinkByName(trunk)
		if err != nil {
			return err
		}
		a, err := netlinksafe.LinkByName(port)
		if err != nil {
			return err
		}
		out := asm.Instructions{
			asm.Mov.Imm(asm.R2, 0x0081), asm.Mov.Imm(asm.R3, int32(id)), asm.FnSkbVlanPush.Call(),
			asm.Mov.Imm(asm.R1, int32(t.Attrs().Index)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return(),
		}
		in := asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, skbTagged, asm.Word), asm.JEq.Imm(asm.R2, 0, "next"),
			asm.LoadMem(asm.R2, asm.R1, skbTag, asm.Word), asm.And.Imm(asm.R2, 0xfff), asm.JNE.Imm(asm.R2, int32(id), "next"),
			asm.FnSkbVlanPop.Call(),
			asm.Mov.Imm(asm.R1, int32(a.Attrs().Index)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return(),
			asm.Mov.Imm(asm.R0, -1).WithSymbol("next"), asm.Return(),
		}
		for ifindex, code := range map[int]asm.Instructions{t.Attrs().Index: in, a.Attrs().Index: out} {
			end, err := ingress(ifindex, code)
			if err != nil {
				return err
			}
			ends = append(ends, end)
		}
		return nil
	})
	off = func() {
		for _, end := range ends {
			end()
		}
	}
	p.keep(off)
	return off
}

// ingress runs a program on what a device receives.
func ingress(ifindex int, code asm.Instructions) (end func(), err error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: code})
	if err != nil {
		return nil, err
	}
	defer prog.Close()
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: ebpf.AttachTCXIngress})
	return func() { _ = l.Close() }, err
}

// behind is a line of a services file for backends in VLANs, each as "ID HOST" and perhaps a MAC address.
func behind(hosts ...string) string {
	out := "backends:"
	for _, h := range hosts {
		var id, i int
		var mac string
		_, _ = fmt.Sscan(h, &id, &i, &mac)
		for family := range families {
			out += fmt.Sprintf("\n  - {address: %q, vlan: {device: %s, id: %d, mac: %q}}", inVLAN(family, i), trunkDevice, id, mac)
		}
	}
	return out
}

// rowsInState waits until all rows of a service have a state.
func (n *node) rowsInState(t *testing.T, service, state string, rows int, within time.Duration) {
	t.Helper()
	eventually(t, within, fmt.Sprintf("all of %s are %s", service, state), func() error {
		got, err := tryList[[]backendRow](n, "backend", "list", service)
		if err != nil {
			return err
		}
		for _, r := range got {
			if r.State != state {
				return fmt.Errorf("%s is %s", r.Address, r.State)
			}
		}
		if len(got) != rows {
			return fmt.Errorf("%d rows, want %d", len(got), rows)
		}
		return nil
	})
}

// statusSays waits until the status has a text in it, or has it no more.
func (n *node) statusSays(t *testing.T, text string, says bool) {
	t.Helper()
	eventually(t, 15*time.Second, fmt.Sprintf("the status says %q: %v", text, says), func() error {
		if s := n.mustTclb("status"); strings.Contains(s, text) != says {
			return fmt.Errorf("status: %s", s)
		}
		return nil
	})
}

// mac is a device's address.
func (p *place) mac(device string) (mac string) {
	p.t.Helper()
	p.do(func() error {
		l, err := netlinksafe.LinkByName(device)
		if err == nil {
			mac = l.Attrs().HardwareAddr.String()
		}
		return err
	})
	return mac
}
