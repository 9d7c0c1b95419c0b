package datapath

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// Who could make us believe in a small MTU would make us send dust (RFC 5927 7.2; Katran counts it).
func TestIllegalMTUsAreDropped(t *testing.T) {
	legal := [2]map[uint32]bool{
		{0: true, 1: false, 67: false, 68: true, 1500: true},
		{0: false, 68: false, 1279: false, 1280: true, 1500: true, 0x10001: true},
	}
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		for i, r := range []int{0, 5, 4} { // by each of the programs
			k := roads[r].open(w, family, proto, uint16(40000+i), plain)
			for mtu, fine := range legal[family] {
				for _, way := range [][2]passage{{k.request, k.response}, {k.response, k.request}} {
					s := failure(way[0], w.decode(way[1].sent).Src.Addr(), 8, *packet.FragNeeded(way[0].seen[14:15], mtu))
					if fine {
						k.complain(way[0], way[1], s, 8)
						continue
					}
					w.dropped(way[1].leg, s, "bad-icmp")
				}
			}
			// The number is an MTU there only.
			odd := failures[family][3]
			odd.Rest = [4]byte{0, 0, 0, 1}
			k.complain(k.request, k.response, failure(k.request, w.decode(k.response.sent).Src.Addr(), 8, odd), 8)
		}
	})
}

// dropped asserts that a packet ends, counted once under its reason.
func (w *world) dropped(l leg, s packet.Spec, reason string) {
	w.t.Helper()
	before := w.drops(reason)
	if got := w.carry(l, s); got.verdict != drop || w.drops(reason) != before+1 {
		w.t.Errorf("%s: verdict %d for %v, %s counted %d times", l.program, got.verdict, s, reason, w.drops(reason)-before)
	}
}

// untouched asserts that a packet passes as it is.
func (w *world) untouched(l leg, s packet.Spec) {
	w.t.Helper()
	if got := w.carry(l, s); got.verdict != next || !bytes.Equal(got.seen, got.sent) {
		w.t.Errorf("%s: verdict %d for %v, changed %v", l.program, got.verdict, s, !bytes.Equal(got.seen, got.sent))
	}
}

// noDrops asserts that nothing was refused.
func (w *world) noDrops() {
	w.t.Helper()
	all, err := w.d.Drops()
	w.check(err)
	for reason, n := range all {
		if n != 0 {
			w.t.Errorf("%d packets dropped as %v", n, reason)
		}
	}
}

func TestSpoofedErrorsAreDropped(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		k := w.talkTo(family, proto, 40000, plain)
		stranger := w.addContainer(40)
		for _, m := range failures[family] {
			for name, from := range map[string]netip.Addr{
				"own": stranger.addr[family], "the backend's": w.decode(k.response.sent).Src.Addr(), "nobody's": outside().addr[family],
			} {
				s := failure(k.request, from, 8, m)
				w.dropped(leg{datapath.FromContainer, stranger}, s, "spoofed")
				if t.Failed() {
					t.Fatal("that was a stranger's error, under this address:", name)
				}
			}
			w.dropped(k.response.leg, failure(k.request, outside().addr[family], 8, m), "spoofed")
			w.dropped(leg{datapath.FromContainer, stranger}, failure(k.response, stranger.addr[family], 8, m), "spoofed")
		}
	})
}

// Where a flow leaves for the host's stack, the way behind is unknown: a container may be a router there.
func TestAContainerMayBeARouter(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		k := roads[4].open(w, family, proto, 40000, plain)
		router := w.addContainer(40)
		for _, m := range failures[family] {
			x := w.carry(leg{datapath.FromContainer, router}, failure(k.request, router.addr[family], 8, m))
			got := w.decode(x.seen)
			if x.verdict != redirect || got.DstMAC.String() != w.client.mac.String() || got.Src.Addr() != router.addr[family] ||
				!bytes.Equal(got.ICMP.Quote, packet.Quote(k.request.sent, 8)) {
				t.Errorf("verdict %d for %v", x.verdict, got)
			}
			w.dropped(leg{datapath.FromContainer, router}, failure(k.request, outside().addr[family], 8, m), "spoofed")
		}
	})
}

