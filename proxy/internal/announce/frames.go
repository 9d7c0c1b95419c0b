package announce

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// What frames are made of.
const (
	arpRequest      = 1
	icmpv6          = 58
	neighbourAdvert = 136
	overrideFlag    = 0x20
	targetMAC       = 2 // option of an advertisement
	maxHops         = 255
)

var (
	everybody    = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	everybody6   = [6]byte{0x33, 0x33, 0, 0, 0, 1}
	allNodesIPv6 = netip.MustParseAddr("ff02::1")
)

func ethernet(to, from [6]byte, kind uint16) []byte {
	out := append(to[:len(to):len(to)], from[:]...)
	return binary.BigEndian.AppendUint16(out, kind)
}

// arp returns an ARP announcement (RFC 5227, 3): a request for the address, by its owner.
func arp(mac [6]byte, vip netip.Addr) []byte {
	out := ethernet(everybody, mac, unix.ETH_P_ARP)
	out = binary.BigEndian.AppendUint16(out, unix.ARPHRD_ETHER)
	out = binary.BigEndian.AppendUint16(out, unix.ETH_P_IP)
	out = append(out, 6, 4)
	out = binary.BigEndian.AppendUint16(out, arpRequest)
	out = append(out, mac[:]...)
	out = append(out, vip.AsSlice()...)
	out = append(out, make([]byte, 6)...)
	return append(out, vip.AsSlice()...)
}

// advertisement returns an unsolicited neighbour advertisement (RFC 4861, 7.2.6).
func advertisement(mac [6]byte, vip netip.Addr) []byte {
	body := []byte{neighbourAdvert, 0, 0, 0, overrideFlag, 0, 0, 0}
	body = append(body, vip.AsSlice()...)
	body = append(body, targetMAC, 1)
	body = append(body, mac[:]...)
	source, to := vip.As16(), allNodesIPv6.As16()
	binary.BigEndian.PutUint16(body[2:], checksum(source, to, body))

	out := ethernet(everybody6, mac, unix.ETH_P_IPV6)
	out = append(out, 0x60, 0, 0, 0)
	out = binary.BigEndian.AppendUint16(out, uint16(len(body)))
	out = append(out, icmpv6, maxHops)
	out = append(out, source[:]...)
	out = append(out, to[:]...)
	return append(out, body...)
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
