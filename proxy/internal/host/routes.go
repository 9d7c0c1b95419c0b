package host

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var families = [2]int{unix.AF_INET, unix.AF_INET6}

// metric6 is what the kernel makes of an IPv6 route without one.
const metric6 = 1024

// route is what matters of a route of ours.
type route struct {
	prefix netip.Prefix
	source netip.Addr
	mtu    int
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// routes makes the routes to dev equal to what is wanted. Routes of others are never touched.
func (h *Host) routes(dev netlink.Link, prefixes []netip.Prefix, address [2]netip.Addr) error {
	var errs []error
	for family := range families {
		var want []route
		for _, p := range prefixes {
			if familyOf(p.Addr()) == family {
				want = append(want, route{p, address[family], 0})
			}
		}
		if !address[family].IsValid() {
			if len(want) > 0 {
				h.log.Debug("no address of this family: the host itself does not reach its VIPs", "family", familyName(family))
			}
			want = nil
		}
		if len(want) > 0 {
			mtu := underlayMTU(address[family])
			for i := range want {
				want[i].mtu = mtu
			}
		}
		errs = append(errs, h.syncFamily(dev, family, want))
	}
	return errors.Join(errs...)
}

func familyName(family int) string { return [...]string{"IPv4", "IPv6"}[family] }

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// syncFamily adds what is missing before it removes what is too much.
func (h *Host) syncFamily(dev netlink.Link, family int, want []route) error {
	have, err := ours(families[family])
	if err != nil {
		return err
	}
	wanted := make(map[netip.Prefix]route, len(want))
	for _, w := range want {
		wanted[w.prefix] = w
	}
	found := make(map[netip.Prefix]bool, len(have))
	var surplus []*netlink.Route
	for i := range have {
		r := &have[i]
		p := prefixOf(r, family)
		w, ok := wanted[p]
		if !ok || r.LinkIndex != dev.Attrs().Index {
			surplus = append(surplus, r)
		} else if matches(r, w) {
			found[p] = true
		}
	}
	errs := []error{h.addRoutes(dev, family, want, found)}
	for _, r := range surplus {
		if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route to %s: %w", prefixOf(r, family), err))
		}
	}
	return errors.Join(errs...)
}

// addRoutes adds or replaces the routes that were not found.
func (h *Host) addRoutes(dev netlink.Link, family int, want []route, found map[netip.Prefix]bool) error {
	var errs []error
	for _, w := range want {
		if found[w.prefix] {
			continue
		}
		err := netlink.RouteReplace(w.netlink(dev))
		if err == nil {
			continue
		}
		if family == 1 && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EAFNOSUPPORT)) {
			h.log.Debug("IPv6 is off: the host itself does not reach IPv6 VIPs", "err", err)
			return nil
		}
		errs = append(errs, fmt.Errorf("route %s to %s: %w", w.prefix, Device, err))
	}
	return errors.Join(errs...)
}

// ours returns the routes of our protocol.
func ours(family int) ([]netlink.Route, error) {
	filter := &netlink.Route{Protocol: Protocol, Table: unix.RT_TABLE_MAIN}
	routes, err := netlinksafe.RouteListFiltered(family, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}

func removeRoutes() error {
	var errs []error
	for _, family := range families {
		routes, err := ours(family)
		errs = append(errs, err)
		for i := range routes {
			if err := netlink.RouteDel(&routes[i]); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("remove route: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

func matches(r *netlink.Route, w route) bool {
	src, _ := netip.AddrFromSlice(r.Src)
	return src.Unmap() == w.source && r.MTU == w.mtu
}

func prefixOf(r *netlink.Route, family int) netip.Prefix {
	if r.Dst == nil {
		if family == 0 {
			return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	a, _ := netip.AddrFromSlice(r.Dst.IP)
	ones, _ := r.Dst.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones)
}

func (w route) netlink(dev netlink.Link) *netlink.Route {
	r := &netlink.Route{
		LinkIndex: dev.Attrs().Index,
		Dst:       &net.IPNet{IP: w.prefix.Addr().AsSlice(), Mask: net.CIDRMask(w.prefix.Bits(), w.prefix.Addr().BitLen())},
		Src:       w.source.AsSlice(),
		Protocol:  Protocol,
		Scope:     netlink.SCOPE_LINK,
		Table:     unix.RT_TABLE_MAIN,
		MTU:       w.mtu,
	}
	if w.prefix.Addr().Is6() {
		r.Priority, r.Scope = metric6, netlink.SCOPE_UNIVERSE
	}
	return r
}
