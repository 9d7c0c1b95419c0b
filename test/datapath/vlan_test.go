package datapath

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// Where this node has no address in the backend's subnet the client keeps its own.
func TestABackendInAVLAN(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.tagged(100, elsewhere(1), false)
		client := netip.AddrPortFrom(w.client.addr[family], 40000)
		s := ask(client, netip.AddrPortFrom(vips[family], servicePort), proto)
		verdict, out := w.fromContainer(w.client, s)
		target := netip.AddrPortFrom(elsewhere(1).addr[family], targetPort)
		if verdict != redirect || out.Dst != target || out.Src != client || out.TTL != 64 ||
			out.DstMAC.String() != w.abroad.trunk.mac.String() || out.SrcMAC.String() != w.abroad.trunkMAC.String() {
			t.Fatalf("verdict %d for %v", verdict, out)
		}
		if p := w.pairs()[0]; len(w.pairs()) != 1 || p.BackendZone != zoneOf(100) || p.Zone != 0 {
			t.Errorf("pair %+v", p)
		}
		w.edit(w.pairs()[0].Index, func(p *rawPair) {
			if h := p.Half[0]; h.Deliver != uint8(bpf.MapsDeliverDELIVER_VLAN) || h.Ifindex != uint32(zoneOf(100)) {
				t.Errorf("requests leave by way %d, zone %d", h.Deliver, h.Ifindex)
			}
		})
		verdict, back := w.send(withTag(dot1q, 100), w.abroad.trunk, answerTo(out))
		if verdict != redirect || back.Src != s.Dst || back.Dst != client || back.DstMAC.String() != w.client.mac.String() || back.TTL != 64 {
			t.Fatalf("verdict %d for %v", verdict, back)
		}
		w.fromContainer(w.client, more(s))
		if p := w.pairs()[0]; p.State != datapath.FlowEstablished || p.Packets != [2]uint64{2, 1} || !p.Active {
			t.Errorf("pair %+v", p)
		}
		// The neighbour is asked for with each packet.
		other := net.HardwareAddr{2, 0, 0, 0, 7, 7}
		w.check(w.d.PutNeighbour(datapath.NeighbourKey{Zone: zoneOf(100), Address: target.Addr()}, datapath.Neighbour{MAC: [6]byte(other)}))
		if verdict, out := w.fromContainer(w.client, more(s)); verdict != redirect || out.DstMAC.String() != other.String() || out.Dst != target {
			t.Errorf("verdict %d for %v, want it for %v", verdict, out, other)
		}
	})
}

func TestClientsInAVLANHaveThisNodesAddress(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.tagged(100, elsewhere(1), true)
		vip := netip.AddrPortFrom(vips[family], servicePort)
		for _, from := range []struct {
			program string
			on      container
			client  netip.Addr
			keeps   netip.Addr
		}{
			{datapath.FromContainer, w.client, w.client.addr[family], w.client.addr[family]},
			{datapath.FromHost, w.host, outside().addr[family], vips[family]},
			{datapath.FromUplink, w.abroad.uplink, beyond[family], beyond[family]},
		} {
			for _, translated := range []bool{true, false} {
				w.sourcesIn(100, translated)
				client := netip.AddrPortFrom(from.client, 40000)
				if !translated {
					client = netip.AddrPortFrom(from.client, 40001)
				}
				verdict, out := w.send(from.program, from.on, ask(client, vip, proto))
				want := from.keeps
				if translated {
					want = sources[family]
				}
				if verdict != redirect || out.Src.Addr() != want || translated != (out.Src.Port() >= 61000) || !translated && out.Src.Port() != client.Port() {
					t.Errorf("%s: verdict %d for %v, want it from %s", from.program, verdict, out, want)
				}
				if verdict, back := w.send(withTag(dot1q, 100), w.abroad.trunk, answerTo(out)); verdict != redirect || back.Dst != client || back.Src != vip {
					t.Errorf("%s: verdict %d for %v", from.program, verdict, back)
				}
			}
		}
		// An address in another subnet of the backend's VLAN, and in the backend's subnet of another VLAN, are none.
		w.check(w.d.PutSource(datapath.SourceKey{Zone: zoneOf(200), Prefix: subnetOf(family, sources)}, sources[family]))
		w.check(w.d.PutSource(datapath.SourceKey{Zone: zoneOf(100), Prefix: subnetOf(family, beyond)}, beyond[family]))
		client := netip.AddrPortFrom(w.client.addr[family], 40002)
		if verdict, out := w.fromContainer(w.client, ask(client, vip, proto)); verdict != redirect || out.Src != client {
			t.Errorf("verdict %d for %v", verdict, out)
		}
	})
}

