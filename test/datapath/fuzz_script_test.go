package datapath

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

const maxSteps = 10

// script reads an input as what hosts send one after the other. Every byte says something, and bytes that
// are missing are zero.
type script struct {
	*lab
	input []byte
	done  []event  // what was sent before
	queue []parcel // of a datagram, still to be sent
}

// parcel is a frame and where it is sent.
type parcel struct {
	leg
	frame []byte
}

func (s *script) next() byte {
	if len(s.input) == 0 {
		return 0
	}
	b := s.input[0]
	s.input = s.input[1:]
	return b
}

// pick returns one of the options.
func pick[T any](s *script, options ...T) T { return options[int(s.next())%len(options)] }

// step returns what is sent next; false: nothing.
func (s *script) step() (parcel, bool) {
	if len(s.queue) == 0 && (len(s.input) == 0 || len(s.done) >= maxSteps) {
		return parcel{}, false
	}
	if len(s.queue) == 0 {
		s.decode()
	}
	if len(s.queue) == 0 {
		return parcel{}, true
	}
	p := s.queue[0]
	s.queue = s.queue[1:]
	p.frame = runnable(p.frame)
	return p, len(s.done) < maxSteps
}

// runnable fills a frame up to what the kernel runs programs on: an IP header, if it says that it has one.
func runnable(frame []byte) []byte {
	const least = etherLen + 1
	frame = append(frame, make([]byte, max(0, least-len(frame)))...)
	header := map[uint16]int{0x0800: etherLen + 20, 0x86dd: etherLen + 40}[be16(frame, 12)]
	return append(frame, make([]byte, max(0, header-len(frame)))...)
}

// decode reads one operation into the queue.
func (s *script) decode() {
	op := s.next()
	var p parcel
	switch op & 15 {
	case 0, 1, 2, 3:
		p = s.build(s.fresh())
	case 4, 5, 6, 7:
		p = s.build(s.answer())
	case 8, 9:
		p = s.build(s.complaint())
	case 10, 11:
		s.fragments()
		return
	case 12, 13:
		p = s.again()
	case 14:
		n := int(s.next())
		p = parcel{s.leg(), slices.Clone(s.input[:min(n, len(s.input))])}
		s.input = s.input[len(p.frame):]
	default:
		s.disturb()
		return
	}
	for range op >> 6 {
		p.frame = s.mutate(p.frame)
	}
	if op&16 != 0 {
		p.leg = s.leg()
	}
	s.queue = append(s.queue, p)
}

func (s *script) leg() leg {
	if s.far && s.next()&1 != 0 {
		return pick(s, s.fromOutside(), s.fromNode(1), s.fromNode(2), s.fromNode(9), s.fromVLAN(100), s.fromVLAN(101), leg{datapath.ToUplink, s.abroad.uplink})
	}
	return leg{pick(s, datapath.FromContainer, datapath.ToContainer, datapath.FromHost), pick(s, s.client, s.containers[0], s.containers[1], s.host)}
}

func (s *script) build(l leg, spec packet.Spec) parcel {
	spec.SrcMAC, spec.DstMAC = l.on.mac, nil
	s.toDevice(&spec, l.program)
	frame, err := spec.Build()
	if err != nil {
		frame = nil // two families; sent as an empty frame
	}
	if s.far {
		frame = s.mark(l, frame)
	}
	return parcel{l, frame}
}

// fresh is a packet of a flow of its own.
func (s *script) fresh() (leg, packet.Spec) {
	shape := s.next()
	family := int(shape & 1)
	spec := packet.Spec{
		Src:      netip.AddrPortFrom(s.source(family), 40000+uint16(s.next()&3)),
		Dst:      netip.AddrPortFrom(s.destination(family), pick[uint16](s, servicePort, servicePort, emptyPort, allowPort, targetPort, 9)),
		Protocol: lb.TCP, Seq: 1000, Flags: packet.SYN,
	}
	if shape&2 != 0 {
		spec.Protocol = lb.UDP
		spec.NoChecksum = shape&4 != 0
	} else if shape&4 != 0 {
		s.segment(&spec)
	}
	if shape&8 != 0 {
		s.dress(&spec, family)
	}
	if shape&16 != 0 {
		spec.Payload = make([]byte, s.next())
	}
	if shape&32 != 0 {
		spec.Fragment = &packet.Fragment{ID: uint32(s.next() & 3), Offset: int(s.next()&3) * 8, More: s.next()&1 != 0}
	}
	if shape&64 != 0 {
		spec.ICMP = s.message(family)
	}
	return s.legOf(spec.Src.Addr()), spec
}

