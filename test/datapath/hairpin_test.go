package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// hairpins are the addresses that a container sees itself come from.
var hairpins = [2]netip.Addr{netip.MustParseAddr("169.254.77.1"), netip.MustParseAddr("fd00:7c1b::1")}

// halfOf is what a pair says of one direction.
type halfOf struct {
	source  netip.AddrPort
	dest    netip.AddrPort
	deliver uint8
	ifindex uint32
}

// halves reads both directions of a flow, as its packets arrive.
func (f *flow) halves() [2]halfOf {
	f.w.t.Helper()
	var out [2]halfOf
	port := func(p uint16) uint16 {
		var b [2]byte
		binary.NativeEndian.PutUint16(b[:], p)
		return binary.BigEndian.Uint16(b[:])
	}
	f.w.edit(f.pair().Index, func(p *rawPair) {
		for i, h := range p.Half {
			out[i] = halfOf{
				netip.AddrPortFrom(netip.AddrFrom16(h.Tuple.Saddr).Unmap(), port(h.Tuple.Sport)),
				netip.AddrPortFrom(netip.AddrFrom16(h.Tuple.Daddr).Unmap(), port(h.Tuple.Dport)),
				h.Deliver, h.Ifindex,
			}
		}
	})
	return out
}

// assertHairpin follows the four packets of an exchange of a container with itself: out to the VIP, in
// from the hairpin address, the answer out to it, in from the VIP. It asks by `from` and serves at `at`.
func (f *flow) assertHairpin(from, at container, hairpin netip.Addr) {
	f.w.t.Helper()
	family := 0
	if hairpin.Is6() {
		family = 1
	}
	f.from = from
	f.establish()
	for range 3 {
		f.out(packet.ACK, f.seq+8, backendISN+9)
		if want := netip.AddrPortFrom(at.addr[family], targetPort); f.target.Dst != want || f.backend.ifindex != at.ifindex {
			f.w.t.Fatalf("arrives at %v, want %v", f.target.Dst, want)
		}
		if f.target.Src.Addr() != hairpin {
			f.w.t.Fatalf("comes from %v, want the address %v", f.target.Src, hairpin)
		}
		f.back(packet.ACK, backendISN+9, f.seq+15)
	}
	peer := uint8(bpf.MapsDeliverDELIVER_PEER)
	want := [2]halfOf{{f.client, f.vip, peer, at.ifindex}, {f.target.Dst, f.target.Src, peer, from.ifindex}}
	if got := f.halves(); got != want {
		f.w.t.Errorf("pair %+v, want %+v", got, want)
	}
}

func TestHairpinOfTheOnlyBackend(t *testing.T) {
	eachInOne(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.service(serviceID, vips, []container{w.client})
		for port := uint16(40000); port < 40020; port++ {
			f := w.flow(vips[family], family, proto, port)
			f.assertHairpin(w.client, w.client, hairpins[family])
			if f.target.Src.Port() != port {
				t.Errorf("port %d became %d without need", port, f.target.Src.Port())
			}
		}
		w.assertWhole()
	})
}

// TestHairpinOfOneBackendAmongSeveral: only the flows that come back to their container are hairpins.
func TestHairpinOfOneBackendAmongSeveral(t *testing.T) {
	eachInOne(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.service(serviceID, vips, append(w.containers[:2:2], w.client))
		met := map[uint32]int{}
		for port := uint16(40000); port < 40060; port++ {
			f := w.flow(vips[family], family, proto, port)
			f.out(packet.SYN, f.seq, 0)
			met[f.backend.ifindex]++
			if f.backend.ifindex == w.client.ifindex {
				f.assertHairpin(w.client, w.client, hairpins[family])
			} else if f.target.Src != f.client {
				t.Errorf("another container sees %v, want the client's own address", f.target.Src)
			}
		}
		if len(met) != 3 {
			t.Errorf("%v: all three should be met", met)
		}
		w.assertWhole()
	})
}

// TestHairpinsOfTwoVIPs: to the container both flows would come from one port of one address.
func TestHairpinsOfTwoVIPs(t *testing.T) {
	eachInOne(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		self := []container{w.client}
		w.service(serviceID, vips, self)
		w.service(2, vips2, self)
		a, b := w.flow(vips[family], family, proto, 40000), w.flow(vips2[family], family, proto, 40000)
		a.assertHairpin(w.client, w.client, hairpins[family])
		b.assertHairpin(w.client, w.client, hairpins[family])
		if a.target.Src == b.target.Src {
			t.Fatalf("the container sees %v twice", a.target.Src)
		}
		a.back(packet.ACK, backendISN+9, a.seq+15)
		b.back(packet.ACK, backendISN+9, b.seq+15)
		w.assertWhole()
	})
}