// The same address in two VLANs, on a node and here is four backends.
func TestZonesKeepEqualAddressesApart(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.vlan(200, elsewhere(1))
		w.tagged(100, elsewhere(1), true)
		s := ask(netip.AddrPortFrom(w.client.addr[family], 40000), netip.AddrPortFrom(vips[family], servicePort), proto)
		_, out := w.fromContainer(w.client, s)
		answer := answerTo(out)
		w.untouched(w.fromVLAN(200), answer)
		if x := w.carry(w.fromNode(1), answer); w.decode(x.seen).Src == s.Dst {
			t.Error("an answer from node 1 became the VIP's")
		}
		w.untouched(leg{datapath.FromTrunk, w.abroad.trunk}, answer)
		w.change(elsewhere(1), func(b *datapath.Backend) { b.Zone, b.Gen = zoneOf(200), 2 })
		s.Src = netip.AddrPortFrom(s.Src.Addr(), 40001)
		_, out = w.fromContainer(w.client, s)
		if x := w.carry(w.fromVLAN(200), answerTo(out)); x.verdict != redirect || w.decode(x.seen).Dst != s.Src {
			t.Errorf("verdict %d for %v", x.verdict, w.decode(x.seen))
		}
	})
}

// What has another tag, another kind of tag, or none, and what is of no flow or for another host, is somebody else's.
func TestOtherTaggedFramesAreUntouched(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.tagged(100, elsewhere(1), false)
		_, out := w.fromContainer(w.client, ask(netip.AddrPortFrom(w.client.addr[family], 40000), netip.AddrPortFrom(vips[family], servicePort), proto))
		answer := answerTo(out)
		for _, program := range []string{withTag(dot1q, 101), withTag(dot1ad, 100), datapath.FromTrunk} {
			w.untouched(leg{program, w.abroad.trunk}, answer)
		}
		for _, on := range []container{w.abroad.uplink, w.client} {
			w.untouched(leg{withTag(dot1q, 100), on}, answer)
		}
		stray := answer
		stray.Dst = netip.AddrPortFrom(answer.Dst.Addr(), 7)
		w.untouched(w.fromVLAN(100), stray)
		w.untouched(w.fromVLAN(100), ping(answer.Src.Addr(), answer.Dst.Addr(), family, 20))
		w.untouched(w.fromVLAN(100), ping(answer.Src.Addr(), vips[family], family, 20))
		flooded := answer
		flooded.DstMAC, flooded.SrcMAC = net.HardwareAddr{2, 0, 0, 0, 7, 7}, w.abroad.trunk.mac
		frame, err := flooded.Build()
		w.check(err)
		if verdict, seen := w.run(withTag(dot1q, 100), w.abroad.trunk.ifindex, frame); verdict != next || !bytes.Equal(seen, frame) {
			t.Errorf("a frame for somebody else: verdict %d", verdict)
		}
		if p := w.pairs()[0]; p.Packets[1] != 0 {
			t.Errorf("%d packets count as answers", p.Packets[1])
		}
		w.noDrops()
		const priority = 5 << 13
		if x := w.carry(leg{withTag(dot1q, priority|100), w.abroad.trunk}, answer); x.verdict != redirect {
			t.Errorf("with a priority: verdict %d", x.verdict)
		}
	})
}

// The programs beside from_trunk do not look at frames with a tag.
func TestUplinksLeaveTaggedFramesAlone(t *testing.T) {
	w := newWorld(t, 1)
	w.tagged(100, elsewhere(1), false)
	w.check(w.d.PutUplink(w.abroad.trunk.ifindex, [6]byte(w.abroad.trunkMAC)))
	w.announce(vips[0], datapath.Frontend{Announce: true})
	question := arp(1, w.abroad.trunk.mac, broadcast, elsewhere(1).addr[0], vips[0], noMAC)
	if verdict, _ := w.run(datapath.FromUplink, w.abroad.trunk.ifindex, question); verdict != redirect {
		t.Errorf("without a tag: verdict %d", verdict)
	}
	if verdict, out := w.run(withTag(dot1q, 100), w.abroad.trunk.ifindex, question); verdict != redirect || !bytes.Equal(out[6:12], w.abroad.trunkMAC) {
		t.Errorf("with a tag: verdict %d", verdict)
	}
}

