package datapath

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// ringPlaces is how many fragments may wait.
const ringPlaces = 256

// holds sends a fragment that has to wait.
func (k *tap) holds(l leg, piece []byte) {
	k.w.t.Helper()
	if verdict, _ := k.push(l, piece); verdict != drop {
		k.w.t.Fatalf("a fragment that should wait: verdict %d for %v", verdict, k.w.decode(piece))
	}
}

// A backend's fragments wait because they may be answers. Where the first one says that they are not, all
// go on as they came; those of others do not wait at all.
func TestFragmentsOfNoFlowPassUnchanged(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.service(2, vips2, []container{outside()})
		k := w.tap()
		elsewhere := netip.MustParseAddrPort([]string{"203.0.113.99:53", "[2001:db8:99::1]:53"}[family])
		for name, c := range map[string]struct {
			leg
			src, dst netip.AddrPort
		}{
			"a container's": {leg{datapath.FromContainer, w.client}, netip.AddrPortFrom(w.client.addr[family], 4000), elsewhere},
			"a backend's":   {leg{datapath.FromContainer, w.containers[0]}, netip.AddrPortFrom(w.containers[0].addr[family], 4000), elsewhere},
			"an unattached backend's": {
				leg{datapath.ToContainer, w.client},
				netip.AddrPortFrom(outside().addr[family], 4000), netip.AddrPortFrom(w.client.addr[family], 53),
			},
		} {
			s := packet.Spec{Src: c.src, Dst: c.dst, Protocol: proto, Flags: packet.ACK, Payload: bytes.Repeat([]byte(name), 15)[:150], SrcMAC: c.on.mac}
			frame, err := s.Build()
			w.check(err)
			like := passage{leg: c.leg, verdict: next, sent: frame, seen: frame}
			for _, order := range orders {
				pieces := k.pieces(frame, pieceSize)
				if len(pieces) != 3 {
					t.Fatalf("%d pieces", len(pieces))
				}
				out := k.deliver(like, pieces, order)
				k.assertWhole(like, out, name)
				for _, piece := range pieces {
					if !containsPacket(out, piece) {
						t.Errorf("%s, %v: %v was changed", name, order, w.decode(piece))
					}
				}
			}
		}
		k.silent()
		k.assertNoneWaits()
		w.noDrops()
		if n := len(w.pairs()); n != 0 {
			t.Errorf("%d pairs", n)
		}
	})
}

// containsPacket says whether a frame is among others. Behind its packet there may be padding.
func containsPacket(frames [][]byte, want []byte) bool {
	return slices.ContainsFunc(frames, func(f []byte) bool { return bytes.HasPrefix(f, want) })
}

// A later fragment without a note waits only where it can be of a flow of ours.
func TestLaterFragmentsThatAreNotOursDoNotWait(t *testing.T) {
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 3)
			later := packet.Spec{
				Src: netip.AddrPortFrom(w.client.addr[family], 0), Dst: netip.AddrPortFrom(outside().addr[family], 0),
				Fragment: &packet.Fragment{Offset: 64}, Payload: make([]byte, 64), Protocol: lb.UDP,
			}
			for _, program := range []string{datapath.FromContainer, datapath.ToContainer} {
				later.Fragment.ID = datagrams.Add(1)
				w.untouched(leg{program, w.client}, later)
			}
			later.Fragment.ID, later.Src = datagrams.Add(1), netip.AddrPortFrom(outside().addr[family], 0)
			later.Dst = netip.AddrPortFrom(w.client.addr[family], 0)
			w.untouched(leg{datapath.ToContainer, w.client}, later)
			w.noDrops()
		})
	}
}

// Who never sends a first fragment costs others nothing but his own: the oldest gives way, and is counted.
func TestTheOldestWaitingFragmentGivesWay(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		const n = 300
		f := w.talkTo(family, proto, 40000, plain)
		k := w.tap()
		var all [n][][]byte
		for i := range all {
			all[i] = k.pieces(f.request.sent, 128)
			k.holds(f.request.leg, all[i][1])
		}
		if got := w.drops("fragment"); got != n-ringPlaces {
			t.Errorf("%d counted, want %d", got, n-ringPlaces)
		}
		for i, pieces := range all {
			want := 2
			if i < n-ringPlaces {
				want = 1
			}
			verdict, seen := k.push(f.request.leg, pieces[0])
			out := append([][]byte{seen}, k.released(f.request, want-1)...)
			if verdict != f.request.verdict {
				t.Fatalf("datagram %d: verdict %d", i, verdict)
			}
			if want == 2 {
				k.assertWhole(f.request, out, i)
			}
		}
		k.silent()
		if c := k.ring(); c.Waiting != 0 || c.Held != n || c.Released != ringPlaces {
			t.Errorf("%+v", c)
		}
	})
}

// older makes what is known about fragments older than it is.
func (k *tap) older(d time.Duration) {
	k.w.t.Helper()
	ticks := k.w.ticks(d)
	notes := k.w.openMap(bpf.MapsMapFragments)
	var key bpf.MapsFragmentKey
	var note bpf.MapsFragment
	all := map[bpf.MapsFragmentKey]bpf.MapsFragment{}
	for i := notes.Iterate(); i.Next(&key, &note); {
		all[key] = note
	}
	for key, note := range all {
		note.Seen -= ticks
		k.w.check(notes.Put(&key, &note))
	}
	places := k.w.openMap(bpf.MapsMapHeldFragments)
	for i := range uint32(ringPlaces) {
		var held bpf.MapsHeldFragment
		k.w.check(places.Lookup(i, &held))
		if held.State == uint32(bpf.MapsHeldStateHELD_READY) {
			held.Seen -= ticks
			k.w.check(places.Put(i, &held))
		}
	}
}