// TestHairpinsOfTwoContainers have one port of one address, and are told apart by where it is asked.
func TestHairpinsOfTwoContainers(t *testing.T) {
	eachInOne(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		two := w.containers[:2]
		w.service(serviceID, vips, two)
		flows := map[uint32]*flow{}
		for port := uint16(40000); port < 40200 && len(flows) < 2; port++ {
			clear(flows)
			for _, c := range two {
				f := w.flow(vips[family], family, proto, port)
				f.from, f.client = c, netip.AddrPortFrom(c.addr[family], port)
				if f.out(packet.SYN, f.seq, 0); f.backend.ifindex == c.ifindex {
					flows[c.ifindex] = f
				}
			}
		}
		if len(flows) != 2 {
			t.Fatal("no port leads both containers to themselves")
		}
		for _, c := range two {
			flows[c.ifindex].assertHairpin(c, c, hairpins[family])
		}
		if a, b := flows[two[0].ifindex], flows[two[1].ifindex]; a.target.Src != b.target.Src {
			t.Errorf("%v and %v, want one source", a.target.Src, b.target.Src)
		}
		w.assertWhole()
	})
}

// TestHairpinAddressIsTheOperators: cilium/cilium#26100 is what some have against a fixed one. A flow keeps
// the address that it began with.
func TestHairpinAddressIsTheOperators(t *testing.T) {
	eachInOne(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.service(serviceID, vips, []container{w.client})
		before := w.flow(vips[family], family, proto, 40000)
		before.assertHairpin(w.client, w.client, hairpins[family])
		s, err := w.d.Settings()
		w.check(err)
		custom := [2]netip.Addr{netip.MustParseAddr("203.0.113.200"), netip.MustParseAddr("2001:db8:77::200")}
		s.Hairpin4, s.Hairpin6 = custom[0], custom[1]
		w.check(w.d.PutSettings(s))
		w.flow(vips[family], family, proto, 40001).assertHairpin(w.client, w.client, custom[family])
		before.out(packet.ACK, before.seq+8, backendISN+9)
		if before.target.Src.Addr() != hairpins[family] {
			t.Errorf("a flow's address changed to %v", before.target.Src)
		}
		before.back(packet.ACK, backendISN+9, before.seq+15)
	})
}

// TestHairpinByTwoInterfaces: the container asks by one network and serves on the other. Its answer leaves
// by whichever of the two its routes say.
func TestHairpinByTwoInterfaces(t *testing.T) {
	eachInOne(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		const owner = 77
		other := w.containers[0]
		w.service(serviceID, vips, []container{other})
		w.change(other, func(b *datapath.Backend) { b.Owner = owner })
		for _, c := range []container{w.client, other} {
			w.check(w.d.PutEndpoint(datapath.EndpointKey{Address: c.addr[family], Ifindex: c.ifindex}, datapath.Endpoint{UpIfindex: 1, Owner: owner}))
		}
		f := w.flow(vips[family], family, proto, 40000)
		f.assertHairpin(w.client, other, hairpins[family])
		answer := reply(f.target)
		answer.Flags, answer.Seq, answer.Ack = packet.ACK, backendISN+9, f.seq+15
		verdict, got := w.fromContainer(w.client, answer)
		if verdict != redirect || got.Src != f.vip || got.Dst != f.client || got.DstMAC.String() != w.client.mac.String() {
			t.Errorf("an answer by the interface that asked: verdict %d for %v", verdict, got)
		}
		stranger := w.flow(vips[family], family, proto, 40000)
		stranger.from = w.containers[1]
		stranger.client = netip.AddrPortFrom(stranger.from.addr[family], 40000)
		stranger.establish()
		if stranger.target.Src != stranger.client {
			t.Errorf("another container's flow comes from %v", stranger.target.Src)
		}
	})
}

// TestHairpinStaysOffTheHost: the host's stack would see a packet from a container's network to itself and
// have no route for the answer, so these flows are ours in host stack mode too.
func TestHairpinStaysOffTheHost(t *testing.T) {
	eachInOne(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.settings(datapath.Settings{HostStack: true, AntiSpoof: true})
		w.service(serviceID, vips, []container{w.client})
		w.flow(vips[family], family, proto, 40000).assertHairpin(w.client, w.client, hairpins[family])
	})
}

// TestAHairpinEndsAsAnyFlow: both its sides are one container's, both are followed.
func TestAHairpinEndsAsAnyFlow(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.service(serviceID, vips, []container{w.client})
		for i, isn := range initial {
			c := w.life(family, uint16(40000+i), isn)
			c.run(closed)
			c = w.life(family, uint16(41000+i), isn)
			c.run(busy)
			c.run([]segment{{backend, rst, 202, 0, 0, established}, {backend, rst, 201, 0, 0, closing}})
		}
		w.assertWhole()
	}
}
