package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// Surroundings are what the services files must fit beside each other.
type Surroundings struct {
	// Pool are the prefixes of vipPool: a service without vips gets one VIP of each.
	Pool []netip.Prefix

	// Subnets are the container subnets in use. A VIP inside one is refused: its packets would be
	// looked for on that link, and a container could be given the same address.
	Subnets []netip.Prefix

	// Nodes are the names that a backend's node can have; nil = any. A backend on a node that nobody
	// knows would never get a packet.
	Nodes []string

	// Hosts are the underlay addresses of nodes, by address. None of them can be a VIP: what goes by
	// tunnel would be taken for the service's.
	Hosts map[netip.Addr]string

	// Userspace says that datapath.mode is userspace: what only programs in the kernel do is a mistake.
	Userspace bool

	// Loopback says that VIPs and backends may be loopback addresses: the proxy itself carries connections.
	Loopback bool

	// NoUplinks says that no client outside is answered, so that nothing could be answered directly.
	NoUplinks bool

	// Device says whether this node has a device; nil = any. A backend in a VLAN of another one has no way to it.
	Device func(name string) bool

	// Held are the VIPs that services without vips have, by service name. No other service can
	// claim one while its holder is there.
	Held map[string][]netip.Addr
}

// check returns all findings of a file, other files apart: its own, and what depends on its surroundings.
func (env *Surroundings) check(f *File) []Finding {
	if len(f.Findings) >= maxFindings {
		return f.Findings
	}
	rep := &report{file: f.Path, findings: slices.Clone(f.Findings)}
	for i := range f.Services {
		d := &f.Services[i]
		if len(f.Findings) == 0 { // VIPs that could not be read are no reason to speak of the pool
			d.checkPool(rep, env.Pool)
		}
		for j, vip := range d.Service.VIPs {
			if n, ok := overlapping(netip.PrefixFrom(vip, vip.BitLen()), env.Subnets); ok {
				d.vips[j].add(rep, fmt.Sprintf("VIP %s is inside the container subnet %s: choose one outside", vip, n))
			}
			if node, ok := env.Hosts[vip]; ok {
				d.vips[j].add(rep, fmt.Sprintf("VIP %s is the address of node %s: choose another one", vip, show(node)))
			}
		}
		d.checkNodes(rep, env.Nodes)
		d.checkMode(rep, env)
		switch {
		case env.Loopback:
		case env.Userspace:
			d.checkLoopback(rep, forAll)
		default:
			d.checkLoopback(rep, ", or set datapath.mode to userspace in tclb.yaml")
		}
	}
	return rep.sorted()
}

// forAll is why an address of one host alone does not do.
const forAll = ", since all nodes of etcd are to serve it"

// CheckShared returns the findings of a file that all nodes are to follow: an address that means each of them.
func (f *File) CheckShared() []Finding {
	rep := &report{file: f.Path}
	for i := range f.Services {
		f.Services[i].checkLoopback(rep, forAll)
	}
	return rep.sorted()
}

// checkLoopback records VIPs and backends that are this host's alone.
func (d *Definition) checkLoopback(rep *report, advice string) {
	for i, vip := range d.Service.VIPs {
		if vip.IsLoopback() {
			d.vips[i].add(rep, fmt.Sprintf("VIP %s %s%s", vip, notLoopback, advice))
		}
	}
	for i, b := range d.Service.Backends {
		if b.Address.IsLoopback() {
			d.backends[i].add(rep, fmt.Sprintf("backend address %s %s%s", b.Address, notLoopback, advice))
		}
	}
}

// checkMode records what this node's mode, or what it is joined to, cannot do.
func (d *Definition) checkMode(rep *report, env *Surroundings) {
	const advice = ", and datapath.mode is userspace: remove it, or set datapath.mode to ebpf or auto in tclb.yaml"
	switch {
	case d.Service.DSR && env.Userspace:
		d.dsr.add(rep, "dsr is done by programs in the kernel"+advice)
	case d.Service.DSR && env.NoUplinks:
		d.dsr.add(rep, "dsr needs uplinks, by which clients outside are answered: name the devices in uplinks in tclb.yaml, or remove dsr")
	}
	if d.Service.Accelerate && env.Userspace {
		d.fast.add(rep, "accelerate is done by programs in the kernel"+advice)
	}
	for _, v := range d.vlans {
		device := d.Service.Backends[v.backend].VLAN.Device
		switch {
		case env.Userspace:
			v.at.add(rep, "vlan is done by programs in the kernel"+advice)
		case env.Device != nil && !env.Device(device):
			v.device.add(rep, fmt.Sprintf("device %s is not there: make it, or correct the name", show(device)))
		}
	}
}

// checkNodes records the backends that are on nodes which nobody knows.
func (d *Definition) checkNodes(rep *report, known []string) {
	if known == nil {
		return
	}
	for i, b := range d.Service.Backends {
		if b.Node != "" && !slices.Contains(known, b.Node) {
			d.nodes[i].add(rep, fmt.Sprintf("node %s is neither this node nor in nodes: add it to nodes in tclb.yaml, or correct the name", show(b.Node)))
		}
	}
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

// checkHosts records the prefixes of vipPool that contain the address of a node.
func (c *Config) checkHosts(rep *report) {
	hosts := c.hosts()
	addresses := slices.SortedFunc(maps.Keys(hosts), netip.Addr.Compare)
	for i, p := range c.VIPPool {
		for _, a := range addresses {
			if p.Contains(a) {
				rep.add(c.at[p], fmt.Sprintf("vipPool[%d]", i), fmt.Sprintf("%s contains %s, the address of node %s: choose a prefix that is not in use", p, a, show(hosts[a])))
				break
			}
		}
	}
}

// hosts returns the underlay addresses of nodes that are configured, and the nodes' names.
func (c *Config) hosts() map[netip.Addr]string {
	out := make(map[netip.Addr]string, len(c.Nodes)+1)
	if c.Node.Address.IsValid() && len(c.Nodes) > 0 {
		out[c.Node.Address] = c.Node.Name
	}
	for _, n := range c.Nodes {
		out[n.Address] = n.Name
	}
	return out
}

// Surroundings returns what services files must fit beside, with the container subnets that are known.
func (c *Config) Surroundings(subnets []netip.Prefix) Surroundings {
	env := Surroundings{
		Pool: c.VIPPool, Subnets: subnets, Hosts: c.hosts(), NoUplinks: len(c.Uplinks) == 0,
		Userspace: c.Datapath.Mode == ModeUserspace, Loopback: c.Datapath.Mode == ModeUserspace && len(c.Etcd.Endpoints) == 0,
	}
	if len(c.Etcd.Endpoints) == 0 {
		env.Nodes = []string{c.Node.Name}
		for _, n := range c.Nodes {
			env.Nodes = append(env.Nodes, n.Name)
		}
	}
	return env
}

// Same says whether two are equal, apart from the VIPs that are held.
func (env *Surroundings) Same(with *Surroundings) bool {
	return slices.Equal(env.Pool, with.Pool) && slices.Equal(env.Subnets, with.Subnets) &&
		slices.Equal(env.Nodes, with.Nodes) && maps.Equal(env.Hosts, with.Hosts) &&
		env.Userspace == with.Userspace && env.Loopback == with.Loopback && env.NoUplinks == with.NoUplinks
}

// peerSubnets returns the container subnets that the configuration knows.
func (c *Config) peerSubnets() []netip.Prefix {
	var out []netip.Prefix
	for _, n := range c.Nodes {
		out = append(out, n.Subnets...)
	}
	return out
}
