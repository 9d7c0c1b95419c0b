package config

import (
	"fmt"
	"net/netip"
)

// Surroundings are what the services files must fit beside each other.
type Surroundings struct {
	// Pool are the prefixes of vipPool: a service without vips gets one VIP of each.
	Pool []netip.Prefix

	// Subnets are the container subnets in use. A VIP inside one is refused: its packets would be
	// looked for on that link, and a container could be given the same address.
	Subnets []netip.Prefix

	// Held are the VIPs that services without vips have, by service name. No other service can
	// claim one while its holder is there.
	Held map[string][]netip.Addr
}

// check returns the findings of a file that depend on its surroundings, other files apart.
func (env *Surroundings) check(f *File) []Finding {
	rep := &report{file: f.Path}
	for i := range f.Services {
		d := &f.Services[i]
		d.checkPool(rep, env.Pool)
		for j, vip := range d.Service.VIPs {
			if n, ok := overlapping(netip.PrefixFrom(vip, vip.BitLen()), env.Subnets); ok {
				d.vips[j].add(rep, fmt.Sprintf("VIP %s is inside the container subnet %s: choose one outside", vip, n))
			}
		}
	}
	return rep.sorted()
}

// checkPool records what is wrong with a service that will get its VIPs from the pool.
func (d *Definition) checkPool(rep *report, pool []netip.Prefix) {
	if len(d.Service.VIPs) > 0 {
		return
	}
	if len(pool) == 0 {
		d.name.add(rep, fmt.Sprintf("service %s has no vips, and vipPool is empty: give it vips, or set vipPool in tclb.yaml",
			show(d.Service.Name)))
		return
	}
	var families []netip.Addr
	for _, p := range pool {
		families = append(families, p.Addr())
	}
	for i, b := range d.Service.Backends {
		if reason := familyMismatch(b.Address, families); reason != "" {
			d.backends[i].add(rep, reason)
		}
	}
}

// CheckSubnets returns a finding for each prefix of vipPool that overlaps a container subnet.
func (c *Config) CheckSubnets(subnets []netip.Prefix) []Finding {
	rep := &report{file: c.file}
	for i, p := range c.VIPPool {
		if n, ok := overlapping(p, subnets); ok {
			key := fmt.Sprintf("vipPool[%d]", i)
			rep.add(c.at[p], key, fmt.Sprintf("%s overlaps the container subnet %s: choose a prefix that is not in use", p, n))
		}
	}
	return rep.sorted()
}

// peerSubnets returns the container subnets that the configuration knows.
func (c *Config) peerSubnets() []netip.Prefix {
	var out []netip.Prefix
	for _, n := range c.Nodes {
		out = append(out, n.Subnets...)
	}
	return out
}
