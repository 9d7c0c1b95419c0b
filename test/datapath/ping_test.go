package datapath

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// ping is an echo request with so much data, as it arrives with its last hop.
func ping(from, to netip.Addr, family, size int) packet.Spec {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i)
	}
	return packet.Spec{
		Src: netip.AddrPortFrom(from, 0), Dst: netip.AddrPortFrom(to, 0), TTL: 1, TOS: 0xb8, Payload: data,
		ICMP: &packet.ICMP{Type: [2]uint8{packet.Echo4, packet.Echo6}[family], Rest: [4]byte{0x12, 0x34, 0, 9}},
	}
}

// pong asserts that a packet is the answer to a request.
func (w *world) pong(request, got packet.Spec, family int) {
	w.t.Helper()
	want := [2]uint8{packet.EchoReply4, packet.EchoReply6}[family]
	if got.Src != request.Dst || got.Dst != request.Src || got.TTL != 64 || got.TOS != request.TOS || !bytes.Equal(got.Payload, request.Payload) {
		w.t.Errorf("got %v for %v", got, request)
	}
	if got.ICMP == nil || got.ICMP.Type != want || got.ICMP.Code != 0 || got.ICMP.Rest != request.ICMP.Rest {
		w.t.Errorf("got %v, want an echo reply to %v", got, request)
	}
}

// pingers are the senders of the world: a container, and a process of the host.
func (w *world) pingers(family int) map[netip.Addr]leg {
	return map[netip.Addr]leg{
		w.client.addr[family]:  {datapath.FromContainer, w.client},
		outside().addr[family]: {datapath.FromHost, w.host},
	}
}

// In Cilium a ping of a VIP loops or is lost (cilium/cilium#28458, #14118).
func TestAVIPAnswersPing(t *testing.T) {
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			for from, l := range w.pingers(family) {
				for _, dress := range []func(*packet.Spec){plain, dressed} {
					for _, size := range []int{0, 1, 56, 1400, 3000} {
						request := ping(from, vips[family], family, size)
						dress(&request)
						x := w.carry(l, request)
						got := w.decode(x.seen)
						if x.verdict != redirect || got.DstMAC.String() != l.on.mac.String() || got.SrcMAC.String() != "02:00:00:00:00:02" {
							t.Fatalf("verdict %d for %v", x.verdict, got)
						}
						w.pong(request, got, family)
					}
				}
			}
			w.noDrops()
			if n := len(w.pairs()); n != 0 {
				t.Errorf("%d flows of pings", n)
			}
		})
	}
}

func TestAVIPAnswersFragmentsOfAPing(t *testing.T) {
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			id := uint32(70)
			for from, l := range w.pingers(family) {
				for _, backwards := range []bool{false, true} {
					id++
					request := ping(from, vips[family], family, 4000)
					request.SrcMAC = l.on.mac
					frame, err := request.Build()
					w.check(err)
					parts, err := packet.Fragments(frame, 1400, id)
					w.check(err)
					if backwards {
						slices.Reverse(parts)
					}
					for i, part := range parts {
						verdict, out := w.run(l.program, l.on.ifindex, part)
						if verdict != redirect {
							t.Fatalf("verdict %d for number %d", verdict, i)
						}
						parts[i] = out
					}
					answer, err := packet.Reassemble(parts)
					w.check(err)
					w.pong(request, w.decode(answer), family)
				}
			}
			w.noDrops()
		})
	}
}

func TestPingsThatAreNotAnswered(t *testing.T) {
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			own, host := leg{datapath.FromContainer, w.client}, leg{datapath.FromHost, w.host}
			w.dropped(own, ping(w.containers[0].addr[family], vips[family], family, 56), "spoofed")
			w.untouched(own, ping(w.client.addr[family], w.containers[0].addr[family], family, 56))
			w.untouched(own, ping(w.client.addr[family], outside().addr[family], family, 56))
			w.untouched(leg{datapath.ToContainer, w.client}, ping(outside().addr[family], w.client.addr[family], family, 56))
			// What comes from where nothing can be sent to.
			for _, from := range [2][]string{{"0.0.0.0", "224.0.0.1", "255.255.255.255"}, {"::", "ff02::1"}}[family] {
				if got := w.carry(host, ping(netip.MustParseAddr(from), vips[family], family, 56)); got.verdict != drop {
					t.Errorf("ping from %s: verdict %d", from, got.verdict)
				}
			}
			// What looks like a ping.
			answer, code := ping(w.client.addr[family], vips[family], family, 56), ping(w.client.addr[family], vips[family], family, 56)
			answer.ICMP.Type = [2]uint8{packet.EchoReply4, packet.EchoReply6}[family]
			code.ICMP.Code = 1
			for _, s := range []packet.Spec{answer, code} {
				w.untouched(own, s) // its way ends at tclb0
				if got := w.carry(host, s); got.verdict != drop {
					t.Errorf("verdict %d for %v", got.verdict, s)
				}
			}
			w.settings(datapath.Settings{})
			if got := w.carry(own, ping(w.containers[0].addr[family], vips[family], family, 56)); got.verdict != redirect {
				t.Errorf("without antiSpoof: verdict %d", got.verdict)
			}
		})
	}
}
