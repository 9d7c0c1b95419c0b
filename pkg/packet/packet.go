// Package packet builds and decodes Ethernet frames, for tests and for explaining what would
// happen to a packet.
//
// A Spec is the few fields that matter to a balancer; Build makes a valid frame of it, with
// right lengths and checksums, and Parse is its inverse. Fragments cuts a frame into fragments,
// Reassemble is its inverse; Quote cuts from a frame what an ICMP error carries. All are pure.
package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Flags are TCP flags.
type Flags uint8

// The TCP flags that matter here.
const (
	FIN Flags = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// String lists the flags, "SYN|ACK".
func (f Flags) String() string {
	var out []string
	for i, n := range []string{"FIN", "SYN", "RST", "PSH", "ACK"} {
		if f&(1<<i) != 0 {
			out = append(out, n)
		}
	}
	return strings.Join(out, "|")
}

// Spec says what a frame carries. Source and destination are of one family.
type Spec struct {
	SrcMAC, DstMAC net.HardwareAddr // nil = 02:00:00:00:00:01 and ...:02
	Src, Dst       netip.AddrPort   // without ports: 0
	Protocol       lb.Protocol      // ignored by Build if ICMP is set
	Flags          Flags            // TCP
	Seq, Ack       uint32
	Payload        []byte // of a later fragment: all that it carries
	TTL            uint8  // 0 = 64
	TOS            uint8
	NoChecksum     bool        // UDP over IPv4: checksum zero
	ICMP           *ICMP       // the message, if it is one; Payload is then the data of an echo
	Options        []byte      // IPv4, a multiple of four bytes
	Extensions     []Extension // IPv6, before the fragment header if there is one
	Fragment       *Fragment   // the frame is a fragment
}

// Extension is an IPv6 extension header: hop-by-hop options, routing or destination options.
type Extension struct {
	Protocol uint8
	Data     []byte // without next header and length; Build fills it up to 6 + 8*n bytes with zeros
}

// Fragment says which part of its packet a frame is. In IPv6, offset 0 without More is an atomic
// fragment: a whole packet with a fragment header.
type Fragment struct {
	ID     uint32
	Offset int // bytes
	More   bool
}

// Errors of Parse, to be tested with errors.Is.
var (
	// ErrNotFlow: the frame carries neither TCP nor UDP nor ICMP.
	ErrNotFlow = errors.New("neither TCP nor UDP nor ICMP")
	// ErrMalformed: a length does not fit, or a header is cut.
	ErrMalformed = errors.New("malformed")
)

// ChecksumError says which checksum of a frame is wrong.
type ChecksumError struct{ Layer string }

// Error names the layer.
func (e ChecksumError) Error() string { return "wrong checksum: " + e.Layer }

var defaultMACs = [2]net.HardwareAddr{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}

const (
	ethernetLen = 14
	minFrame    = 60
)

// Build returns the frame.
func (s Spec) Build() ([]byte, error) {
	src, dst := s.SrcMAC, s.DstMAC
	if src == nil {
		src = defaultMACs[0]
	}
	if dst == nil {
		dst = defaultMACs[1]
	}
	l4, err := s.transport()
	if err != nil {
		return nil, err
	}
	ip, ethertype, err := s.ipHeader(len(l4))
	if err != nil {
		return nil, err
	}
	out := slices.Concat(dst, src, binary.BigEndian.AppendUint16(nil, ethertype), ip, l4)
	if len(out) < minFrame {
		out = append(out, make([]byte, minFrame-len(out))...)
	}
	return out, nil
}

// transport builds what follows the IP header.
func (s Spec) transport() ([]byte, error) {
	if s.Fragment != nil && s.Fragment.Offset > 0 {
		return s.Payload, nil
	}
	if s.ICMP != nil {
		return s.icmp(), nil
	}
	var l4 gopacket.SerializableLayer
	var summed interface {
		SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
	}
	switch s.Protocol {
	case lb.TCP:
		tcp := &layers.TCP{
			SrcPort: layers.TCPPort(s.Src.Port()), DstPort: layers.TCPPort(s.Dst.Port()), Seq: s.Seq, Ack: s.Ack, Window: 65535,
			FIN: s.Flags&FIN != 0, SYN: s.Flags&SYN != 0, RST: s.Flags&RST != 0, PSH: s.Flags&PSH != 0, ACK: s.Flags&ACK != 0,
		}
		l4, summed = tcp, tcp
	case lb.UDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(s.Src.Port()), DstPort: layers.UDPPort(s.Dst.Port())}
		l4, summed = udp, udp
	default:
		return nil, fmt.Errorf("build %v: %w", s.Protocol, ErrNotFlow)
	}
	var network gopacket.NetworkLayer = &layers.IPv6{SrcIP: s.Src.Addr().AsSlice(), DstIP: s.Dst.Addr().AsSlice()}
	if s.Src.Addr().Is4() {
		network = &layers.IPv4{SrcIP: s.Src.Addr().AsSlice(), DstIP: s.Dst.Addr().AsSlice()}
	}
	if err := summed.SetNetworkLayerForChecksum(network); err != nil {
		return nil, fmt.Errorf("build %v: %w", s.Protocol, err)
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, l4, gopacket.Payload(s.Payload)); err != nil {
		return nil, fmt.Errorf("serialize packet: %w", err)
	}
	out := buf.Bytes()
	if s.NoChecksum && s.Protocol == lb.UDP {
		binary.BigEndian.PutUint16(out[6:], 0)
	}
	return out, nil
}