// An identification comes again: what a note says counts for two seconds, and as long waits a fragment.
func TestNotesAndWaitingFragmentsExpire(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		f := w.talkTo(family, proto, 40000, plain)
		k := w.tap()
		pieces := k.pieces(f.request.sent, pieceSize)
		out := k.deliver(f.request, pieces[:2], []int{0, 1})
		k.older(1900 * time.Millisecond)
		verdict, last := k.push(f.request.leg, pieces[2])
		if verdict != f.request.verdict {
			t.Fatalf("after 1.9 s: verdict %d", verdict)
		}
		k.assertWhole(f.request, append(out, last), "after 1.9 s")
		k.older(1900 * time.Millisecond)
		if verdict, _ = k.push(f.request.leg, pieces[1]); verdict != f.request.verdict {
			t.Fatalf("a fragment did not prolong its datagram's note: verdict %d", verdict)
		}
		k.older(2200 * time.Millisecond)
		k.holds(f.request.leg, pieces[2])
		k.older(1900 * time.Millisecond)
		k.holds(f.request.leg, pieces[1])
		k.older(300 * time.Millisecond)
		verdict, seen := k.push(f.request.leg, pieces[0])
		released := w.decode(k.released(f.request, 1)[0])
		if got := w.decode(seen); verdict != f.request.verdict || got.Fragment.Offset != 0 || released.Fragment.Offset != pieceSize {
			t.Errorf("verdict %d for %v, %v went before it, want the second one: the last one expired", verdict, got, released)
		}
		k.silent()
		if c := k.ring(); c.Waiting != 0 || w.drops("fragment") != 1 {
			t.Errorf("%+v, %d given up, want the one that waited too long", c, w.drops("fragment"))
		}
	})
}

// A host that sends much uses an identification again within seconds.
func TestAnIdentificationThatIsUsedAgain(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		k := w.tap()
		seen := map[uint32]bool{}
		for port := uint16(40000); port < 40032; port++ {
			f := w.talkTo(family, proto, port, plain)
			pieces, err := packet.Fragments(f.request.sent, pieceSize, 77)
			w.check(err)
			k.assertWhole(f.request, k.deliver(f.request, pieces, []int{0, 2, 1}), port)
			seen[w.containerOf(w.decode(f.request.seen)).ifindex] = true
		}
		if len(seen) != len(w.containers) {
			t.Fatalf("%d backends were chosen", len(seen))
		}
	})
}

func TestFragmentsOfAnEndedFlow(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		k := w.tap()
		for i, again := range []bool{false, true} {
			f := w.talkTo(family, proto, uint16(40000+i), plain)
			for _, way := range []passage{f.response, f.request} {
				if again {
					// Another flow takes the place: it is not that flow's fragment.
					w.flow(vips[family], family, proto, uint16(41000+i)).establish()
				}
				pieces := k.pieces(way.sent, pieceSize)
				k.deliver(way, pieces[:2], []int{0, 1})
				_, err := w.d.Sweep(datapath.SweepRequest{Flush: true})
				w.check(err)
				before := w.drops("fragment")
				if verdict, _ := k.push(way.leg, pieces[2]); verdict != drop || w.drops("fragment") != before+1 {
					t.Errorf("verdict %d, %d counted", verdict, w.drops("fragment")-before)
				}
				f = w.talkTo(family, proto, uint16(40000+i), plain)
			}
		}
	})
}

// Answers to fragments are never sent: of later ones by RFC 1122 3.2.2, and a first one may not be followed.
func TestRefusedFragmentsEndSilently(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		k := w.tap()
		for _, l := range []leg{{datapath.FromContainer, w.client}, {datapath.FromHost, w.host}} {
			s := packet.Spec{
				Src: netip.AddrPortFrom(l.on.addr[family], 40000), Dst: netip.AddrPortFrom(vips[family], 9), Protocol: proto,
				Flags: packet.SYN, Payload: make([]byte, 150), SrcMAC: l.on.mac,
			}
			frame, err := s.Build()
			w.check(err)
			pieces := k.pieces(frame, pieceSize)
			before := w.drops("no-frontend")
			if verdict, _ := k.push(l, pieces[0]); verdict != drop || w.drops("no-frontend") != before+1 {
				t.Errorf("%s: verdict %d, %d counted", l.program, verdict, w.drops("no-frontend")-before)
			}
			for _, piece := range pieces[1:] {
				k.holds(l, piece)
			}
		}
		k.silent()
	})
}

// A fragment in one piece is a packet (RFC 6946): nothing is noted, nothing waits for it.
func TestAtomicFragments(t *testing.T) {
	for _, r := range roads {
		for _, proto := range []lb.Protocol{lb.TCP, lb.UDP} {
			t.Run(r.name+"/"+proto.String(), func(t *testing.T) {
				w := newWorld(t, 3)
				for i, dress := range []func(*packet.Spec){plain, dressed} {
					f := r.open(w, 1, proto, uint16(40000+i), func(s *packet.Spec) {
						dress(s)
						s.Fragment = &packet.Fragment{ID: 5}
					})
					for _, way := range []passage{f.request, f.response} {
						if got := w.decode(way.seen); got.Fragment == nil || *got.Fragment != (packet.Fragment{ID: 5}) {
							t.Errorf("%v", got)
						}
					}
				}
				if n := w.notes(); n != 0 {
					t.Errorf("%d notes", n)
				}
				w.noDrops()
			})
		}
	}
}

// notes counts the datagrams that are remembered.
func (w *world) notes() int {
	w.t.Helper()
	n := 0
	var key bpf.MapsFragmentKey
	var note bpf.MapsFragment
	for i := w.openMap(bpf.MapsMapFragments).Iterate(); i.Next(&key, &note); {
		n++
	}
	return n
}
