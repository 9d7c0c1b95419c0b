// Package packet builds and decodes Ethernet frames, for tests and for explaining what would
// happen to a packet.
//
// A Spec is the few fields that matter to a balancer; Build makes a valid frame of it, with
// right lengths and checksums, and Parse is its inverse. Both are pure.
package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
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
	Src, Dst       netip.AddrPort
	Protocol       lb.Protocol
	Flags          Flags // TCP
	Seq, Ack       uint32
	Payload        []byte
	TTL            uint8 // 0 = 64
	TOS            uint8
	NoChecksum     bool  // UDP over IPv4: checksum zero
	ICMP           *ICMP // only from Parse; the ports of Src and Dst are 0 then
}

// ICMP is an ICMP or ICMPv6 message.
type ICMP struct {
	Type, Code uint8
	Quote      []byte // the packet that an error quotes, from its IP header on
}

// ErrNotFlow is returned by Parse for frames that carry neither TCP nor UDP.
var ErrNotFlow = errors.New("neither TCP nor UDP")

// ChecksumError says which checksum of a frame is wrong.
type ChecksumError struct{ Layer string }

// Error names the layer.
func (e ChecksumError) Error() string { return "wrong checksum: " + e.Layer }

var defaultMACs = [2]net.HardwareAddr{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}

// Build returns the frame.
func (s Spec) Build() ([]byte, error) {
	src, dst := s.SrcMAC, s.DstMAC
	if src == nil {
		src = defaultMACs[0]
	}
	if dst == nil {
		dst = defaultMACs[1]
	}
	eth := &layers.Ethernet{SrcMAC: src, DstMAC: dst, EthernetType: layers.EthernetTypeIPv4}
	var ip gopacket.SerializableLayer
	var network gopacket.NetworkLayer
	ttl := s.TTL
	if ttl == 0 {
		ttl = 64
	}
	if s.Src.Addr().Is4() {
		v4 := &layers.IPv4{Version: 4, TTL: ttl, TOS: s.TOS, Id: 1, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocol(s.Protocol), SrcIP: s.Src.Addr().AsSlice(), DstIP: s.Dst.Addr().AsSlice()}
		ip, network = v4, v4
	} else {
		v6 := &layers.IPv6{Version: 6, HopLimit: ttl, TrafficClass: s.TOS, NextHeader: layers.IPProtocol(s.Protocol), SrcIP: s.Src.Addr().AsSlice(), DstIP: s.Dst.Addr().AsSlice()}
		ip, network = v6, v6
		eth.EthernetType = layers.EthernetTypeIPv6
	}
	l4, err := s.transport(network)
	if err != nil {
		return nil, err
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, eth, ip, l4, gopacket.Payload(s.Payload)); err != nil {
		return nil, fmt.Errorf("serialize packet: %w", err)
	}
	out := buf.Bytes()
	if s.NoChecksum {
		binary.BigEndian.PutUint16(out[14+20+6:], 0)
	}
	return out, nil
}

func (s Spec) transport(network gopacket.NetworkLayer) (gopacket.SerializableLayer, error) {
	switch s.Protocol {
	case lb.TCP:
		tcp := &layers.TCP{
			SrcPort: layers.TCPPort(s.Src.Port()), DstPort: layers.TCPPort(s.Dst.Port()), Seq: s.Seq, Ack: s.Ack, Window: 65535,
			FIN: s.Flags&FIN != 0, SYN: s.Flags&SYN != 0, RST: s.Flags&RST != 0, PSH: s.Flags&PSH != 0, ACK: s.Flags&ACK != 0,
		}
		return tcp, tcp.SetNetworkLayerForChecksum(network)
	case lb.UDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(s.Src.Port()), DstPort: layers.UDPPort(s.Dst.Port())}
		return udp, udp.SetNetworkLayerForChecksum(network)
	}
	return nil, fmt.Errorf("build %v: %w", s.Protocol, ErrNotFlow)
}

