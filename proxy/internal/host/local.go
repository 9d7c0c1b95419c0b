package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// loopback is the device that local routes of VIPs are on.
const loopback = "lo"

// SyncLocal makes this node take packets to VIPs in: by a local route of ours for each that is no address of it
// already. Routes of ours to anything else go. It returns what keeps a VIP from being local, and what else went wrong;
// who may not make routes gets along without while every VIP is local.
func SyncLocal(vips []netip.Addr) (map[netip.Addr]error, error) {
	failed := make(map[netip.Addr]error)
	var errs []error
	for family := range families {
		errs = append(errs, syncLocal(family, vips, failed))
	}
	return failed, errors.Join(errs...)
}

// RemoveLocal takes the local routes of ours away, and returns how many there were.
func RemoveLocal() (int, error) {
	count := 0
	for family := range families {
		have, _, err := localRoutes(family)
		if err != nil {
			return 0, err
		}
		count += len(have)
	}
	if count == 0 {
		return 0, nil
	}
	_, err := SyncLocal(nil)
	return count, err
}

// syncLocal is SyncLocal for one family.
func syncLocal(family int, vips []netip.Addr, failed map[netip.Addr]error) error {
	have, others, err := localRoutes(family)
	if err != nil {
		return err
	}
	wanted := make(map[netip.Addr]bool)
	for _, vip := range vips {
		if familyOf(vip) == family && !slices.ContainsFunc(others, func(p netip.Prefix) bool { return p.Contains(vip) }) {
			wanted[vip] = true
		}
	}
	for vip := range wanted {
		if _, there := have[vip]; there {
			continue
		}
		if err := addLocal(vip); err != nil {
			failed[vip] = err
		}
	}
	var errs []error
	for vip, r := range have {
		if wanted[vip] {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove local route to %s: %w", vip, err))
		}
	}
	return errors.Join(errs...)
}

// localRoutes returns the local routes of a family: ours by address, and where those of others lead to.
func localRoutes(family int) (have map[netip.Addr]netlink.Route, others []netip.Prefix, err error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL}
	routes, err := netlinksafe.RouteListFiltered(families[family], filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, nil, fmt.Errorf("list local routes: %w", err)
	}
	have = make(map[netip.Addr]netlink.Route)
	for i := range routes {
		p := prefixOf(&routes[i], family)
		if routes[i].Protocol != Protocol {
			others = append(others, p)
		} else if p.IsSingleIP() {
			have[p.Addr()] = routes[i]
		}
	}
	return have, others, nil
}

// addLocal makes this node take packets to an address in.
func addLocal(vip netip.Addr) error {
	lo, err := net.InterfaceByName(loopback)
	if err != nil {
		return fmt.Errorf("look up %s: %w", loopback, err)
	}
	r := &netlink.Route{
		LinkIndex: lo.Index,
		Dst:       &net.IPNet{IP: vip.AsSlice(), Mask: net.CIDRMask(vip.BitLen(), vip.BitLen())},
		Protocol:  Protocol,
		Table:     unix.RT_TABLE_LOCAL,
		Type:      unix.RTN_LOCAL,
		Scope:     netlink.SCOPE_HOST,
	}
	if vip.Is6() {
		r.Priority, r.Scope = metric6, netlink.SCOPE_UNIVERSE
	}
	switch err := netlink.RouteReplace(r); {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("VIP %s is no address of this node, and this process may not make a route for it: give the proxy CAP_NET_ADMIN, or the VIP an address of the node or from 127.0.0.0/8", vip)
	case vip.Is6() && errors.Is(err, unix.EACCES), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("route VIP %s to this node: %w: IPv6 is off", vip, err)
	case err != nil:
		return fmt.Errorf("route VIP %s to this node: %w", vip, err)
	}
	return nil
}
