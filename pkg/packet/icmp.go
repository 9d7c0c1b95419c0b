package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/gopacket/gopacket/layers"
)

// ICMP is an ICMP or ICMPv6 message.
type ICMP struct {
	Type, Code uint8
	Rest       [4]byte // what follows the checksum: the MTU of an error, identifier and number of an echo
	Quote      []byte  // the packet that an error quotes, from its IP header on
	Inner      *Spec   // the quote decoded, by Parse, as far as it goes; without MACs
}

// The types of messages that matter to a balancer.
const (
	Unreachable4  = uint8(layers.ICMPv4TypeDestinationUnreachable)
	TimeExceeded4 = uint8(layers.ICMPv4TypeTimeExceeded)
	BadHeader4    = uint8(layers.ICMPv4TypeParameterProblem)
	Redirect4     = uint8(layers.ICMPv4TypeRedirect)
	Echo4         = uint8(layers.ICMPv4TypeEchoRequest)
	EchoReply4    = uint8(layers.ICMPv4TypeEchoReply)

	Unreachable6  = uint8(layers.ICMPv6TypeDestinationUnreachable)
	TooBig6       = uint8(layers.ICMPv6TypePacketTooBig)
	TimeExceeded6 = uint8(layers.ICMPv6TypeTimeExceeded)
	BadHeader6    = uint8(layers.ICMPv6TypeParameterProblem)
	Redirect6     = uint8(layers.ICMPv6TypeRedirect)
	Echo6         = uint8(layers.ICMPv6TypeEchoRequest)
	EchoReply6    = uint8(layers.ICMPv6TypeEchoReply)

	CodeFragNeeded4 = uint8(layers.ICMPv4CodeFragmentationNeeded)
	CodePort4       = uint8(layers.ICMPv4CodePort)
	CodePort6       = uint8(layers.ICMPv6CodePortUnreachable)
)

const icmpLen = 8

// IsError says whether the message quotes a packet. An IPv6 redirect quotes in an option: it
// does not count.
func (m *ICMP) IsError(ipv4 bool) bool {
	if !ipv4 {
		return m.Type < 128
	}
	switch m.Type {
	case Unreachable4, TimeExceeded4, BadHeader4, Redirect4, uint8(layers.ICMPv4TypeSourceQuench):
		return true
	}
	return false
}

// FragNeeded returns the message that says that a packet does not fit: quote is of the packet.
func FragNeeded(quote []byte, mtu uint32) *ICMP {
	m := &ICMP{Type: TooBig6, Quote: quote}
	if len(quote) > 0 && quote[0]>>4 == 4 {
		m.Type, m.Code = Unreachable4, CodeFragNeeded4
	}
	binary.BigEndian.PutUint32(m.Rest[:], mtu)
	return m
}

// Quote returns the packet of a frame as an ICMP error quotes it: IP header with options or
// extension headers and the first l4Bytes bytes that follow, all of them if l4Bytes is negative.
// A frame without an IP header gives nil.
func Quote(frame []byte, l4Bytes int) []byte {
	if len(frame) < ethernetLen {
		return nil
	}
	h, err := walk(frame[ethernetLen:])
	if err != nil {
		return nil
	}
	if l4Bytes < 0 || l4Bytes > len(h.l4) {
		l4Bytes = len(h.l4)
	}
	return slices.Clone(frame[ethernetLen : ethernetLen+h.l4Offset+l4Bytes])
}

// String tells the message in one line.
func (m *ICMP) String() string {
	out := fmt.Sprintf("type %d code %d rest %x", m.Type, m.Code, m.Rest)
	if m.Inner != nil {
		out += fmt.Sprintf(" quotes (%v)", *m.Inner)
	}
	return out
}

// icmp builds the message.
func (s Spec) icmp() []byte {
	out := slices.Concat([]byte{s.ICMP.Type, s.ICMP.Code, 0, 0}, s.ICMP.Rest[:], s.ICMP.Quote, s.Payload)
	var sum uint32
	if !s.Src.Addr().Is4() {
		sum = pseudo(s.Src.Addr(), s.Dst.Addr(), uint8(protoICMPv6), len(out))
	}
	binary.BigEndian.PutUint16(out[2:], checksum(out, sum))
	return out
}

func (s *Spec) parseICMP(l4 []byte, whole bool) error {
	if len(l4) < icmpLen {
		if !whole {
			return nil
		}
		return fmt.Errorf("ICMP header cut: %w", ErrMalformed)
	}
	m := &ICMP{Type: l4[0], Code: l4[1], Rest: [4]byte(l4[4:8])}
	if m.IsError(s.Src.Addr().Is4()) {
		m.Quote = l4[icmpLen:]
	} else {
		s.Payload = l4[icmpLen:]
	}
	s.ICMP = m
	return nil
}

// parseQuote decodes the quote. One that is too short to be read, or of something else than a flow, is
// no error: only a checksum in it that is wrong is.
func (m *ICMP) parseQuote() error {
	inner, err := parsePacket(m.Quote, true)
	if inner.Src.IsValid() {
		m.Inner = &inner
	}
	var sum ChecksumError
	if errors.As(err, &sum) {
		return ChecksumError{"quoted " + sum.Layer}
	}
	return nil
}
