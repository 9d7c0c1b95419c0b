package datapath

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

const (
	dot1q  = 0x8100
	dot1ad = 0x88a8

	vlanMTU = 1500
)

// zoneOf is the zone that the world gives the VLAN with a tag.
func zoneOf(id uint16) uint16 { return datapath.VLANZones + id }

// sources are this node's own addresses in VLANs, in the subnets of elsewhere.
var sources = [2]netip.Addr{netip.MustParseAddr("198.18.0.200"), netip.MustParseAddr("2001:db8:5::200")}

// addTrunk gives the world a device that carries VLANs.
func (w *world) addTrunk() {
	w.t.Helper()
	w.abroad.trunk = w.device(5)
	link, err := netlink.LinkByIndex(int(w.abroad.trunk.ifindex))
	w.check(err)
	w.abroad.trunkMAC = link.Attrs().HardwareAddr
}

// vlan makes a VLAN known, with a backend whose MAC address is the trunk's neighbour's.
func (w *world) vlan(id uint16, c container) {
	w.t.Helper()
	w.goAbroad()
	w.check(w.d.PutVLAN(zoneOf(id), datapath.VLAN{Ifindex: w.abroad.trunk.ifindex, ID: id, MAC: [6]byte(w.abroad.trunkMAC), MTU: vlanMTU}))
	for _, a := range c.addr {
		w.check(w.d.PutNeighbour(datapath.NeighbourKey{Zone: zoneOf(id), Address: a}, datapath.Neighbour{MAC: [6]byte(w.abroad.trunk.mac)}))
	}
}

// subnetOf is what has such an address.
func subnetOf(family int, of [2]netip.Addr) netip.Prefix {
	return netip.PrefixFrom(of[family], []int{24, 64}[family]).Masked()
}

// sourcesIn says whether clients go to a VLAN under this node's address.
func (w *world) sourcesIn(id uint16, translated bool) {
	w.t.Helper()
	for family, a := range sources {
		k := datapath.SourceKey{Zone: zoneOf(id), Prefix: subnetOf(family, sources)}
		if translated {
			w.check(w.d.PutSource(k, a))
		} else {
			w.check(w.d.DeleteSource(k))
		}
	}
}

// tagged puts the world's service onto a backend in a VLAN.
func (w *world) tagged(id uint16, c container, translated bool) {
	w.t.Helper()
	w.vlan(id, c)
	w.sourcesIn(id, translated)
	w.service(serviceID, vips, []container{c})
	w.change(c, func(b *datapath.Backend) { b.Zone = zoneOf(id) })
}

// withTag names from_trunk on packets that a device has taken a tag off.
func withTag(protocol int, tag uint16) string {
	return fmt.Sprintf("%s %d %d", datapath.FromTrunk, protocol, tag)
}

// fromVLAN is a leg from a VLAN.
func (w *world) fromVLAN(id uint16) leg { return leg{withTag(dot1q, id), w.abroad.trunk} }

// toDevice addresses a packet to the device of a program that looks whom frames are for.
func (w *world) toDevice(s *packet.Spec, program string) {
	switch {
	case program == datapath.FromUplink:
		s.DstMAC = w.abroad.mac
	case strings.HasPrefix(program, datapath.FromTrunk):
		s.DstMAC = w.abroad.trunkMAC
	}
}

// behindTag returns the program of a name of withTag, or nil: one that puts the tag beside the frame, where a device
// does, which a test run cannot, and goes on with from_trunk.
func (w *world) behindTag(name string) *ebpf.Program {
	w.t.Helper()
	var protocol, tag int
	if n, _ := fmt.Sscanf(name, datapath.FromTrunk+" %d %d", &protocol, &tag); n != 2 {
		return nil
	}
	if p := w.abroad.sources[name]; p != nil {
		return p
	}
	programs, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	w.check(err)
	w.t.Cleanup(func() { programs.Close() })
	w.check(programs.Put(uint32(0), w.d.Program(datapath.FromTrunk)))
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "behind_tag", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.Mov.Imm(asm.R2, int32(protocol>>8|protocol&0xff<<8)), asm.Mov.Imm(asm.R3, int32(tag)), asm.FnSkbVlanPush.Call(),
		asm.Mov.Reg(asm.R1, asm.R6), asm.LoadMapPtr(asm.R2, programs.FD()), asm.Mov.Imm(asm.R3, 0), asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 99), asm.Return(),
	}})
	w.check(err)
	w.t.Cleanup(func() { p.Close() })
	w.abroad.sources[name] = p
	return p
}
