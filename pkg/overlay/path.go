package overlay

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What a tunnelled packet is wrapped in: Ethernet, VXLAN, UDP and IP.
const (
	overhead4 = 14 + 8 + 8 + 20
	overhead6 = 14 + 8 + 8 + 40
)

// Overhead returns by how much a packet grows on the way to a node with that underlay address.
func Overhead(peer netip.Addr) int {
	if peer.Is4() {
		return overhead4
	}
	return overhead6
}

// Path is the way to another node.
type Path struct {
	MTU    int  // the largest packet of the underlay that is known to get there
	OnLink bool // without a router in between
	Device int  // index of the device that it leaves by
}

// Local says whether an address is one of this host's.
func Local(address netip.Addr) bool {
	routes, err := netlink.RouteGet(address.AsSlice())
	return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
}

// PathTo returns the way from one underlay address to another as the kernel sees it now: what ICMP
// told it of smaller links on the way is in the MTU. An invalid source stands for any.
func PathTo(source, peer netip.Addr) (Path, error) {
	var o netlink.RouteGetOptions
	if source.IsValid() && source.Is4() == peer.Is4() {
		o.SrcAddr = source.AsSlice()
	}
	routes, err := netlink.RouteGetWithOptions(peer.AsSlice(), &o)
	if err == nil && len(routes) == 0 {
		err = fmt.Errorf("no route")
	}
	if err != nil {
		return Path{}, fmt.Errorf("find the way to %s: %w", peer, err)
	}
	r := &routes[0]
	p := Path{MTU: r.MTU, OnLink: r.Gw == nil && r.Via == nil, Device: r.LinkIndex}
	if p.MTU == 0 {
		device, err := net.InterfaceByIndex(r.LinkIndex)
		if err != nil {
			return Path{}, fmt.Errorf("find the device to %s: %w", peer, err)
		}
		p.MTU = device.MTU
	}
	return p, nil
}
