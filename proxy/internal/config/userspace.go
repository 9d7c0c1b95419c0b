package config

import (
	"fmt"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// checkUserspace records the keys of tclb.yaml that only programs in the kernel follow.
func (c *Config) checkUserspace(m *mapping) {
	refuse := func(m *mapping, key string, given bool) {
		if e := m.find(key); e != nil && given {
			m.child(e.value, path{key: key}).fail("%s is for programs in the kernel, and datapath.mode is userspace: remove it, or set datapath.mode to ebpf or auto", key)
		}
	}
	if e := m.find("datapath"); e != nil {
		below := newMapping(m.child(e.value, path{key: "datapath"}))
		refuse(below, "hostStack", c.Datapath.HostStack)
		refuse(below, "socketLB", c.Datapath.SocketLB)
	}
	refuse(m, "uplinks", len(c.Uplinks) > 0)
	refuse(m, "announce", c.Announce)
	refuse(m, "tunnel", true)
	refuse(m, "nodes", len(c.Nodes) > 0)
}

// userspace says which settings have no effect because the proxy carries connections itself, a line each: what auto
// came to, nobody asked for.
func (c *Config) userspace() []string {
	var out []string
	add := func(on bool, what string) {
		if on {
			out = append(out, what+" has no effect in userspace mode")
		}
	}
	add(c.Datapath.HostStack, "datapath.hostStack")
	add(len(c.Uplinks) > 0, "uplinks")
	add(c.Announce, "announce")
	add(len(c.Nodes) > 0, "nodes")
	return out
}

// userspaceIn says the same of one service.
func userspaceIn(s *lb.Service) []string {
	var out []string
	if s.DSR {
		out = append(out, "dsr has no effect in userspace mode: backends answer through the proxy")
	}
	if s.Accelerate {
		out = append(out, "accelerate has no effect in userspace mode")
	}
	for _, b := range s.Backends {
		if b.VLAN.Device != "" {
			out = append(out, fmt.Sprintf("backend %s: vlan has no effect in userspace mode: it is reached by routing, without a tag", b.Address))
		}
	}
	return out
}
