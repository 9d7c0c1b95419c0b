package trunk

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/proxy/internal/neighbour"
)

// What a solicitation is made of.
const (
	neighbourSolicit = 135
	sourceMAC        = 1 // option
)

// frame returns a question as it is on the wire, its tag in it.
func (q Question) frame() []byte {
	if q.Target.Is4() {
		return q.arp()
	}
	return q.solicitation()
}

// arp returns a request. Who has no address there asks as nobody (RFC 5227).
func (q Question) arp() []byte {
	to, source := q.To, q.Source
	if to == [6]byte{} {
		to = neighbour.Everybody
	}
	if !source.Is4() {
		source = netip.IPv4Unspecified()
	}
	return neighbour.ARP(neighbour.Ethernet(to, q.MAC, q.ID, unix.ETH_P_ARP), q.MAC, source, q.Target)
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
	message := []byte{neighbourSolicit, 0, 0, 0, 0, 0, 0, 0}
	message = append(message, target[:]...)
	message = append(message, sourceMAC, 1)
	message = append(message, q.MAC[:]...)
	return neighbour.ICMPv6(neighbour.Ethernet(to, q.MAC, q.ID, unix.ETH_P_IPV6), source, group, message)
}

// linkLocal returns the address of a link that belongs to a MAC address (RFC 4291, appendix A).
func linkLocal(mac [6]byte) [16]byte {
	return [16]byte{0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}
}