// Parse decodes a frame and checks every checksum in it that can be checked: those of fragments
// and of what ICMP errors quote cannot be where a part is missing.
//
// With a ChecksumError and with ErrNotFlow, the Spec says what could be read.
func Parse(frame []byte) (Spec, error) {
	if len(frame) < ethernetLen {
		return Spec{}, fmt.Errorf("decode Ethernet header: %w", ErrMalformed)
	}
	switch layers.EthernetType(binary.BigEndian.Uint16(frame[12:])) {
	case layers.EthernetTypeIPv4, layers.EthernetTypeIPv6:
	default:
		return Spec{}, ErrNotFlow
	}
	s, err := parsePacket(frame[ethernetLen:], false)
	s.DstMAC, s.SrcMAC = slices.Clone(frame[:6]), slices.Clone(frame[6:12])
	return s, err
}

// parsePacket decodes from the IP header on. What is quoted may be cut anywhere behind it.
func parsePacket(data []byte, quoted bool) (Spec, error) {
	h, err := walk(data)
	if err != nil {
		return Spec{}, err
	}
	s := Spec{
		Src: netip.AddrPortFrom(h.src, 0), Dst: netip.AddrPortFrom(h.dst, 0), Protocol: lb.Protocol(h.proto),
		TTL: h.ttl, TOS: h.tos, Options: h.options, Extensions: h.extensions, Fragment: h.fragment,
	}
	if h.cut && !quoted {
		return s, fmt.Errorf("packet longer than its frame: %w", ErrMalformed)
	}
	whole := !h.cut && (s.Fragment == nil || !s.Fragment.More)
	if s.Fragment != nil && s.Fragment.Offset > 0 {
		s.Payload, whole = h.l4, false
	} else {
		err = s.parseTransport(h.l4, whole)
	}
	if err == nil && !h.headerSum {
		err = ChecksumError{"IPv4"}
	}
	if err == nil && whole {
		err = h.verify(s)
	}
	if err == nil && s.ICMP != nil && s.ICMP.IsError(h.src.Is4()) {
		err = s.ICMP.parseQuote()
	}
	return s, err
}

const (
	tcpLen = 20
	udpLen = 8
)

// parseTransport decodes ports and what follows: of a packet that is not whole, as far as it is there.
func (s *Spec) parseTransport(l4 []byte, whole bool) error {
	if s.Protocol == protoICMP && s.Src.Addr().Is4() || s.Protocol == protoICMPv6 && s.Src.Addr().Is6() {
		return s.parseICMP(l4, whole)
	}
	if s.Protocol != lb.TCP && s.Protocol != lb.UDP {
		s.Payload = l4
		return ErrNotFlow
	}
	want := udpLen
	if s.Protocol == lb.TCP {
		want = tcpLen
	}
	if len(l4) < 4 || whole && len(l4) < want {
		return fmt.Errorf("%v header cut: %w", s.Protocol, ErrMalformed)
	}
	s.Src = netip.AddrPortFrom(s.Src.Addr(), binary.BigEndian.Uint16(l4))
	s.Dst = netip.AddrPortFrom(s.Dst.Addr(), binary.BigEndian.Uint16(l4[2:]))
	if s.Protocol == lb.TCP {
		return s.parseTCP(l4)
	}
	if len(l4) < udpLen {
		return nil
	}
	s.NoChecksum, s.Payload = binary.BigEndian.Uint16(l4[6:]) == 0, l4[udpLen:]
	length := int(binary.BigEndian.Uint16(l4[4:]))
	if length < udpLen || whole && length > len(l4) {
		return fmt.Errorf("UDP length %d: %w", length, ErrMalformed)
	}
	if whole {
		s.Payload = l4[udpLen:length]
	}
	return nil
}

func (s *Spec) parseTCP(l4 []byte) error {
	if len(l4) >= 8 {
		s.Seq = binary.BigEndian.Uint32(l4[4:])
	}
	if len(l4) < tcpLen {
		return nil
	}
	s.Ack, s.Flags = binary.BigEndian.Uint32(l4[8:]), Flags(l4[13])&(FIN|SYN|RST|PSH|ACK)
	offset := int(l4[12]>>4) * 4
	if offset < tcpLen || offset > len(l4) {
		return fmt.Errorf("TCP data offset %d: %w", offset, ErrMalformed)
	}
	s.Payload = l4[offset:]
	return nil
}

// String tells the packet in one line.
func (s Spec) String() string {
	out := fmt.Sprintf("%s > %s ", s.SrcMAC, s.DstMAC)
	if s.ICMP != nil {
		out += fmt.Sprintf("icmp %s -> %s %v", s.Src.Addr(), s.Dst.Addr(), s.ICMP)
	} else {
		out += fmt.Sprintf("%s %s -> %s", s.Protocol, s.Src, s.Dst)
	}
	if s.Protocol == lb.TCP {
		out += fmt.Sprintf(" [%s] seq %d ack %d", s.Flags, s.Seq, s.Ack)
	}
	if s.Fragment != nil {
		out += fmt.Sprintf(" fragment %+v", *s.Fragment)
	}
	return fmt.Sprintf("%s len %d ttl %d", out, len(s.Payload), s.TTL)
}
