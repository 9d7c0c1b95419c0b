package datapath

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// abroad is what a world has beyond its own containers: other nodes, and clients outside.
type abroad struct {
	tunnel   container // stands for the VXLAN device; its MAC is that of node 1's
	uplink   container // its MAC is that of the neighbour outside
	mac      net.HardwareAddr
	trunk    container        // its MAC is that of the neighbour in a VLAN
	trunkMAC net.HardwareAddr // of the device
	settings datapath.TunnelSettings
	sources  map[string]*ebpf.Program
}

const (
	vni      = 4242
	otherVNI = 4243
	nodeMTU  = 1450
)

// underlays are the addresses of nodes outside the tunnel: that of node n ends in n, ours in 100.
var underlays = [2]netip.Prefix{netip.MustParsePrefix("10.77.0.0/24"), netip.MustParsePrefix("fd77::/64")}

func vtep(family int, node uint16) netip.Addr {
	b := underlays[family].Addr().AsSlice()
	b[len(b)-1] = byte(node)
	a, _ := netip.AddrFromSlice(b)
	return a
}

func nodeMAC(node uint16) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 2, byte(node)} }

// goAbroad gives the world an uplink, a tunnel and two other nodes, once.
func (w *world) goAbroad() {
	w.t.Helper()
	if w.abroad.tunnel.ifindex != 0 {
		return
	}
	w.abroad.tunnel, w.abroad.uplink = w.device(3), w.device(4)
	w.abroad.tunnel.mac = nodeMAC(1)
	link, err := netlink.LinkByIndex(int(w.abroad.uplink.ifindex))
	w.check(err)
	w.abroad.mac = link.Attrs().HardwareAddr
	w.check(w.d.PutUplink(w.abroad.uplink.ifindex, [6]byte(w.abroad.mac)))
	w.addTrunk()
	w.abroad.settings = datapath.TunnelSettings{
		Ifindex: w.abroad.tunnel.ifindex, VNI: vni, VTEP: [2]netip.Addr{vtep(0, 100), vtep(1, 100)},
		SNAT: snats, SNATMin: 61000, SNATMax: 65535,
	}
	w.abroad.sources = map[string]*ebpf.Program{}
	w.settings(datapath.Settings{AntiSpoof: true})
	w.node(1, 0, datapath.SNATNever)
	w.node(2, 0, datapath.SNATNever)
}

// node makes a node known, by its address of a family.
func (w *world) node(id uint16, underlay int, snat datapath.SNATMode) {
	w.t.Helper()
	w.check(w.d.PutNode(id, datapath.Node{VTEP: vtep(underlay, id), MAC: [6]byte(nodeMAC(id)), MTU: nodeMTU, SNAT: snat}))
}

// snats are the addresses of this node inside the tunnel.
var snats = [2]netip.Addr{netip.MustParseAddr("198.51.100.99"), netip.MustParseAddr("2001:db8::99")}

// device makes a device that is no container's.
func (w *world) device(n byte) container {
	w.t.Helper()
	c := w.addContainer(n)
	for _, a := range c.addr {
		w.check(w.d.DeleteEndpoint(datapath.EndpointKey{Address: a, Ifindex: c.ifindex}))
	}
	return c
}

// elsewhere is a container of another node.
func elsewhere(n byte) container {
	v6 := netip.MustParseAddr("2001:db8:5::").As16()
	v6[15] = n
	return container{addr: [2]netip.Addr{netip.AddrFrom4([4]byte{198, 18, 0, n}), netip.AddrFrom16(v6)}}
}

// away puts the world's service onto a container of a node.
func (w *world) away(node uint16, c container) {
	w.t.Helper()
	w.goAbroad()
	w.service(serviceID, vips, []container{c})
	w.change(c, func(b *datapath.Backend) { b.Zone = node })
}

// comesFrom names from_overlay on packets of a node, which are encapsulated for a network.
func comesFrom(node uint16) string { return tunnelled(vtep(0, node), vni) }

func tunnelled(source netip.Addr, network uint32) string {
	return fmt.Sprintf("%s %d %s", datapath.FromOverlay, network, source)
}

// fromNode is a leg by the tunnel.
func (w *world) fromNode(node uint16) leg { return leg{comesFrom(node), w.abroad.tunnel} }

