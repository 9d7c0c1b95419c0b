package datapath

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// What a packet carries besides addresses and ports is its own: options, extension headers, the
// last of its hops (a veth is none, another node is one), DSCP and ECN.
func TestWhatIsNotTranslatedIsKept(t *testing.T) {
	for _, r := range programRoads {
		hops := uint8(1)
		if strings.Contains(r.name, "another node") {
			hops = 2
		}
		for family, name := range families {
			t.Run(r.name+"/"+name, func(t *testing.T) {
				w := newWorld(t, 3)
				for i, tos := range []uint8{0, 1, 2, 3, 0xb8, 0xff} {
					for _, proto := range []lb.Protocol{lb.TCP, lb.UDP} {
						k := r.open(w, family, proto, uint16(40000+i), func(s *packet.Spec) {
							dressed(s)
							s.TTL, s.TOS = hops, tos
						})
						w.kept(k.request)
						w.kept(k.response)
					}
				}
			})
		}
	}
}

func (w *world) kept(x passage) {
	w.t.Helper()
	in, out := w.decode(x.sent), w.decode(x.seen)
	toNode := out.DstMAC.String() == w.abroad.tunnel.mac.String()
	if toNode && out.TTL != in.TTL-1 || !toNode && out.TTL != in.TTL || out.TOS != in.TOS || !bytes.Equal(out.Options, in.Options) || !reflect.DeepEqual(out.Extensions, in.Extensions) ||
		out.Seq != in.Seq || out.Ack != in.Ack || out.Flags != in.Flags || !bytes.Equal(out.Payload, in.Payload) {
		w.t.Errorf("%+v became %+v", in, out)
	}
}

// frame is a packet of the world's client, long enough that nothing is padded.
func (w *world) frame(dst netip.Addr, family int, proto lb.Protocol) []byte {
	w.t.Helper()
	out, err := packet.Spec{
		Src: netip.AddrPortFrom(w.client.addr[family], 40000), Dst: netip.AddrPortFrom(dst, servicePort),
		Protocol: proto, Flags: packet.SYN, Seq: 1, Payload: bytes.Repeat([]byte("x"), 64),
	}.Build()
	w.check(err)
	return out
}

// passes asserts that a frame leaves a program as it came.
func (w *world) passes(l leg, name string, frame []byte) {
	w.t.Helper()
	if verdict, out := w.run(l.program, l.on.ifindex, frame); verdict != next || !bytes.Equal(out, frame) {
		w.t.Errorf("%s, %s: verdict %d, changed %v", l.program, name, verdict, !bytes.Equal(out, frame))
	}
}

func set(at int, v ...byte) func([]byte) []byte {
	return func(b []byte) []byte {
		copy(b[at:], v)
		return b
	}
}

func cut(to int) func([]byte) []byte { return func(b []byte) []byte { return b[:to] } }

// resized makes a packet shorter and says so in its IP header; more is what follows it in the frame.
func resized(family, size, more int) func([]byte) []byte {
	return func(b []byte) []byte {
		b = b[:14+[2]int{20, 40}[family]+size]
		if family == 0 {
			binary.BigEndian.PutUint16(b[16:], uint16(20+size))
		} else {
			binary.BigEndian.PutUint16(b[18:], uint16(size))
		}
		return append(b, make([]byte, more)...)
	}
}

// firstPart makes an IPv4 packet the first fragment of one.
func firstPart(b []byte) []byte {
	b[20] |= 0x20
	return b
}

const (
	l4v4 = 14 + 20
	l4v6 = 14 + 40
)

