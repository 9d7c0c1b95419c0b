package trunk

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// What frames are made of.
const (
	arpRequest       = 1
	icmpv6           = 58
	neighbourSolicit = 135
	sourceMAC        = 1 // option of a solicitation
	maxHops          = 255
)

var everybody = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// frame returns a question as it is on the wire, its tag in it.
func (q Question) frame() []byte {
	if q.Target.Is4() {
		return q.arp()
	}
	return q.solicitation()
}

// ethernet begins a tagged frame.
func (q Question) ethernet(to [6]byte, kind uint16) []byte {
	out := slices.Concat(to[:], q.MAC[:])
	out = binary.BigEndian.AppendUint16(out, unix.ETH_P_8021Q)
	out = binary.BigEndian.AppendUint16(out, q.ID)
	return binary.BigEndian.AppendUint16(out, kind)
}

// arp returns a request. Who has no address there asks as nobody (RFC 5227).
func (q Question) arp() []byte {
	to, source := q.To, q.Source
	if to == [6]byte{} {
		to = everybody
	}
	if !source.Is4() {
		source = netip.IPv4Unspecified()
	}
	out := q.ethernet(to, unix.ETH_P_ARP)
	out = binary.BigEndian.AppendUint16(out, unix.ARPHRD_ETHER)
	out = binary.BigEndian.AppendUint16(out, unix.ETH_P_IP)
	out = append(out, 6, 4)
	out = binary.BigEndian.AppendUint16(out, arpRequest)
	out = append(out, q.MAC[:]...)
	out = append(out, source.AsSlice()...)
	out = append(out, make([]byte, 6)...)
	return append(out, q.Target.AsSlice()...)
}

// solicitation returns a neighbour solicitation. Who has no address there asks under its MAC's own: a question
// of nobody is one about a new address, and answered to all.
func (q Question) solicitation() []byte {
	target := q.Target.As16()
	to, group := q.To, [16]byte{0xff, 2, 11: 1, 12: 0xff, 13: target[13], 14: target[14], 15: target[15]}
	if to == [6]byte{} {
		to = [6]byte{0x33, 0x33, 0xff, target[13], target[14], target[15]}
	} else {
		group = target
	}
	source := linkLocal(q.MAC)
	if q.Source.Is6() {
		source = q.Source.As16()
	}
	body := []byte{neighbourSolicit, 0, 0, 0, 0, 0, 0, 0}
	body = append(body, target[:]...)
	body = append(body, sourceMAC, 1)
	body = append(body, q.MAC[:]...)
	binary.BigEndian.PutUint16(body[2:], checksum(source, group, body))

	out := q.ethernet(to, unix.ETH_P_IPV6)
	out = append(out, 0x60, 0, 0, 0)
	out = binary.BigEndian.AppendUint16(out, uint16(len(body)))
	out = append(out, icmpv6, maxHops)
	out = append(out, source[:]...)
	out = append(out, group[:]...)
	return append(out, body...)
}

// linkLocal returns the address of a link that belongs to a MAC address (RFC 4291, appendix A).
func linkLocal(mac [6]byte) [16]byte {
	return [16]byte{0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}
}

// checksum is that of an ICMPv6 message, of even length, between two addresses.
func checksum(source, to [16]byte, body []byte) uint16 {
	sum := uint32(len(body)) + icmpv6
	for _, part := range [...][]byte{source[:], to[:], body} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
