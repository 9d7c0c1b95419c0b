package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// conf is one entry of a conflist.
type conf map[string]any

// network is a conflist of a node.
type network struct {
	list *libcni.NetworkConfigList
}

// Subnets of the nodes' two networks, in documentation ranges; nodes have the same, unless a test says
// otherwise.
var (
	subnetsA = []string{"198.51.100.0/25", "2001:db8:a::/64"}
	subnetsB = []string{"198.51.100.128/25", "2001:db8:b::/64"}
)

// network makes a conflist of the given entries.
func (n *node) network(name string, entries ...conf) network {
	n.t.Helper()
	data, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": name, "plugins": entries})
	if err != nil {
		n.t.Fatal(err)
	}
	list, err := libcni.ConfListFromBytes(data)
	if err != nil {
		n.t.Fatal(err)
	}
	return network{list}
}

// bridged is the network that most tests use. with changes our entry; the conflist's name does not
// change, for host-local counts addresses by it.
func (n *node) bridged(with ...conf) network {
	n.t.Helper()
	return n.network("red", n.bridge("red0", n.subnets), n.ours(with...))
}

// bridge is an entry of upstream's plugin. The first network to be attached has the default route.
func (n *node) bridge(device string, subnets []string) conf {
	return conf{"type": "bridge", "bridge": device, "isGateway": true, "ipam": n.ipam(subnets, true)}
}

func (n *node) ipam(subnets []string, defaultRoute bool) conf {
	var ranges [][]conf
	var routes []conf
	for _, s := range subnets {
		ranges = append(ranges, []conf{{"subnet": s}})
		if defaultRoute {
			everything := [2]string{"0.0.0.0/0", "::/0"}
			routes = append(routes, conf{"dst": everything[familyOf(netip.MustParsePrefix(s).Addr())]})
		}
	}
	return conf{"type": "host-local", "dataDir": filepath.Join(n.dir, "ipam"), "ranges": ranges, "routes": routes}
}

// ours is the entry of tclb-cni.
func (n *node) ours(with ...conf) conf {
	c := conf{
		"type": "tclb-cni", "bpffs": n.bpffs, "runDir": n.runDir,
		"capabilities": map[string]bool{"aliases": true, "io.kubernetes.cri.pod-annotations": true},
	}
	for _, w := range with {
		for k, v := range w {
			c[k] = v
		}
	}
	return c
}

// container is a namespace that libcni attached to a node's networks.
type container struct {
	*place
	node    *node
	id      string
	addr    [2]netip.Addr // of eth0, by family
	results map[string]*current.Result
	options []option
}

// option is something that a runtime tells plugins about a container.
type option func(*libcni.RuntimeConf)

// args are CNI_ARGS: pairs of key and value.
func args(pairs ...string) option {
	return func(rt *libcni.RuntimeConf) {
		rt.Args = append(rt.Args, [2]string{"IgnoreUnknown", "1"})
		for i := 0; i < len(pairs); i += 2 {
			rt.Args = append(rt.Args, [2]string{pairs[i], pairs[i+1]})
		}
	}
}

// capability is a runtimeConfig key for the entries that ask for it.
func capability(key string, value any) option {
	return func(rt *libcni.RuntimeConf) {
		if rt.CapabilityArgs == nil {
			rt.CapabilityArgs = map[string]any{}
		}
		rt.CapabilityArgs[key] = value
	}
}

// newContainer makes a namespace that is attached to nothing.
func (n *node) newContainer(t *testing.T, name string, options ...option) *container {
	t.Helper()
	c := &container{
		place: newPlace(t, n.name+"-"+name), node: n,
		id: fmt.Sprintf("%s-%s", n.name, name), results: map[string]*current.Result{}, options: options,
	}
	return c
}

// container starts a container on a network. It is detached at the end of t, if it still is attached.
func (n *node) container(t *testing.T, name string, on network, options ...option) *container {
	t.Helper()
	c := n.newContainer(t, name, options...)
	c.attach(t, on, "eth0")
	return c
}

// attach runs ADD for an interface.
func (c *container) attach(t *testing.T, on network, ifname string) {
	t.Helper()
	if err := c.add(on, ifname); err != nil {
		t.Fatalf("ADD %s %s: %v", c.id, ifname, err)
	}
	t.Cleanup(func() {
		if err := c.del(on, ifname); err != nil {
			t.Errorf("DEL %s %s: %v", c.id, ifname, err)
		}
	})
}

func (n *node) cni() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(cniPath, filepath.Join(n.dir, "cni-cache"), nil)
}

func (c *container) runtime(ifname string) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{ContainerID: c.id, NetNS: c.path(), IfName: ifname}
	for _, o := range c.options {
		o(rt)
	}
	return rt
}

// add runs ADD, from the node.
func (c *container) add(on network, ifname string) error {
	return c.node.try(func() error {
		r, err := c.node.cni().AddNetworkList(context.Background(), on.list, c.runtime(ifname))
		if err != nil {
			return err
		}
		res, err := current.NewResultFromResult(r)
		if err != nil {
			return err
		}
		c.results[ifname] = res
		if ifname != "eth0" {
			return nil
		}
		for _, ip := range res.IPs {
			a, _ := netip.AddrFromSlice(ip.Address.IP)
			c.addr[familyOf(a.Unmap())] = a.Unmap()
		}
		return nil
	})
}

// del runs DEL, from the node. It may be called again.
func (c *container) del(on network, ifname string) error {
	return c.node.try(func() error {
		return c.node.cni().DelNetworkList(context.Background(), on.list, c.runtime(ifname))
	})
}

// hostInterface is the node's end of an interface.
func (c *container) hostInterface(ifname string) string {
	c.t.Helper()
	for _, i := range c.results[ifname].Interfaces {
		if i.Sandbox == "" && len(i.Name) > 4 && i.Name[:4] == "veth" {
			return i.Name
		}
	}
	c.t.Fatalf("no host interface in the result of %s %s", c.id, ifname)
	return ""
}

// at is a port of the container's eth0.
func (c *container) at(family, port int) netip.AddrPort {
	return netip.AddrPortFrom(c.addr[family], uint16(port))
}

// addresses are those of all interfaces.
func (c *container) addresses() []netip.Addr {
	var out []netip.Addr
	for _, r := range c.results {
		for _, ip := range r.IPs {
			a, _ := netip.AddrFromSlice(ip.Address.IP)
			out = append(out, a.Unmap())
		}
	}
	return out
}