// malformed are the ways in which headers contradict each other, by family. An edit applies to both
// protocols unless it says which. Frames cut in the IP header, which have no addresses and so pass,
// cannot be run since Linux 6.18.
var malformed = [2]map[string]struct {
	proto lb.Protocol
	edit  func([]byte) []byte
}{
	{
		"version":                          {edit: set(14, 0x55)},
		"IHL of 4":                         {edit: set(14, 0x44)},
		"IHL of 4, a UDP header behind it": {lb.UDP, func(b []byte) []byte { return set(14, 0x44)(set(l4v4, 0, 20)(b)) }},
		"IHL beyond the packet":            {edit: func(b []byte) []byte { return set(14, 0x4f)(resized(0, 24, 64)(b)) }},
		"total length 0":                   {edit: set(16, 0, 0)},
		"total length within the header":   {edit: set(16, 0, 19)},
		"total length beyond the frame":    {edit: set(16, 1, 0)},
		"cut in the transport header":      {edit: cut(l4v4 + 7)},
		"no transport header":              {edit: resized(0, 0, 0)},
		"short transport header":           {edit: resized(0, 7, 0)},
		"short transport header, trailer":  {edit: resized(0, 7, 40)},
		"short transport header, fragment": {edit: func(b []byte) []byte { return firstPart(resized(0, 7, 0)(b)) }},
		"data offset of 4":                 {lb.TCP, set(l4v4+12, 0x40)},
		"data offset beyond the packet":    {lb.TCP, func(b []byte) []byte { return set(l4v4+12, 0xf0)(resized(0, 24, 64)(b)) }},
		"UDP length of 7":                  {lb.UDP, set(l4v4+4, 0, 7)},
		"UDP length of 0":                  {lb.UDP, set(l4v4+4, 0, 0)},
		"UDP length beyond the packet":     {lb.UDP, func(b []byte) []byte { return resized(0, 71, 64)(b) }},
	},
	{
		"version":                         {edit: set(14, 0x40)},
		"payload length 0":                {edit: set(18, 0, 0)},
		"payload length beyond the frame": {edit: set(18, 1, 0)},
		"cut in the transport header":     {edit: cut(l4v6 + 7)},
		"short transport header":          {edit: resized(1, 7, 0)},
		"short transport header, trailer": {edit: resized(1, 7, 40)},
		"data offset of 4":                {lb.TCP, set(l4v6+12, 0x40)},
		"data offset beyond the packet":   {lb.TCP, func(b []byte) []byte { return set(l4v6+12, 0xf0)(resized(1, 24, 64)(b)) }},
		"UDP length of 7":                 {lb.UDP, set(l4v6+4, 0, 7)},
		"UDP length beyond the packet":    {lb.UDP, func(b []byte) []byte { return resized(1, 71, 64)(b) }},
		"cut in an extension header":      {edit: func(b []byte) []byte { return set(20, packet.DestinationOptions)(resized(1, 4, 0)(b)) }},
		"extension header too long":       {edit: func(b []byte) []byte { return set(l4v6, 6, 30)(set(20, packet.HopByHop)(b)) }},
	},
}

func TestMalformedPacketsToAVIPEnd(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		own, host := leg{datapath.FromContainer, w.client}, leg{datapath.FromHost, w.host}
		for name, m := range malformed[family] {
			if m.proto != 0 && m.proto != proto {
				continue
			}
			for _, l := range []leg{own, host} {
				before := w.drops("malformed")
				verdict, _ := w.run(l.program, l.on.ifindex, m.edit(w.frame(vips[family], family, proto)))
				if n := w.drops("malformed") - before; verdict != drop || n != 1 {
					t.Errorf("%s, %s: verdict %d, counted %d times", l.program, name, verdict, n)
				}
			}
			elsewhere := m.edit(w.frame(outside().addr[family], family, proto))
			w.passes(own, name, elsewhere)
			w.passes(leg{datapath.ToContainer, w.client}, name, elsewhere)
		}
		if n := len(w.pairs()); n != 0 {
			t.Errorf("%d flows of malformed packets", n)
		}
	})
}

// A test run cannot set a tag that the device took off (__sk_buff.vlan_present); a tag in the frame it can.
// SCTP and other protocols to a VIP end on the node: their way leads to tclb0.
func TestWhatIsNotOursPassesUnchanged(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		own, way := leg{datapath.FromContainer, w.client}, leg{datapath.ToContainer, w.client}
		vip := w.frame(vips[family], family, proto)
		at := [2]int{23, 20}[family] // the IP header's protocol
		for name, frame := range map[string][]byte{
			"to elsewhere": w.frame(outside().addr[family], family, proto),
			"VLAN":         tagged(vip, 0x81, 0x00),
			"QinQ":         tagged(vip, 0x88, 0xa8),
			"MPLS":         set(12, 0x88, 0x47)(bytes.Clone(vip)),
			"LLDP":         set(12, 0x88, 0xcc)(bytes.Clone(vip)),
			"ARP":          set(12, 0x08, 0x06)(bytes.Clone(vip)),
			"802.3":        set(12, 0, 86)(bytes.Clone(vip)),
		} {
			w.passes(own, name, frame)
			w.passes(way, name, frame)
		}
		for _, other := range []byte{2, 4, 41, 47, 50, 51, 89, 103, 132, 136, 253} {
			frame := set(at, other)(bytes.Clone(vip))
			w.passes(own, "protocol", frame)
			w.passes(way, "protocol", frame)
			before := w.drops("unroutable")
			if verdict, _ := w.run(datapath.FromHost, w.host.ifindex, frame); verdict != drop || w.drops("unroutable") != before+1 {
				t.Errorf("from_host, protocol %d: verdict %d, or not counted", other, verdict)
			}
		}
	})
}

