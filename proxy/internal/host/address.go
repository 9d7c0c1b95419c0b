package host

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// defaultMTU is what routes get where the address's device has no useful one.
const defaultMTU = 1500

// Addresses returns this node's address of each family: of the default route's source, else the first
// global one, else the first of any device that is up and no loopback. A node may have none.
func Addresses() ([2]netip.Addr, error) {
	var out [2]netip.Addr
	candidates, err := addresses()
	if err != nil {
		return out, err
	}
	for family := range families {
		if a, ok := defaultSource(family, candidates); ok {
			out[family] = a
			continue
		}
		for _, c := range candidates {
			if familyOf(c.address) != family {
				continue
			}
			if !out[family].IsValid() || c.global && !globalIn(candidates, out[family]) {
				out[family] = c.address
			}
		}
	}
	return out, nil
}

// candidate is an address that could be the node's.
type candidate struct {
	address netip.Addr
	ifindex int
	global  bool
}

func globalIn(candidates []candidate, a netip.Addr) bool {
	return slices.ContainsFunc(candidates, func(c candidate) bool { return c.address == a && c.global })
}

// unusable are addresses that the kernel refuses as a source: not checked for duplicates yet, as on
// a bridge that has just been made, or found to be one.
const unusable = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED

// addresses lists those of devices that are up, in the order of the devices.
func addresses() ([]candidate, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	all, err := netlinksafe.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []candidate
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || strings.HasPrefix(i.Name, "tclb") {
			continue
		}
		for _, a := range all {
			ip, _ := netip.AddrFromSlice(a.IP)
			ip = ip.Unmap()
			if a.LinkIndex != i.Index || a.Flags&unusable != 0 || ip.Is6() && ip.IsLinkLocalUnicast() {
				continue // a link-local one is of no use without a device
			}
			out = append(out, candidate{ip, i.Index, ip.IsGlobalUnicast()})
		}
	}
	return out, nil
}

// defaultSource returns the source of packets that take the default route.
func defaultSource(family int, candidates []candidate) (netip.Addr, bool) {
	routes, err := netlinksafe.RouteListFiltered(families[family], &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return netip.Addr{}, false
	}
	best := -1
	for i := range routes {
		r := &routes[i]
		if prefixOf(r, family).Bits() == 0 && r.Type == unix.RTN_UNICAST && (best < 0 || r.Priority < routes[best].Priority) {
			best = i
		}
	}
	if best < 0 {
		return netip.Addr{}, false
	}
	r := &routes[best]
	if src, ok := netip.AddrFromSlice(r.Src); ok {
		return src.Unmap(), true
	}
	device := r.LinkIndex
	if device == 0 && len(r.MultiPath) > 0 {
		device = r.MultiPath[0].LinkIndex
	}
	for _, c := range candidates {
		if c.ifindex == device && familyOf(c.address) == family {
			return c.address, true
		}
	}
	return netip.Addr{}, false
}

// underlayMTU returns the MTU of the device that has an address: what the host may send.
func underlayMTU(address netip.Addr) int {
	candidates, err := addresses()
	if err != nil {
		return defaultMTU
	}
	for _, c := range candidates {
		if c.address != address {
			continue
		}
		if i, err := net.InterfaceByIndex(c.ifindex); err == nil && i.MTU >= 1280 {
			return i.MTU
		}
	}
	return defaultMTU
}

// eventBuffer has room for the routes of a few thousand VIPs, whose events come to ourselves as well.
const eventBuffer = 4 << 20

// Watch calls changed when addresses, routes or devices of this namespace change, until ctx ends. It
// returns an error when events were lost.
func Watch(ctx context.Context, changed func()) error {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { close(done) })
	defer stop()
	addrs := make(chan netlink.AddrUpdate, 64)
	routes := make(chan netlink.RouteUpdate, 64)
	failed := make(chan error, 2)
	report := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	if err := netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: report, ReceiveBufferSize: eventBuffer}); err != nil {
		return fmt.Errorf("follow addresses: %w", err)
	}
	if err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: report, ReceiveBufferSize: eventBuffer}); err != nil {
		return fmt.Errorf("follow routes: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-addrs:
			if !ok {
				return fmt.Errorf("follow addresses: events ended")
			}
			changed()
		case u, ok := <-routes:
			if !ok {
				return fmt.Errorf("follow routes: events ended")
			}
			if u.Protocol != Protocol {
				changed()
			}
		case err := <-failed:
			if ctx.Err() == nil {
				return fmt.Errorf("follow addresses and routes: %w", err)
			}
		}
	}
}
