package datapath

import (
	"slices"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// again sends an earlier frame another time.
func (s *script) again() parcel {
	if len(s.done) == 0 {
		return s.build(s.fresh())
	}
	e := s.done[int(s.next())%len(s.done)]
	if s.next()&1 != 0 {
		return parcel{e.leg, slices.Clone(e.out)}
	}
	return parcel{e.leg, slices.Clone(e.in)}
}

// disturb takes a backend away, closes it to new flows, or gives its id to another one.
func (s *script) disturb() {
	i, what := int(s.next())%len(s.containers), s.next()
	id := backendID(serviceID, i, int(what>>2&1), lb.TCP) + uint32(what>>3&1)
	b := &s.backends[id]
	switch what & 3 {
	case 0:
		b.Flags &^= uint8(bpf.MapsBackendFlagBACKEND_LIVE | bpf.MapsBackendFlagBACKEND_NEW)
	case 1:
		b.Flags &^= uint8(bpf.MapsBackendFlagBACKEND_NEW)
	case 2:
		b.Flags = s.made[id].Flags
	default:
		b.Gen++
		s.stats[id] = bpf.MapsBackendStat{} // as the proxy does
	}
}

// mutate changes bytes of a frame, whatever they mean.
func (s *script) mutate(frame []byte) []byte {
	how, at, value := s.next(), int(s.next()), s.next()
	if len(frame) == 0 {
		return frame
	}
	at %= len(frame)
	switch how % 8 {
	case 0, 1:
		frame[at] = value
	case 2, 3:
		frame[at] ^= 1 << (value & 7)
	case 4:
		return frame[:at]
	case 5:
		return append(frame, slices.Repeat([]byte{value}, at&31)...)
	case 6:
		return slices.Insert(frame, at, value)
	default:
		for i := range min(int(value&7), len(frame)-at) {
			frame[at+i] = s.next()
		}
	}
	return frame
}