func TestNothingGoesToAVLANThatIsNotThere(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.tagged(100, elsewhere(1), true)
		port := uint16(40000)
		dropped := func(what string) {
			t.Helper()
			port++
			before := w.drops("vlan")
			s := ask(netip.AddrPortFrom(w.client.addr[family], port), netip.AddrPortFrom(vips[family], servicePort), proto)
			if verdict, _ := w.fromContainer(w.client, s); verdict != drop || w.drops("vlan") != before+1 {
				t.Errorf("%s: verdict %d, counted %d times", what, verdict, w.drops("vlan")-before)
			}
		}
		k := datapath.NeighbourKey{Zone: zoneOf(100), Address: elsewhere(1).addr[family]}
		w.check(w.d.PutNeighbour(k, datapath.Neighbour{}))
		dropped("a neighbour that has not answered")
		w.check(w.d.DeleteNeighbour(k))
		dropped("no neighbour")
		w.vlan(100, elsewhere(1))
		w.check(w.d.DeleteVLAN(zoneOf(100)))
		dropped("no VLAN")
		if verdict, out := w.send(withTag(dot1q, 100), w.abroad.trunk, reply(ask(netip.AddrPortFrom(sources[family], 61000), netip.AddrPortFrom(k.Address, targetPort), proto))); verdict != next {
			t.Errorf("verdict %d for %v", verdict, out)
		}
	})
}

// A trunk may take less than clients send: they are told, and handshakes are fitted. One that takes as much changes nothing.
func TestWhatFitsIntoAVLAN(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.tagged(100, elsewhere(1), false)
		s := ask(netip.AddrPortFrom(w.client.addr[family], 40000), netip.AddrPortFrom(vips[family], servicePort), proto)
		l := leg{datapath.FromContainer, w.client}
		segment := func(mtu uint32, want uint16) {
			t.Helper()
			w.check(w.d.PutVLAN(zoneOf(100), datapath.VLAN{Ifindex: w.abroad.trunk.ifindex, ID: 100, MAC: [6]byte(w.abroad.trunkMAC), MTU: mtu}))
			if proto != lb.TCP {
				return
			}
			_, out := w.run(l.program, l.on.ifindex, w.withOptions(s, mssAt(0, 1460)))
			if got := binary.BigEndian.Uint16(out[14+20+20*family+20+2:]); got != want {
				t.Errorf("MTU %d: MSS %d, want %d", mtu, got, want)
			}
		}
		segment(vlanMTU, uint16(1460-20*family))
		_, out := w.fromContainer(w.client, s)
		w.carry(w.fromVLAN(100), answerTo(out))
		m := more(s)
		m.Flags = packet.ACK
		for _, mtu := range []uint32{vlanMTU, 1400} {
			segment(mtu, uint16(mtu)-40-20*uint16(family))
			if verdict, seen := w.run(l.program, l.on.ifindex, w.sized(l, m, int(mtu), true)); verdict != redirect || w.decode(seen).DstMAC.String() != w.abroad.trunk.mac.String() {
				t.Errorf("%d bytes: verdict %d", mtu, verdict)
			}
			w.tooBig(l, w.sized(l, m, int(mtu)+1, true), mtu)
			w.tooBig(l, w.sized(l, m, int(mtu)+1, false), mtu)
		}
	})
}

// What a removed backend still answers becomes a reset for its client, who would wait otherwise.
func TestARemovedBackendInAVLAN(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.tagged(100, elsewhere(1), true)
		s := ask(netip.AddrPortFrom(w.client.addr[family], 40000), netip.AddrPortFrom(vips[family], servicePort), proto)
		_, out := w.fromContainer(w.client, s)
		w.change(elsewhere(1), func(b *datapath.Backend) { b.Live = false })
		if proto == lb.UDP {
			w.dropped(w.fromVLAN(100), answerTo(out), "backend-gone")
			return
		}
		before := w.drops("backend-gone")
		verdict, got := w.send(withTag(dot1q, 100), w.abroad.trunk, answerTo(out))
		if verdict != redirect || got.Src != s.Dst || got.Dst != s.Src || got.Flags != packet.RST || got.Seq != backendISN || got.DstMAC.String() != w.client.mac.String() {
			t.Errorf("verdict %d for %v", verdict, got)
		}
		if n := w.drops("backend-gone") - before; n != 1 {
			t.Errorf("counted %d times", n)
		}
	})
}

