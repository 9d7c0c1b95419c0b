package datapath

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// announce sets whether the node answers for a VIP.
func (w *world) announce(vip netip.Addr, f datapath.Frontend) {
	w.t.Helper()
	f.Kind = datapath.KindVIP
	w.check(w.d.PutFrontends(map[lb.Frontend]datapath.Frontend{{VIP: vip}: f}))
}

var asker = net.HardwareAddr{2, 0, 0, 0, 1, 4} // of addContainer(4), the uplink

// arp builds an ARP packet on Ethernet.
func arp(op uint16, from, to net.HardwareAddr, sender, target netip.Addr, targetMAC net.HardwareAddr) []byte {
	out := slices.Concat(to, from, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, byte(op)}, from, sender.AsSlice(), targetMAC, target.AsSlice())
	return append(out, make([]byte, 60-len(out))...)
}

var (
	broadcast = net.HardwareAddr{255, 255, 255, 255, 255, 255}
	noMAC     = make(net.HardwareAddr, 6)
)

func TestVIPsAreAnnouncedByARP(t *testing.T) {
	w := newWorld(t, 1)
	w.goAbroad()
	up := w.abroad.uplink.ifindex
	request := arp(1, asker, broadcast, beyond[0], vips[0], noMAC)
	silent := func(what string, frame []byte) {
		t.Helper()
		if verdict, out := w.run(datapath.FromUplink, up, frame); verdict != next || !bytes.Equal(out, frame) {
			t.Errorf("%s: verdict %d, %x", what, verdict, out)
		}
	}
	silent("not announced", request)
	w.announce(vips[0], datapath.Frontend{Announce: true})
	for _, sender := range []netip.Addr{beyond[0], netip.IPv4Unspecified()} {
		for _, to := range []net.HardwareAddr{broadcast, w.abroad.mac} {
			verdict, out := w.run(datapath.FromUplink, up, arp(1, asker, to, sender, vips[0], noMAC))
			if want := arp(2, w.abroad.mac, asker, vips[0], sender, asker); verdict != redirect || !bytes.Equal(out, want) {
				t.Errorf("verdict %d\n got %x\nwant %x", verdict, out, want)
			}
		}
	}
	silent("another address", arp(1, asker, broadcast, beyond[0], vips2[0], noMAC))
	silent("an answer", arp(2, asker, w.abroad.mac, beyond[0], vips[0], w.abroad.mac))
	for at, what := range map[int]string{15: "hardware", 17: "protocol", 21: "operation"} {
		mutated := slices.Clone(request)
		mutated[at] ^= 0x10
		silent("another "+what, mutated)
	}
	silent("cut", request[:40])
	silent("for another host", arp(1, asker, net.HardwareAddr{2, 0, 0, 0, 7, 7}, beyond[0], vips[0], noMAC))
	w.announce(vips[0], datapath.Frontend{Announce: true, Own: true})
	silent("the node's own, for which the kernel answers", request)
	w.announce(vips[0], datapath.Frontend{Announce: true})
	w.check(w.d.DeleteUplink(up))
	silent("no uplink", request)
}

// solicit builds a neighbour solicitation.
func solicit(from, to net.HardwareAddr, src, dst, target netip.Addr, hops uint8, option bool) []byte {
	body := target.AsSlice()
	if option {
		body = slices.Concat(body, []byte{1, 1}, from)
	}
	frame, err := packet.Spec{
		SrcMAC: from, DstMAC: to, Src: netip.AddrPortFrom(src, 0), Dst: netip.AddrPortFrom(dst, 0), TTL: hops,
		ICMP: &packet.ICMP{Type: 135}, Payload: body,
	}.Build()
	if err != nil {
		panic(err)
	}
	return frame
}

func TestVIPsAreAnnouncedByND(t *testing.T) {
	w := newWorld(t, 1)
	w.goAbroad()
	up, vip := w.abroad.uplink.ifindex, vips[1]
	group, everybody := netip.MustParseAddr("ff02::1:ff00:10"), netip.MustParseAddr("ff02::1")
	groupMAC := net.HardwareAddr{0x33, 0x33, 0xff, 0, 0, 0x10}
	silent := func(what string, frame []byte) {
		t.Helper()
		if verdict, out := w.run(datapath.FromUplink, up, frame); verdict != next || !bytes.Equal(out, frame) {
			t.Errorf("%s: verdict %d, %x", what, verdict, out)
		}
	}
	request := solicit(asker, groupMAC, beyond[1], group, vip, 255, true)
	silent("not announced", request)
	w.announce(vip, datapath.Frontend{Announce: true})
	answered := func(what string, frame []byte, to netip.Addr, mac net.HardwareAddr, flags uint32) {
		t.Helper()
		verdict, out := w.run(datapath.FromUplink, up, frame)
		got := w.decode(out) // the checksum
		want := slices.Concat(vip.AsSlice(), []byte{2, 1}, w.abroad.mac)
		if verdict != redirect || got.Src.Addr() != vip || got.Dst.Addr() != to || got.SrcMAC.String() != w.abroad.mac.String() ||
			got.DstMAC.String() != mac.String() || got.TTL != 255 || got.ICMP == nil || got.ICMP.Type != 136 || got.ICMP.Code != 0 ||
			binary.BigEndian.Uint32(got.ICMP.Rest[:]) != flags || !bytes.Equal(got.Payload, want) {
			t.Errorf("%s: verdict %d for %v, payload %x", what, verdict, got, got.Payload)
		}
	}
	const solicited, override = 0x60000000, 0x20000000
	answered("multicast", request, beyond[1], asker, solicited)
	answered("unicast", solicit(asker, w.abroad.mac, beyond[1], vip, vip, 255, false), beyond[1], asker, solicited)
	answered("a new address is looked for", solicit(asker, groupMAC, netip.IPv6Unspecified(), group, vip, 255, false),
		everybody, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, override)
	silent("another address", solicit(asker, groupMAC, beyond[1], group, vips2[1], 255, true))
	silent("from afar", solicit(asker, groupMAC, beyond[1], group, vip, 254, true))
	for at, what := range map[int]string{54: "type", 55: "code"} {
		mutated := slices.Clone(request)
		mutated[at]++
		silent("another "+what, mutated)
	}
	w.announce(vip, datapath.Frontend{Announce: true, Own: true})
	silent("the node's own", request)
}
