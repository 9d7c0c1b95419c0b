package packet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket/layers"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

const (
	ipv4Len    = 20
	ipv6Len    = 40
	fragLen    = 8
	maxPacket  = 65535
	fragOffset = 0x1fff // IPv4: in units of 8 bytes
	flagDF     = 0x4000
	flagMF     = 0x2000

	protoICMP     = lb.Protocol(layers.IPProtocolICMPv4)
	protoICMPv6   = lb.Protocol(layers.IPProtocolICMPv6)
	protoFragment = uint8(layers.IPProtocolIPv6Fragment)
)

// The extension headers that Spec.Extensions takes.
const (
	HopByHop           = uint8(layers.IPProtocolIPv6HopByHop)
	Routing            = uint8(layers.IPProtocolIPv6Routing)
	DestinationOptions = uint8(layers.IPProtocolIPv6Destination)
)

// header is an IP header with all that belongs to it, decoded.
type header struct {
	src, dst   netip.Addr
	tos, ttl   uint8
	proto      uint8
	options    []byte
	extensions []Extension
	fragment   *Fragment
	headerSum  bool   // the IPv4 header's checksum is right
	cut        bool   // the packet is longer than the data
	l4Offset   int    // from the IP header on
	fixed      int    // the part that every fragment repeats, IPv6
	nextAt     int    // where the protocol of what follows `fixed` stands, IPv6
	l4         []byte // as far as it is there
}

// walk decodes the headers of a packet down to its transport header.
func walk(data []byte) (header, error) {
	switch {
	case len(data) >= ipv4Len && data[0]>>4 == 4:
		return walk4(data)
	case len(data) >= ipv6Len && data[0]>>4 == 6:
		return walk6(data)
	}
	return header{}, fmt.Errorf("decode IP header: %w", ErrMalformed)
}

func walk4(data []byte) (header, error) {
	src, _ := netip.AddrFromSlice(data[12:16])
	dst, _ := netip.AddrFromSlice(data[16:20])
	h := header{src: src, dst: dst, tos: data[1], ttl: data[8], proto: data[9], l4Offset: int(data[0]&15) * 4}
	total := int(binary.BigEndian.Uint16(data[2:]))
	if h.l4Offset < ipv4Len || h.l4Offset > len(data) || total < h.l4Offset {
		return h, fmt.Errorf("IPv4 header of %d bytes in a packet of %d: %w", h.l4Offset, total, ErrMalformed)
	}
	h.headerSum = checksum(data[:h.l4Offset], 0) == 0
	if h.l4Offset > ipv4Len {
		h.options = slices.Clone(data[ipv4Len:h.l4Offset])
	}
	part := binary.BigEndian.Uint16(data[6:])
	if part&(flagMF|fragOffset) != 0 {
		h.fragment = &Fragment{ID: uint32(binary.BigEndian.Uint16(data[4:])), Offset: int(part&fragOffset) * 8, More: part&flagMF != 0}
	}
	h.cut = total > len(data)
	h.l4 = data[h.l4Offset:min(total, len(data))]
	return h, nil
}

func walk6(data []byte) (header, error) {
	src, _ := netip.AddrFromSlice(data[8:24])
	dst, _ := netip.AddrFromSlice(data[24:40])
	h := header{
		src: src, dst: dst, tos: data[0]<<4 | data[1]>>4, ttl: data[7], proto: data[6],
		headerSum: true, l4Offset: ipv6Len, fixed: ipv6Len, nextAt: 6,
	}
	total := ipv6Len + int(binary.BigEndian.Uint16(data[4:]))
	h.cut = total > len(data)
	data = data[:min(total, len(data))]
	for h.fragment == nil || h.fragment.Offset == 0 {
		size := fragLen
		switch h.proto {
		case HopByHop, Routing, DestinationOptions, protoFragment:
			if len(data) < h.l4Offset+fragLen {
				return h, fmt.Errorf("IPv6 extension header cut: %w", ErrMalformed)
			}
		default:
			h.l4 = data[h.l4Offset:]
			return h, nil
		}
		this := data[h.l4Offset:]
		if h.proto == protoFragment {
			if h.fragment != nil {
				return h, fmt.Errorf("two fragment headers: %w", ErrMalformed)
			}
			part := binary.BigEndian.Uint16(this[2:])
			h.fragment = &Fragment{ID: binary.BigEndian.Uint32(this[4:]), Offset: int(part &^ 7), More: part&1 != 0}
		} else {
			if size = (int(this[1]) + 1) * 8; len(this) < size {
				return h, fmt.Errorf("IPv6 extension header cut: %w", ErrMalformed)
			}
			h.extensions = append(h.extensions, Extension{Protocol: h.proto, Data: slices.Clone(this[2:size])})
		}
		if h.fragment == nil && (h.proto == HopByHop || h.proto == Routing) {
			h.fixed, h.nextAt = h.l4Offset+size, h.l4Offset
		}
		h.proto, h.l4Offset = this[0], h.l4Offset+size
	}
	h.l4 = data[h.l4Offset:]
	return h, nil
}

