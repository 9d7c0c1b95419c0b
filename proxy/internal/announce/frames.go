package announce

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/proxy/internal/neighbour"
)

// What an advertisement is made of.
const (
	neighbourAdvert = 136
	overrideFlag    = 0x20
	targetMAC       = 2 // option
)

var (
	everybody6   = [6]byte{0x33, 0x33, 0, 0, 0, 1}
	allNodesIPv6 = netip.MustParseAddr("ff02::1")
)

// arp returns an ARP announcement (RFC 5227, 3): a request for the address, by its owner.
func arp(mac [6]byte, vip netip.Addr) []byte {
	return neighbour.ARP(neighbour.Ethernet(neighbour.Everybody, mac, 0, unix.ETH_P_ARP), mac, vip, vip)
}

// advertisement returns an unsolicited neighbour advertisement (RFC 4861, 7.2.6).
func advertisement(mac [6]byte, vip netip.Addr) []byte {
	message := []byte{neighbourAdvert, 0, 0, 0, overrideFlag, 0, 0, 0}
	message = append(message, vip.AsSlice()...)
	message = append(message, targetMAC, 1)
	message = append(message, mac[:]...)
	return neighbour.ICMPv6(neighbour.Ethernet(everybody6, mac, 0, unix.ETH_P_IPV6), vip.As16(), allNodesIPv6.As16(), message)
}