func (s *script) source(family int) netip.Addr {
	if s.far && s.next()&1 != 0 {
		return pick(s, beyond[family], elsewhere(1).addr[family], elsewhere(2).addr[family])
	}
	a := pick(s, s.client.addr[family], s.client.addr[family], outside().addr[family], s.containers[0].addr[family], s.containers[1].addr[family],
		s.host.addr[family], netip.AddrFrom16(s.client.addr[0].As16()), netip.AddrFrom4([4]byte{}), netip.IPv6Unspecified(), vips[family])
	return a
}

func (s *script) destination(family int) netip.Addr {
	return pick(s, vips[family], vips[family], vips2[family], vips3[family], s.containers[0].addr[family], s.client.addr[family],
		outside().addr[family], netip.MustParseAddr("203.0.113.99"), netip.MustParseAddr("ff02::1"), netip.AddrFrom16(vips[0].As16()))
}

// segment gives a TCP packet any flags, and numbers that are near the handshake's.
func (s *script) segment(spec *packet.Spec) {
	spec.Flags = packet.Flags(s.next() & 31)
	spec.Seq = pick[uint32](s, 1000, 1001, backendISN, backendISN+1, 0, 1<<31) + uint32(int8(s.next()))
	spec.Ack = pick[uint32](s, backendISN+1, backendISN, 1001, 1000, 0, 1<<31) + uint32(int8(s.next()))
}

// dress gives a packet what a header can have besides.
func (s *script) dress(spec *packet.Spec, family int) {
	b := s.next()
	spec.TTL, spec.TOS = b&7, b>>2
	if family == 0 {
		spec.Options = make([]byte, int(s.next()&7)*4)
		for i := range spec.Options {
			spec.Options[i] = 1
		}
		if len(spec.Options) > 0 && b&64 != 0 {
			copy(spec.Options, []byte{0x94, 4, 0, 0})
		}
		return
	}
	for range s.next() & 7 {
		e := packet.Extension{Protocol: pick(s, packet.HopByHop, packet.DestinationOptions, packet.Routing), Data: make([]byte, 6)}
		if e.Protocol == packet.Routing {
			e.Data[1] = s.next() & 1 // segments left
		}
		spec.Extensions = append(spec.Extensions, e)
	}
}

// message is a ping, or another message that quotes nothing.
func (s *script) message(family int) *packet.ICMP {
	m := &packet.ICMP{Type: packet.Echo4, Rest: [4]byte{0, s.next()}}
	if family == 1 {
		m.Type = packet.Echo6
	}
	if b := s.next(); b != 0 {
		m.Type, m.Code = b, s.next()&3
	}
	return m
}

// legOf is where packets from an address meet a program.
func (s *script) legOf(from netip.Addr) leg {
	if l, ok := s.legAbroad(from); ok {
		return l
	}
	for _, c := range append(s.containers, s.client) {
		if slices.Contains(c.addr[:], from) {
			return leg{datapath.FromContainer, c}
		}
	}
	if from == s.client.addr[0] {
		return leg{datapath.FromContainer, s.client}
	}
	return leg{datapath.FromHost, s.host}
}

// earlier is an event of before, and the packet that came out of it.
func (s *script) earlier() (*event, packet.Spec, bool) {
	if len(s.done) == 0 {
		return nil, packet.Spec{}, false
	}
	e := &s.done[len(s.done)-1-int(s.next())%len(s.done)]
	spec, _ := packet.Parse(e.out)
	return e, spec, spec.Src.IsValid() && spec.Dst.IsValid()
}