func TestErrorsOfARemovedBackendEnd(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		k := w.talkTo(family, proto, 40000, plain)
		_, err := w.d.RetireEndpoint(k.response.on.ifindex, nil)
		w.check(err)
		w.dropped(k.response.leg, failure(k.request, k.response.on.addr[family], 8, failures[family][0]), "backend-gone")
		w.dropped(k.request.leg, failure(k.response, w.client.addr[family], 8, failures[family][0]), "backend-gone")
	})
}

// failureAbout is failure for a packet that nobody sent.
func (w *world) failureAbout(s packet.Spec, keep int, m packet.ICMP) packet.Spec {
	w.t.Helper()
	frame, err := s.Build()
	w.check(err)
	return failure(passage{seen: frame}, s.Dst.Addr(), keep, m)
}

func TestErrorsAboutNoFlowOfOurs(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		k := w.talkTo(family, proto, 40000, plain)
		elsewhere := packet.Spec{Src: netip.AddrPortFrom(w.client.addr[family], 7), Dst: netip.AddrPortFrom(outside().addr[family], 9), Protocol: proto}
		echo, later, inner := elsewhere, elsewhere, elsewhere
		echo.ICMP = &packet.ICMP{Type: [2]uint8{packet.Echo4, packet.Echo6}[family]}
		later.Fragment = &packet.Fragment{ID: 1, Offset: 8}
		later.Payload = k.request.sent[34:64]
		inner.ICMP = &packet.ICMP{Type: [2]uint8{packet.Unreachable4, packet.Unreachable6}[family], Quote: packet.Quote(k.request.seen, 8)}
		for name, quoted := range map[string]packet.Spec{"a flow": elsewhere, "an echo": echo, "a later fragment": later, "an error": inner} {
			for _, m := range failures[family] {
				for _, keep := range []int{0, 3, -1} {
					s := w.failureAbout(quoted, keep, m)
					w.untouched(leg{datapath.ToContainer, w.client}, s)
					w.untouched(leg{datapath.FromContainer, w.containers[0]}, s)
					s.Src, s.Dst = netip.AddrPortFrom(w.client.addr[family], 0), netip.AddrPortFrom(vips[family], 0)
					w.dropped(leg{datapath.FromContainer, w.client}, s, "bad-icmp")
					w.dropped(leg{datapath.FromHost, w.host}, s, "bad-icmp")
				}
			}
			if t.Failed() {
				t.Fatal("quoted:", name)
			}
		}
	})
}

// An error comes to who sent what it quotes. One that comes to somebody else is not to be believed.
func TestErrorsToSomebodyElseAreUntouched(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		k := w.talkTo(family, proto, 40000, plain)
		for _, m := range failures[family] {
			s := failure(k.request, k.response.on.addr[family], 8, m)
			s.Dst = netip.AddrPortFrom(outside().addr[family], 0)
			w.untouched(k.response.leg, s)
		}
	})
}

// The host sends redirects about translated packets that go back where they came from: what they say
// of the way to a backend is no matter of the client's. Other messages are none of ours either.
func TestRedirectsAreUntouched(t *testing.T) {
	kinds := [2][]uint8{{packet.Redirect4, 4, 13, 17, packet.EchoReply4}, {packet.Redirect6, 0, 5, 127, 130, 135, 136, packet.EchoReply6}}
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		for i, r := range []int{0, 4} {
			k := roads[r].open(w, family, proto, uint16(40000+i), plain)
			from := w.decode(k.response.sent).Src.Addr()
			for _, kind := range kinds[family] {
				w.untouched(k.response.leg, failure(k.request, from, 8, packet.ICMP{Type: kind}))
			}
		}
		w.noDrops()
	})
}
