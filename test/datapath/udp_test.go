package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// eachUDPRoad runs a scenario for an open UDP flow of every road on the node.
func eachUDPRoad(t *testing.T, dress func(*packet.Spec), f func(t *testing.T, w *world, family int, k talk)) {
	t.Helper()
	for _, r := range roadsHere {
		for family, name := range families {
			t.Run(r.name+"/"+name, func(t *testing.T) {
				w := newWorld(t, 3)
				f(t, w, family, r.open(w, family, lb.UDP, 40000, dress))
				w.noDrops()
			})
		}
	}
}

// udpChecksum reads the checksum of a UDP frame without options or extension headers.
func udpChecksum(frame []byte) uint16 {
	l4 := 14 + 20
	if frame[14]>>4 == 6 {
		l4 = 14 + 40
	}
	return binary.BigEndian.Uint16(frame[l4+6:])
}

// A checksum of zero says that there is none (RFC 768); "updated", it would be a wrong one.
func TestZeroUDPChecksumStaysZero(t *testing.T) {
	bare := func(s *packet.Spec) { s.NoChecksum = s.Src.Addr().Is4() }
	eachUDPRoad(t, bare, func(t *testing.T, w *world, family int, k talk) {
		tap := w.tap()
		for _, way := range []passage{k.request, k.response} {
			if got := udpChecksum(way.seen); (got == 0) != (family == 0) {
				t.Errorf("checksum %#x of %v", got, w.decode(way.seen))
			}
			for _, order := range orders {
				tap.assertWhole(way, tap.deliver(way, tap.pieces(way.sent, pieceSize), order), order)
			}
		}
	})
}

// with is the passage of a datagram with this payload.
func (p passage) with(w *world, payload []byte) passage {
	w.t.Helper()
	s := w.decode(p.sent)
	s.Payload = payload
	return w.carry(p.leg, s)
}

// summedToZero returns a payload with which a frame's checksum is zero, which is sent as its other
// form, 0xffff.
func summedToZero(w *world, like []byte) []byte {
	w.t.Helper()
	s := w.decode(like)
	s.Payload = []byte{0, 0}
	frame, err := s.Build()
	w.check(err)
	s.Payload = binary.BigEndian.AppendUint16(nil, udpChecksum(frame))
	frame, err = s.Build()
	w.check(err)
	if got := udpChecksum(frame); got != 0xffff {
		w.t.Fatalf("checksum %#x of %v with payload %x", got, s, s.Payload)
	}
	return s.Payload
}

// A checksum that comes out as zero would say that there is none, and in IPv6 make the packet an invalid one
// (RFC 8200 8.1).
func TestUDPChecksumThatBecomesZero(t *testing.T) {
	eachUDPRoad(t, plain, func(t *testing.T, w *world, family int, k talk) {
		for _, way := range []passage{k.request, k.response} {
			got := way.with(w, summedToZero(w, way.seen))
			if sum := udpChecksum(got.seen); got.verdict != way.verdict || sum != 0xffff {
				t.Errorf("verdict %d, checksum %#x of %v", got.verdict, sum, w.decode(got.seen))
			}
			got = way.with(w, summedToZero(w, way.sent)) // and from there to another one
			if s := w.decode(got.seen); got.verdict != way.verdict || s.NoChecksum {
				t.Errorf("verdict %d for %v", got.verdict, s)
			}
		}
	})
}

// Every checksum that there is, on the way out and back: none may become zero or wrong.
func TestEveryUDPChecksum(t *testing.T) {
	step := uint32(1)
	if testing.Short() {
		step = 61
	}
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 3)
			k := w.talkTo(family, lb.UDP, 40000, plain)
			for word := uint32(0); word < 1<<16; word += step {
				for _, way := range []passage{k.request, k.response} {
					s := w.decode(way.with(w, binary.BigEndian.AppendUint16(nil, uint16(word))).seen)
					if s.NoChecksum {
						t.Fatalf("the checksum of %v with payload %#x became zero", s, word)
					}
				}
			}
		})
	}
}

// A datagram to another port, or from another one, is another flow's: an unconnected socket talks to many,
// and each answer comes from the address that was asked.
func TestAnswersComeFromTheAddressThatWasAsked(t *testing.T) {
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 3)
			w.service(2, vips2, w.containers)
			var asked []*flow
			for _, vip := range [][2]netip.Addr{vips, vips2} {
				f := w.flow(vip[family], family, lb.UDP, 40000)
				f.out(0, 0, 0)
				asked = append(asked, f)
			}
			for range 3 {
				for _, f := range asked {
					f.back(0, 0, 0)
					f.out(0, 0, 0)
				}
			}
			// What nobody asked for is the backend's own.
			s := reply(asked[0].target)
			s.Src = netip.AddrPortFrom(s.Src.Addr(), targetPort+1)
			w.untouched(leg{datapath.FromContainer, asked[0].backend}, s)
			w.noDrops()
		})
	}
}
