package config

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// ErrPoolFull is returned for services for which a prefix of vipPool has no VIP left.
var ErrPoolFull = errors.New("vipPool is full")

// AssignVIPs gives each service without vips one VIP per prefix of the pool, and returns them by
// service name, in the order of the prefixes.
//
// A service keeps what it has in taken as long as it is inside the pool and no other service names
// it in vips. Otherwise the VIP is a function of the name, then the next free one, so that nodes which
// know nothing of each other mostly agree. The order of services does not matter. A prefix without a free
// VIP gives none: the error, which wraps ErrPoolFull, names the services, and the rest is valid.
func AssignVIPs(services []lb.Service, pool []netip.Prefix, taken map[string][]netip.Addr) (map[string][]netip.Addr, error) {
	used := make(map[netip.Addr]bool)
	var names []string
	for i := range services {
		for _, vip := range services[i].VIPs {
			used[vip] = true
		}
		if len(services[i].VIPs) == 0 {
			names = append(names, services[i].Name)
		}
	}
	slices.Sort(names)
	assigned := make(map[string][]netip.Addr, len(names))
	var errs []error
	for _, p := range pool {
		got, err := assignPrefix(names, p, taken, used)
		for name, vip := range got {
			assigned[name] = append(assigned[name], vip)
		}
		errs = append(errs, err)
	}
	return assigned, errors.Join(errs...)
}

// assignPrefix gives each name one VIP of p. What is taken goes first, or a new service could get it.
func assignPrefix(names []string, p netip.Prefix, taken map[string][]netip.Addr, used map[netip.Addr]bool) (map[string]netip.Addr, error) {
	got := make(map[string]netip.Addr, len(names))
	for _, name := range names {
		for _, vip := range taken[name] {
			if p.Contains(vip) && !used[vip] {
				used[vip], got[name] = true, vip
				break
			}
		}
	}
	r := usable(p)
	var errs []error
	for _, name := range names {
		if _, has := got[name]; has {
			continue
		}
		vip, ok := r.free(stableHash(name), used)
		if !ok {
			errs = append(errs, fmt.Errorf("assign VIP of %s to service %s: %w", p, name, ErrPoolFull))
			continue
		}
		used[vip], got[name] = true, vip
	}
	return got, errors.Join(errs...)
}

// stableHash spreads names over the pool. Its values are part of what nodes agree on and of what a
// lost state directory brings back: a golden test pins them.
func stableHash(name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	// FNV's low bits depend on the last letters only a little: web-1 and web-2 would be neighbours.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	return x ^ x>>33
}

// vipRange are the addresses of a prefix that can be VIPs: base+first, count of them.
type vipRange struct {
	base  netip.Addr
	first uint64
	count uint64
}

// usable leaves out the network's address, the one after it, which people give to gateways, and the
// IPv4 broadcast address, unless nothing would be left. Of large IPv6 prefixes it uses the first 2^63.
func usable(p netip.Prefix) vipRange {
	hostBits := min(p.Addr().BitLen()-p.Bits(), 63)
	size := uint64(1) << hostBits
	spare := uint64(2)
	if p.Addr().Is4() {
		spare = 3
	}
	if size <= spare {
		return vipRange{p.Masked().Addr(), 0, size}
	}
	return vipRange{p.Masked().Addr(), 2, size - spare}
}

// free returns the first address not in use, from the hash on and around.
func (r vipRange) free(hash uint64, used map[netip.Addr]bool) (netip.Addr, bool) {
	// Among len(used)+1 addresses there is one that is not used.
	for i := range min(r.count, uint64(len(used))+1) {
		vip := r.at((hash%r.count + i) % r.count)
		if !used[vip] {
			return vip, true
		}
	}
	return netip.Addr{}, false
}

// at returns the i-th address of the range.
func (r vipRange) at(i uint64) netip.Addr {
	i += r.first
	if r.base.Is4() {
		b := r.base.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(i))
		return netip.AddrFrom4(b)
	}
	b := r.base.As16()
	low := binary.BigEndian.Uint64(b[8:])
	binary.BigEndian.PutUint64(b[8:], low+i) // never carries: host bits are zero and i < 2^63
	return netip.AddrFrom16(b)
}