// tagged puts a tag of four bytes into a frame.
func tagged(frame []byte, tpid ...byte) []byte {
	out := append(bytes.Clone(frame[:12]), tpid...)
	return append(append(out, 0, 5), frame[12:]...)
}

// A container asks for its neighbours whatever their addresses are.
func TestNeighbourDiscoveryIsUntouched(t *testing.T) {
	w := newWorld(t, 1)
	own, way := leg{datapath.FromContainer, w.client}, leg{datapath.ToContainer, w.client}
	client := netip.AddrPortFrom(w.client.addr[1], 0)
	for _, to := range []netip.Addr{netip.MustParseAddr("ff02::1:ff00:10"), w.containers[0].addr[1], vips[1]} {
		for kind := uint8(133); kind <= 137; kind++ {
			target := vips[1].As16()
			s := packet.Spec{
				Src: client, Dst: netip.AddrPortFrom(to, 0), TTL: 255,
				ICMP: &packet.ICMP{Type: kind}, Payload: append(target[:], 1, 1, 2, 0, 0, 0, 1, 1),
			}
			w.untouched(own, s)
			w.untouched(way, s)
		}
	}
	who := append(bytes.Repeat([]byte{0xff}, 6), 2, 0, 0, 0, 1, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 1, 1)
	who = append(append(append(who, w.client.addr[0].AsSlice()...), make([]byte, 6)...), vips[0].AsSlice()...)
	w.passes(own, "ARP", who)
	w.passes(way, "ARP", who)
	w.noDrops()
}

// A packet with routers still to visit is not for the address in its header, however that is a VIP.
func TestIPv6ExtensionHeaders(t *testing.T) {
	for _, proto := range []lb.Protocol{lb.TCP, lb.UDP} {
		w := newWorld(t, 1)
		own := leg{datapath.FromContainer, w.client}
		s := packet.Spec{
			Src: netip.AddrPortFrom(w.client.addr[1], 40000), Dst: netip.AddrPortFrom(vips[1], servicePort), Protocol: proto, Flags: packet.SYN,
		}
		pad := packet.Extension{Protocol: packet.DestinationOptions, Data: []byte{1, 4}}
		for n := 0; n <= 6; n++ {
			s.Extensions = append([]packet.Extension(nil), make([]packet.Extension, n)...)
			for i := range s.Extensions {
				s.Extensions[i] = pad
			}
			x := w.carry(own, s)
			if got := w.decode(x.seen); x.verdict != redirect || got.Dst.Port() != targetPort || len(got.Extensions) != n {
				t.Errorf("%d extension headers: verdict %d for %v", n, x.verdict, got)
			}
		}
		if n := len(w.pairs()); n != 1 {
			t.Errorf("%d flows, want 1", n)
		}
		s.Extensions = append(s.Extensions, pad, pad)
		w.untouched(own, s) // more than are looked at: none of ours
		s.Extensions = []packet.Extension{{Protocol: packet.Routing, Data: append([]byte{4, 1}, make([]byte, 20)...)}}
		frame, err := s.Build()
		w.check(err)
		w.passes(own, "segments left", frame)
		before := w.drops("unroutable")
		if verdict, _ := w.run(datapath.FromHost, w.host.ifindex, frame); verdict != drop || w.drops("unroutable") != before+1 {
			t.Errorf("segments left: verdict %d at tclb0, or not counted", verdict)
		}
		s.Extensions[0].Data[1] = 0
		if x := w.carry(own, s); x.verdict != redirect {
			t.Errorf("no segments left: verdict %d", x.verdict)
		}
	}
}