// program returns a program by its name, which may be one of comesFrom.
func (w *world) program(name string) *ebpf.Program {
	w.t.Helper()
	var network uint32
	var from string
	if p := w.behindTag(name); p != nil {
		return p
	}
	if n, _ := fmt.Sscanf(name, datapath.FromOverlay+" %d %s", &network, &from); n != 2 {
		return w.d.Program(name)
	}
	if w.abroad.sources[name] == nil {
		source := netip.MustParseAddr(from)
		w.abroad.sources[name] = w.decapsulator(source.Is6(), network, source.AsSlice())
	}
	return w.abroad.sources[name]
}

// The layout of struct bpf_tunnel_key.
const (
	keyID    = 0
	keyTTL   = 21
	keyLocal = 28
	keySize  = 48
	keyFull  = 44
)

// decapsulator returns a program that gives a packet the outer source that a VXLAN device would, and goes on
// with from_overlay. A test run cannot give it one; what is set for sending is read back like what was
// received, its local end being the sender.
func (w *world) decapsulator(v6 bool, network uint32, source []byte) *ebpf.Program {
	w.t.Helper()
	programs, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	w.check(err)
	w.t.Cleanup(func() { programs.Close() })
	w.check(programs.Put(uint32(0), w.d.Program(datapath.FromOverlay)))
	code := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	for at := int16(0); at < keySize; at += 4 {
		code = append(code, asm.StoreImm(asm.RFP, at-keySize, 0, asm.Word))
	}
	code = append(code,
		asm.StoreImm(asm.RFP, keyID-keySize, int64(network), asm.Word),
		asm.StoreImm(asm.RFP, keyTTL-keySize, 64, asm.Byte))
	for i := range len(source) / 4 {
		word := binary.NativeEndian.Uint32(source[4*i:]) // IPv6 in network order, IPv4 in the machine's
		if !v6 {
			word = binary.BigEndian.Uint32(source)
		}
		code = append(code, asm.Mov.Imm(asm.R2, int32(word)), asm.StoreMem(asm.RFP, int16(keyLocal-keySize+4*i), asm.R2, asm.Word))
	}
	flags := int32(0)
	if v6 {
		flags = 1 // BPF_F_TUNINFO_IPV6
	}
	code = append(code,
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -keySize),
		asm.Mov.Imm(asm.R3, keyFull), asm.Mov.Imm(asm.R4, flags), asm.FnSkbSetTunnelKey.Call(),
		asm.Mov.Reg(asm.R1, asm.R6), asm.LoadMapPtr(asm.R2, programs.FD()), asm.Mov.Imm(asm.R3, 0), asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 99), asm.Return())
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "decapsulator", Type: ebpf.SchedCLS, License: "GPL", Instructions: code})
	w.check(err)
	w.t.Cleanup(func() { p.Close() })
	return p
}

// meets returns the program that a packet meets where another program has sent it.
func (w *world) meets(at exit) (leg, bool) {
	on := container{ifindex: at.ifindex}
	switch {
	case at.ifindex == w.host.ifindex || at.ifindex == w.abroad.tunnel.ifindex || at.ifindex == w.abroad.trunk.ifindex:
		return leg{}, false // tclb0 has no program at its ingress, tunnel and trunk none at their egress
	case at.ifindex == w.abroad.uplink.ifindex && at.into:
		return leg{datapath.ToUplink, on}, true
	case at.ifindex == w.abroad.uplink.ifindex:
		return leg{datapath.FromUplink, on}, true
	case at.into:
		return leg{datapath.ToContainer, on}, true
	}
	return leg{datapath.FromContainer, on}, true
}

