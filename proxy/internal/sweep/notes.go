package sweep

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// Bridges returns the subnets of the networks that containers are on, by the interface index of the
// bridge, as far as this host has an address there.
func Bridges(endpoints []registry.Endpoint) map[uint32][]netip.Prefix {
	out := make(map[uint32][]netip.Prefix)
	for _, e := range endpoints {
		if _, known := out[e.UpIfindex]; !known && e.UpIfindex != 0 {
			out[e.UpIfindex] = prefixesOf(int(e.UpIfindex))
		}
	}
	return out
}

// Subnets returns all of them in order.
func Subnets(bridges map[uint32][]netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, prefixes := range bridges {
		out = append(out, prefixes...)
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(out)
}

// prefixesOf returns the prefixes of an interface's addresses.
func prefixesOf(ifindex int) []netip.Prefix {
	device, err := net.InterfaceByIndex(ifindex)
	if err != nil {
		return nil
	}
	addrs, err := device.Addrs()
	if err != nil {
		return nil
	}
	var out []netip.Prefix
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || n.IP.IsLinkLocalUnicast() {
			continue
		}
		ip, _ := netip.AddrFromSlice(n.IP)
		ones, _ := n.Mask.Size()
		out = append(out, netip.PrefixFrom(ip.Unmap(), ones).Masked())
	}
	return out
}

// Notes says what keeps a container from reaching VIPs: one line each, what and what to do. subnets are
// those of its network, vips those of all services, by service.
func Notes(e registry.Endpoint, subnets []netip.Prefix, vips map[string][]netip.Addr) []string {
	var out []string
	if !e.DefaultRoute {
		out = append(out, fmt.Sprintf("network %s gives no default route: the container needs a route to the VIPs through %s", e.Network, e.Ifname))
	}
	if e.Attach == attach.KindIngress {
		out = append(out, "another qdisc on "+e.HostInterface+" leaves no egress hook: VIPs whose backends are not attached containers do not answer; remove the qdisc or put tclb-cni before it in the chain")
	}
	if len(subnets) == 0 {
		return out
	}
	names := make([]string, 0, len(vips))
	for name := range vips {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, vip := range vips[name] {
			for _, p := range subnets {
				if p.Contains(vip) {
					out = append(out, fmt.Sprintf("VIP %s of service %s is inside the container's subnet %s and not sent to its gateway: choose a VIP outside", vip, name, p))
				}
			}
		}
	}
	return out
}