// verify checks the transport checksum of a whole packet.
func (h header) verify(s Spec) error {
	if s.Protocol == lb.UDP && s.NoChecksum {
		if h.src.Is4() {
			return nil
		}
		return ChecksumError{"UDP"} // RFC 8200 8.1
	}
	var sum uint32
	if s.Protocol != protoICMP {
		sum = pseudo(h.src, h.dst, h.proto, len(h.l4))
	}
	data := h.l4
	if s.Protocol == lb.UDP {
		data = data[:udpLen+len(s.Payload)]
		sum = pseudo(h.src, h.dst, h.proto, len(data))
	}
	if checksum(data, sum) != 0 {
		return ChecksumError{map[lb.Protocol]string{lb.TCP: "TCP", lb.UDP: "UDP", protoICMP: "ICMP", protoICMPv6: "ICMPv6"}[s.Protocol]}
	}
	return nil
}

// ipHeader builds the IP header with options or extension headers, for l4 bytes behind it.
func (s Spec) ipHeader(l4 int) ([]byte, uint16, error) {
	ttl := s.TTL
	if ttl == 0 {
		ttl = 64
	}
	if s.Src.Addr().Is4() != s.Dst.Addr().Is4() {
		return nil, 0, fmt.Errorf("build %s -> %s: two families", s.Src.Addr(), s.Dst.Addr())
	}
	proto := uint8(s.Protocol)
	if s.Src.Addr().Is4() {
		if s.ICMP != nil {
			proto = uint8(protoICMP)
		}
		h, err := s.header4(ttl, proto, l4)
		return h, uint16(layers.EthernetTypeIPv4), err
	}
	if s.ICMP != nil {
		proto = uint8(protoICMPv6)
	}
	h, err := s.header6(ttl, proto, l4)
	return h, uint16(layers.EthernetTypeIPv6), err
}

func (s Spec) header4(ttl, proto uint8, l4 int) ([]byte, error) {
	size := ipv4Len + len(s.Options)
	if len(s.Options)%4 != 0 || len(s.Options) > 40 || size+l4 > maxPacket {
		return nil, fmt.Errorf("build IPv4 header with %d bytes of options and %d behind it: %w", len(s.Options), l4, ErrMalformed)
	}
	h := make([]byte, size)
	h[0], h[1], h[8], h[9] = 0x40|byte(size/4), s.TOS, ttl, proto
	binary.BigEndian.PutUint16(h[2:], uint16(size+l4))
	id, part := uint32(1), uint16(flagDF)
	if f := s.Fragment; f != nil {
		id, part = f.ID, uint16(f.Offset/8)
		if f.More {
			part |= flagMF
		}
	}
	binary.BigEndian.PutUint16(h[4:], uint16(id))
	binary.BigEndian.PutUint16(h[6:], part)
	copy(h[12:], s.Src.Addr().AsSlice())
	copy(h[16:], s.Dst.Addr().AsSlice())
	copy(h[ipv4Len:], s.Options)
	binary.BigEndian.PutUint16(h[10:], checksum(h, 0))
	return h, nil
}

func (s Spec) header6(ttl, proto uint8, l4 int) ([]byte, error) {
	h := make([]byte, ipv6Len)
	h[0], h[1], h[7] = 0x60|s.TOS>>4, s.TOS<<4, ttl
	copy(h[8:], s.Src.Addr().AsSlice())
	copy(h[24:], s.Dst.Addr().AsSlice())
	next := 6
	for _, e := range s.Extensions {
		h[next], next = e.Protocol, len(h)
		size := (2 + len(e.Data) + 7) / 8 * 8
		this := append([]byte{0, byte(size/8 - 1)}, e.Data...)
		h = append(h, append(this, make([]byte, size-len(this))...)...)
	}
	if f := s.Fragment; f != nil {
		h[next], next = protoFragment, len(h)
		h = append(h, fragmentHeader(*f)...)
	}
	h[next] = proto
	if len(h)-ipv6Len+l4 > maxPacket {
		return nil, fmt.Errorf("build IPv6 packet of %d bytes: %w", len(h)+l4, ErrMalformed)
	}
	binary.BigEndian.PutUint16(h[4:], uint16(len(h)-ipv6Len+l4))
	return h, nil
}

// fragmentHeader builds the IPv6 fragment header, its next header left 0.
func fragmentHeader(f Fragment) []byte {
	part := uint16(f.Offset)
	if f.More {
		part |= 1
	}
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16([]byte{0, 0}, part), f.ID)
}

// pseudo sums the pseudo-header.
func pseudo(src, dst netip.Addr, proto uint8, length int) uint32 {
	sum := uint32(proto) + uint32(length)
	for _, a := range []netip.Addr{src, dst} {
		b := a.AsSlice()
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	return sum
}

// checksum returns the Internet checksum of data after sum; 0 over data that holds a right one.
func checksum(data []byte, sum uint32) uint16 {
	for ; len(data) >= 2; data = data[2:] {
		sum += uint32(binary.BigEndian.Uint16(data))
	}
	if len(data) == 1 {
		sum += uint32(data[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