// In host stack mode there is no way by the stack into a VLAN.
func TestVLANsInHostStackMode(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.tagged(100, elsewhere(1), true)
		w.settings(datapath.Settings{HostStack: true, AntiSpoof: true})
		s := ask(netip.AddrPortFrom(w.client.addr[family], 40000), netip.AddrPortFrom(vips[family], servicePort), proto)
		verdict, out := w.fromContainer(w.client, s)
		if verdict != redirect || out.DstMAC.String() != w.abroad.trunk.mac.String() {
			t.Fatalf("verdict %d for %v", verdict, out)
		}
		if verdict, back := w.send(withTag(dot1q, 100), w.abroad.trunk, answerTo(out)); verdict != redirect || back.Dst != s.Src {
			t.Errorf("verdict %d for %v", verdict, back)
		}
	})
}

// inMap returns what the map says of a backend in VLAN 100.
func (w *world) inMap(a netip.Addr) datapath.Neighbour {
	w.t.Helper()
	n, err := w.d.Neighbour(datapath.NeighbourKey{Zone: zoneOf(100), Address: a})
	w.check(err)
	return n
}

func TestNeighboursInAVLANAreLearned(t *testing.T) {
	w := newWorld(t, 1)
	b := elsewhere(1)
	w.tagged(100, b, true)
	trunk, mine := w.abroad.trunk, w.abroad.trunkMAC
	moved := net.HardwareAddr{2, 0, 0, 0, 7, 7}
	everybody, group := netip.MustParseAddr("ff02::1"), net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	advert := func(from net.HardwareAddr, a netip.Addr, hops uint8) []byte {
		frame, err := packet.Spec{
			SrcMAC: from, DstMAC: group, Src: netip.AddrPortFrom(a, 0), Dst: netip.AddrPortFrom(everybody, 0), TTL: hops,
			ICMP: &packet.ICMP{Type: 136, Rest: [4]byte{0x20}}, Payload: slices.Concat(a.AsSlice(), []byte{2, 1}, from),
		}.Build()
		w.check(err)
		return frame
	}
	for family, frames := range [2][][]byte{
		{arp(2, moved, mine, b.addr[0], sources[0], mine), arp(1, moved, broadcast, b.addr[0], b.addr[0], noMAC)},
		{advert(moved, b.addr[1], 255), solicit(moved, group, b.addr[1], everybody, netip.MustParseAddr("2001:db8:5::9"), 255, true)},
	} {
		for i, frame := range frames {
			w.check(w.d.PutNeighbour(datapath.NeighbourKey{Zone: zoneOf(100), Address: b.addr[family]}, datapath.Neighbour{MAC: [6]byte(trunk.mac), Answers: 7}))
			if verdict, out := w.run(withTag(dot1q, 100), trunk.ifindex, frame); verdict != next || !bytes.Equal(out, frame) {
				t.Errorf("verdict %d, %x", verdict, out)
			}
			if n := w.inMap(b.addr[family]); n.MAC != [6]byte(moved) || n.Answers != 8 {
				t.Errorf("%s, way %d: %+v", families[family], i, n)
			}
		}
	}
	before := [2]datapath.Neighbour{w.inMap(b.addr[0]), w.inMap(b.addr[1])}
	for what, f := range map[string]struct {
		program string
		frame   []byte
	}{
		"another VLAN's":     {withTag(dot1q, 200), arp(2, trunk.mac, mine, b.addr[0], sources[0], mine)},
		"without a tag":      {datapath.FromTrunk, arp(2, trunk.mac, mine, b.addr[0], sources[0], mine)},
		"of nobody":          {withTag(dot1q, 100), arp(2, noMAC, mine, b.addr[0], sources[0], mine)},
		"of a group":         {withTag(dot1q, 100), arp(2, broadcast, mine, b.addr[0], sources[0], mine)},
		"from afar":          {withTag(dot1q, 100), advert(trunk.mac, b.addr[1], 254)},
		"of somebody else's": {withTag(dot1q, 100), advert(trunk.mac, elsewhere(2).addr[1], 255)},
	} {
		w.run(f.program, trunk.ifindex, f.frame)
		if after := [2]datapath.Neighbour{w.inMap(b.addr[0]), w.inMap(b.addr[1])}; after != before {
			t.Errorf("%s: %+v, before %+v", what, after, before)
		}
	}
	all, err := w.d.Neighbours()
	w.check(err)
	if len(all) != 2 {
		t.Errorf("strangers made entries: %v", all)
	}
	w.check(w.d.PutNeighbour(datapath.NeighbourKey{Zone: zoneOf(100), Address: b.addr[0]}, datapath.Neighbour{MAC: [6]byte(trunk.mac), Fixed: true}))
	w.run(withTag(dot1q, 100), trunk.ifindex, arp(2, moved, mine, b.addr[0], sources[0], mine))
	if n := w.inMap(b.addr[0]); n.MAC != [6]byte(trunk.mac) || n.Answers != 0 {
		t.Errorf("a configured one was learned: %+v", n)
	}
	w.noDrops()
}