// back is where the answer to an event meets a program.
func (s *script) back(e *event, to netip.Addr) leg {
	if l, ok := s.legAbroad(to); ok {
		return l
	}
	for _, c := range append(s.containers, s.client) {
		if slices.Contains(c.addr[:], to) {
			return leg{datapath.FromContainer, c}
		}
	}
	if e.program == datapath.FromContainer {
		return leg{datapath.ToContainer, e.on}
	}
	return leg{datapath.FromHost, s.host}
}

// answer is the answer to what came out of an event, in good order unless the input says otherwise.
func (s *script) answer() (leg, packet.Spec) {
	e, seen, ok := s.earlier()
	if !ok {
		return s.fresh()
	}
	b := s.next()
	out := reply(seen)
	out.Seq, out.Ack = seen.Ack, seen.Seq+uint32(len(seen.Payload))
	switch {
	case seen.Flags&(packet.SYN|packet.ACK) == packet.SYN:
		out.Flags, out.Seq, out.Ack = packet.SYN|packet.ACK, backendISN, seen.Seq+1
	case seen.Flags&packet.SYN != 0:
		out.Flags, out.Ack = packet.ACK, seen.Seq+1
	}
	if b&1 != 0 {
		out.Flags = packet.Flags(s.next() & 31)
	}
	if b&2 != 0 {
		out.Seq += uint32(int8(s.next()))
	}
	if b&4 != 0 {
		out.Ack += uint32(int8(s.next()))
	}
	if b&8 != 0 {
		out.Payload = make([]byte, s.next())
	}
	if b&16 != 0 {
		out.NoChecksum = !out.NoChecksum
	}
	if b&32 == 0 {
		out.Options, out.Extensions, out.Fragment = nil, nil, nil
	}
	return s.back(e, out.Src.Addr()), out
}

// complaint is an ICMP error about what came out of an event, or went into it.
func (s *script) complaint() (leg, packet.Spec) {
	e, _, ok := s.earlier()
	if !ok {
		return s.fresh()
	}
	b := s.next()
	about := e.out
	if b&1 != 0 {
		about = e.in
	}
	quoted, _ := packet.Parse(about)
	quote := packet.Quote(about, pick(s, 8, 4, 18, 20, -1, 3, 7, 17, 28))
	if !quoted.Src.IsValid() || len(quote) == 0 {
		return s.fresh()
	}
	family := 0
	if quoted.Src.Addr().Is6() {
		family = 1
	}
	m := failures[family][int(s.next())%len(failures[family])]
	m.Quote = quote
	if b&2 != 0 {
		binary.BigEndian.PutUint16(m.Rest[2:], uint16(s.next())*8)
	}
	if b&4 != 0 {
		m.Type = s.next()
	}
	from := quoted.Dst.Addr()
	l := s.back(e, from)
	if b&8 != 0 {
		from = netip.AddrFrom4([4]byte{203, 0, 113, 254})
		if family == 1 {
			from = netip.MustParseAddr("2001:db8:77::fe")
		}
	}
	spec := packet.Spec{Src: netip.AddrPortFrom(from, 0), Dst: netip.AddrPortFrom(quoted.Src.Addr(), 0), ICMP: &m, TTL: 61}
	if b&16 != 0 {
		s.dress(&spec, family)
	}
	return l, spec
}

// fragments cuts a datagram and sends its fragments in some order.
func (s *script) fragments() {
	b := s.next()
	l, spec := s.fresh()
	if b&1 != 0 && len(s.done) > 0 {
		l, spec = s.answer()
	}
	spec.Fragment = nil
	if spec.ICMP == nil || spec.ICMP.Quote == nil {
		spec.Payload = make([]byte, 24+int(s.next()&63))
		for i := range spec.Payload {
			spec.Payload[i] = byte(i) * b
		}
	}
	whole := s.build(l, spec)
	parts, err := packet.Fragments(whole.frame, 24+8*int(b>>1&7), uint32(b>>4&3))
	if err != nil {
		s.queue = append(s.queue, whole)
		return
	}
	parts = parts[:min(len(parts), 4)]
	order := s.next()
	if order&1 != 0 {
		slices.Reverse(parts)
	}
	at := int(order>>1) % len(parts)
	for i := range parts {
		s.queue = append(s.queue, parcel{l, parts[(i+at)%len(parts)]})
	}
}