// The roads that lead out of the node, or into it.
var roadsAbroad = []road{
	{"container to another node", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.away(1, elsewhere(1))
		return w.talk(netip.AddrPortFrom(w.client.addr[family], port), netip.AddrPortFrom(vips[family], servicePort), proto,
			leg{datapath.FromContainer, w.client}, func(packet.Spec) leg { return w.fromNode(1) }, dress)
	}},
	{"container to another node under this one's address", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.away(1, elsewhere(1))
		w.node(1, 0, datapath.SNATAlways)
		return w.talk(netip.AddrPortFrom(w.client.addr[family], port), netip.AddrPortFrom(vips[family], servicePort), proto,
			leg{datapath.FromContainer, w.client}, func(packet.Spec) leg { return w.fromNode(1) }, dress)
	}},
	{"host to another node", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.away(1, elsewhere(1))
		return w.talk(netip.AddrPortFrom(outside().addr[family], port), netip.AddrPortFrom(vips[family], servicePort), proto,
			leg{datapath.FromHost, w.host}, func(packet.Spec) leg { return w.fromNode(1) }, dress)
	}},
	{"another node to container", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.goAbroad()
		return w.talk(netip.AddrPortFrom(elsewhere(1).addr[family], port), netip.AddrPortFrom(w.containers[0].addr[family], targetPort), proto,
			w.fromNode(1), w.backendLeg, dress)
	}},
	{"another node to the host", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.goAbroad()
		return w.talk(netip.AddrPortFrom(elsewhere(1).addr[family], port), netip.AddrPortFrom(outside().addr[family], targetPort), proto,
			w.fromNode(1), func(packet.Spec) leg { return leg{datapath.FromHost, w.host} }, dress)
	}},
	{"outside to container", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.goAbroad()
		return w.talk(netip.AddrPortFrom(beyond[family], port), netip.AddrPortFrom(vips[family], servicePort), proto,
			w.fromOutside(), w.backendLeg, dress)
	}},
	{"outside to another node", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.away(1, elsewhere(1))
		return w.talk(netip.AddrPortFrom(beyond[family], port), netip.AddrPortFrom(vips[family], servicePort), proto,
			w.fromOutside(), func(packet.Spec) leg { return w.fromNode(1) }, dress)
	}},
	{"outside to an address without programs", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.goAbroad()
		w.service(serviceID, vips, []container{outside()})
		return w.talk(netip.AddrPortFrom(beyond[family], port), netip.AddrPortFrom(vips[family], servicePort), proto,
			w.fromOutside(), func(packet.Spec) leg { return leg{datapath.ToUplink, w.abroad.uplink} }, dress)
	}},
	{"container to a VLAN", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.tagged(100, elsewhere(1), false)
		return w.talk(netip.AddrPortFrom(w.client.addr[family], port), netip.AddrPortFrom(vips[family], servicePort), proto,
			leg{datapath.FromContainer, w.client}, func(packet.Spec) leg { return w.fromVLAN(100) }, dress)
	}},
	{"container to a VLAN under this node's address", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.tagged(100, elsewhere(1), true)
		return w.talk(netip.AddrPortFrom(w.client.addr[family], port), netip.AddrPortFrom(vips[family], servicePort), proto,
			leg{datapath.FromContainer, w.client}, func(packet.Spec) leg { return w.fromVLAN(100) }, dress)
	}},
	{"host to a VLAN", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.tagged(100, elsewhere(1), false)
		return w.talk(netip.AddrPortFrom(outside().addr[family], port), netip.AddrPortFrom(vips[family], servicePort), proto,
			leg{datapath.FromHost, w.host}, func(packet.Spec) leg { return w.fromVLAN(100) }, dress)
	}},
	{"outside to a VLAN", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.tagged(100, elsewhere(1), true)
		return w.talk(netip.AddrPortFrom(beyond[family], port), netip.AddrPortFrom(vips[family], servicePort), proto,
			w.fromOutside(), func(packet.Spec) leg { return w.fromVLAN(100) }, dress)
	}},
}

// beyond is a client outside.
var beyond = [2]netip.Addr{netip.MustParseAddr("203.0.113.200"), netip.MustParseAddr("2001:db8:99::200")}

// fromOutside is a leg by the uplink.
func (w *world) fromOutside() leg { return leg{datapath.FromUplink, w.abroad.uplink} }

// The roads abroad in short, for a client that is a backend as well: what is released to it meets to_container.
func TestFragmentsWaitAbroad(t *testing.T) {
	w := newWorld(t, 3)
	w.goAbroad()
	for family, name := range families {
		w.check(w.d.PutFrontends(map[lb.Frontend]datapath.Frontend{{VIP: elsewhere(1).addr[family]}: {Kind: datapath.KindBackend}}))
		for _, r := range roadsAbroad {
			w.inside(t, r.name+"/"+name, func(w *world) {
				f := r.open(w, family, lb.UDP, 40000, plain)
				k := w.tap()
				for _, way := range []passage{f.request, f.response} {
					k.assertWhole(way, k.deliver(way, k.pieces(way.sent, pieceSize), []int{1, 0, 2}), r.name)
				}
			})
			w.flush()
			w.service(serviceID, vips, w.containers)
			w.node(1, 0, datapath.SNATNever)
		}
	}
	w.noDrops()
}
