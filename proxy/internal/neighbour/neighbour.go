// Package neighbour builds the frames by which hosts on a link find each other: ARP requests, and the
// messages of IPv6's neighbour discovery. What is in them, and when they are sent, is the callers'.
package neighbour

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Everybody is the MAC address that all of a link listen to.
var Everybody = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

const (
	arpRequest = 1
	icmpv6     = 58
	maxHops    = 255 // a router would have lowered it: the sender is on the link
)

// Ethernet begins a frame, with an 802.1Q tag unless that is 0.
func Ethernet(to, from [6]byte, tag, kind uint16) []byte {
	out := slices.Concat(to[:], from[:])
	if tag != 0 {
		out = binary.BigEndian.AppendUint16(out, unix.ETH_P_8021Q)
		out = binary.BigEndian.AppendUint16(out, tag)
	}
	return binary.BigEndian.AppendUint16(out, kind)
}

// ARP ends a frame as a request for target, an IPv4 address, by a host with a MAC address and an IPv4 address (RFC 826).
func ARP(frame []byte, mac [6]byte, sender, target netip.Addr) []byte {
	frame = binary.BigEndian.AppendUint16(frame, unix.ARPHRD_ETHER)
	frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IP)
	frame = append(frame, 6, 4)
	frame = binary.BigEndian.AppendUint16(frame, arpRequest)
	frame = append(frame, mac[:]...)
	frame = append(frame, sender.AsSlice()...)
	frame = append(frame, make([]byte, 6)...)
	return append(frame, target.AsSlice()...)
}

// ICMPv6 ends a frame as a message of neighbour discovery (RFC 4861) between two IPv6 addresses. The message has an even
// length and room for its checksum, which is filled in.
func ICMPv6(frame []byte, from, to [16]byte, message []byte) []byte {
	binary.BigEndian.PutUint16(message[2:], checksum(from, to, message))
	frame = append(frame, 0x60, 0, 0, 0)
	frame = binary.BigEndian.AppendUint16(frame, uint16(len(message)))
	frame = append(frame, icmpv6, maxHops)
	frame = append(frame, from[:]...)
	frame = append(frame, to[:]...)
	return append(frame, message...)
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