// The node answers for whom packets come from: its own address where it has one, else containers and VIPs.
func TestQuestionsInAVLANAreAnswered(t *testing.T) {
	w := newWorld(t, 1)
	b := elsewhere(1)
	w.tagged(100, b, true)
	trunk, mine := w.abroad.trunk, w.abroad.trunkMAC
	group, groupMAC := netip.MustParseAddr("ff02::1:ff00:1"), net.HardwareAddr{0x33, 0x33, 0xff, 0, 0, 1}
	answers := func(asked [2]netip.Addr, want bool) {
		t.Helper()
		request := arp(1, trunk.mac, broadcast, b.addr[0], asked[0], noMAC)
		verdict, out := w.run(withTag(dot1q, 100), trunk.ifindex, request)
		if expected := arp(2, mine, trunk.mac, asked[0], b.addr[0], trunk.mac); want != (verdict == redirect && bytes.Equal(out, expected)) || !want && (verdict != next || !bytes.Equal(out, request)) {
			t.Errorf("ARP for %s: verdict %d, %x", asked[0], verdict, out)
		}
		request = solicit(trunk.mac, groupMAC, b.addr[1], group, asked[1], 255, true)
		verdict, out = w.run(withTag(dot1q, 100), trunk.ifindex, request)
		got := w.decode(out)
		is := verdict == redirect && got.ICMP != nil && got.ICMP.Type == 136 && got.Src.Addr() == asked[1] && got.Dst.Addr() == b.addr[1] && got.SrcMAC.String() == mine.String() &&
			bytes.Equal(got.Payload, slices.Concat(asked[1].AsSlice(), []byte{2, 1}, mine))
		if is != want || !want && (verdict != next || !bytes.Equal(out, request)) {
			t.Errorf("ND for %s: verdict %d for %v", asked[1], verdict, got)
		}
	}
	neighbour := [2]netip.Addr{netip.MustParseAddr("198.18.0.9"), netip.MustParseAddr("2001:db8:5::9")}
	answers(sources, true)
	answers(neighbour, false)
	answers(b.addr, false)
	answers(w.client.addr, true) // not on the link's subnet: clients of other backends keep theirs
	answers(vips, true)
	w.sourcesIn(100, false)
	answers(sources, false)
	answers(vips, true)
	answers(w.client.addr, true)
	answers(outside().addr, false)
	w.check(w.d.PutNeighbour(datapath.NeighbourKey{Zone: zoneOf(100), Address: w.client.addr[0]}, datapath.Neighbour{}))
	if verdict, _ := w.run(withTag(dot1q, 100), trunk.ifindex, arp(1, trunk.mac, broadcast, b.addr[0], w.client.addr[0], noMAC)); verdict != next {
		t.Error("the node answers for a backend that has the address of a container")
	}
	if verdict, _ := w.run(withTag(dot1q, 200), trunk.ifindex, arp(1, trunk.mac, broadcast, b.addr[0], vips[0], noMAC)); verdict != next {
		t.Error("the node answers in a VLAN without backends")
	}
	w.noDrops()
}