// Parse decodes a frame and checks every checksum in it.
func Parse(frame []byte) (Spec, error) {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	// What follows the transport header is nobody's business here, however it looks.
	if e := p.ErrorLayer(); e != nil && p.TransportLayer() == nil {
		return Spec{}, fmt.Errorf("decode frame: %w", e.Error())
	}
	eth, ok := p.LinkLayer().(*layers.Ethernet)
	if !ok || p.NetworkLayer() == nil {
		return Spec{}, ErrNotFlow
	}
	s := Spec{SrcMAC: eth.SrcMAC, DstMAC: eth.DstMAC}
	var src, dst netip.Addr
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		src, _ = netip.AddrFromSlice(ip.SrcIP.To4())
		dst, _ = netip.AddrFromSlice(ip.DstIP.To4())
		s.TTL, s.TOS = ip.TTL, ip.TOS
	case *layers.IPv6:
		src, _ = netip.AddrFromSlice(ip.SrcIP)
		dst, _ = netip.AddrFromSlice(ip.DstIP)
		s.TTL, s.TOS = ip.HopLimit, ip.TrafficClass
	}
	switch l4 := p.TransportLayer().(type) {
	case *layers.TCP:
		s.Protocol, s.Seq, s.Ack, s.Payload = lb.TCP, l4.Seq, l4.Ack, l4.Payload
		for i, on := range []bool{l4.FIN, l4.SYN, l4.RST, l4.PSH, l4.ACK} {
			if on {
				s.Flags |= 1 << i
			}
		}
		s.Src, s.Dst = netip.AddrPortFrom(src, uint16(l4.SrcPort)), netip.AddrPortFrom(dst, uint16(l4.DstPort))
	case *layers.UDP:
		s.Protocol, s.Payload, s.NoChecksum = lb.UDP, l4.Payload, l4.Checksum == 0
		s.Src, s.Dst = netip.AddrPortFrom(src, uint16(l4.SrcPort)), netip.AddrPortFrom(dst, uint16(l4.DstPort))
	default:
		s.Src, s.Dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
		if s.ICMP = parseICMP(p); s.ICMP == nil {
			return s, ErrNotFlow
		}
	}
	return s, verifyChecksums(p)
}

// quoteOffset is what stands between an ICMP error's first four bytes and what it quotes.
const quoteOffset = 4

func parseICMP(p gopacket.Packet) *ICMP {
	if l, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
		return &ICMP{Type: l.TypeCode.Type(), Code: l.TypeCode.Code(), Quote: l.Payload}
	}
	if l, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok && len(l.Payload) >= quoteOffset {
		return &ICMP{Type: l.TypeCode.Type(), Code: l.TypeCode.Code(), Quote: l.Payload[quoteOffset:]}
	}
	return nil
}

func verifyChecksums(p gopacket.Packet) error {
	type summed interface {
		SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
	}
	for _, l := range p.Layers() {
		if l, ok := l.(summed); ok {
			if err := l.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
				return fmt.Errorf("verify checksums: %w", err)
			}
		}
	}
	err, wrong := p.VerifyChecksums()
	if err != nil {
		return fmt.Errorf("verify checksums: %w", err)
	}
	if len(wrong) > 0 {
		return ChecksumError{wrong[0].Layer.LayerType().String()}
	}
	return nil
}

// String tells the packet in one line.
func (s Spec) String() string {
	if s.ICMP != nil {
		return fmt.Sprintf("%s > %s icmp %s -> %s type %d code %d", s.SrcMAC, s.DstMAC, s.Src.Addr(), s.Dst.Addr(), s.ICMP.Type, s.ICMP.Code)
	}
	out := fmt.Sprintf("%s > %s %s %s -> %s", s.SrcMAC, s.DstMAC, s.Protocol, s.Src, s.Dst)
	if s.Protocol == lb.TCP {
		out += fmt.Sprintf(" [%s] seq %d ack %d", s.Flags, s.Seq, s.Ack)
	}
	return fmt.Sprintf("%s len %d ttl %d", out, len(s.Payload), s.TTL)
}
