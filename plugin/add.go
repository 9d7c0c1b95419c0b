package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// add attaches a container. A second ADD, which Nomad's retries and restarts without a DEL
// bring, replaces the first; one that fails leaves nothing, since no runtime cleans up reliably.
func (p *plugin) add(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	prev, err := conf.prevResult()
	if err != nil {
		return err
	}
	joins, err := conf.membership(args.ContainerID, args.Args)
	if err != nil {
		return err
	}
	v, err := p.net.Resolve(args.Netns, args.IfName)
	if err != nil {
		return err
	}
	e, err := p.endpoint(conf, args, prev, joins, v)
	if err != nil {
		return err
	}
	if len(e.Addresses) == 0 {
		p.log.Warn("the container has no address: it joins no service", "endpoint", e.ID)
	}
	return p.install(conf, e, func() error { return prev.print(p.out) })
}

// endpoint describes the attachment to be made.
func (p *plugin) endpoint(c *netConf, args *skel.CmdArgs, prev prevResult, m membership, v veth) (registry.Endpoint, error) {
	boot, err := p.bootID()
	if err != nil {
		return registry.Endpoint{}, failure(types.ErrIOFailure, err, "the kernel's boot id cannot be read")
	}
	addrs := append(prev.addresses(args.IfName), v.Addresses...)
	slices.SortFunc(addrs, netip.Addr.Compare)
	return registry.Endpoint{
		ID:          registry.EndpointID(args.ContainerID, args.IfName),
		ContainerID: args.ContainerID, Ifname: args.IfName, Network: c.Name,
		Netns: args.Netns, Sandbox: prev.sandbox(args.IfName), NetnsCookie: v.NetnsCookie,
		HostInterface: v.HostName, HostIfindex: v.HostIfindex, BootID: boot,
		MAC: v.MAC.String(), Addresses: slices.Compact(addrs), DefaultRoute: v.DefaultRoute,
		Master: v.Master, UpIfindex: v.UpIfindex, UpMAC: v.UpMAC.String(),
		Services: m.services, Source: m.source, Names: m.names, Weight: m.weight, Port: m.port,
		Container: m.label,
		Created:   p.now().UTC(),
	}, nil
}

// install makes the attachment e, in place of an older one, and calls done as its last step.
func (p *plugin) install(c *netConf, e registry.Endpoint, done func() error) (err error) {
	reg, err := registry.Open(c.RunDir)
	if err != nil {
		return failure(types.ErrIOFailure, err, "the run directory cannot be used")
	}
	unlock, err := reg.Lock(e.ID)
	if err != nil {
		return failure(types.ErrIOFailure, err, "the run directory cannot be used")
	}
	defer unlock()
	mode, err := reg.Mode()
	if err != nil {
		return failure(types.ErrIOFailure, err, "the run directory cannot be used")
	}
	if mode == registry.ModeUserspace {
		return p.enlist(reg, c.BPFFS, e, done)
	}
	dp, err := p.load(datapath.Options{BPFFS: c.BPFFS, Sizes: p.sizes(c.RunDir), Log: p.log})
	if err != nil {
		return datapathFailure(err)
	}
	defer func() { _ = dp.Close() }()

	old := p.previous(reg, dp, c.BPFFS, e.ID)
	defer func() {
		if err == nil {
			return
		}
		undone := errors.Join(p.remove(reg, dp, c.BPFFS, traceOf(e)), p.remove(reg, dp, c.BPFFS, old))
		if undone != nil {
			p.log.Error("undo a failed ADD", "endpoint", e.ID, "err", undone)
		}
	}()
	if err := p.supersede(dp, old, e); err != nil {
		return err
	}
	if err := putEndpoint(dp, e); err != nil {
		return err
	}
	if e.Attach, err = p.attach(dp, c.BPFFS, e); err != nil {
		return err
	}
	// The file is last: the proxy may rely on everything that it speaks of.
	if err := reg.Put(e); err != nil {
		return failure(types.ErrIOFailure, err, "the endpoint file cannot be written")
	}
	return done()
}

// enlist makes the attachment e where the proxy carries connections itself: it is a file and nothing else.
func (p *plugin) enlist(reg *registry.Dir, bpffs string, e registry.Endpoint, done func() error) (err error) {
	e.Attach = registry.AttachNone
	for _, pin := range []string{inPin(bpffs, e.ID), outPin(bpffs, e.ID)} {
		// Programs of an attachment before would answer for VIPs in the proxy's stead.
		if err := p.links.Detach(pin, 0); err != nil {
			p.log.Warn("a program of an earlier attachment may still run", "endpoint", e.ID, "err", err)
		}
	}
	defer func() {
		if err == nil {
			return
		}
		if undone := reg.Delete(e.ID); undone != nil {
			p.log.Error("undo a failed ADD", "endpoint", e.ID, "err", undone)
		}
	}()
	if err := reg.Put(e); err != nil {
		return failure(types.ErrIOFailure, err, "the endpoint file cannot be written")
	}
	return done()
}

// sizes returns what the proxy wants the maps to be, should this ADD be the first after a boot.
func (p *plugin) sizes(runDir string) datapath.Sizes {
	var s datapath.Sizes
	path := filepath.Join(runDir, "sizes.json")
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.log.Warn("read map sizes: using the defaults", "path", path, "err", err)
		return datapath.Sizes{}
	}
	return s
}

// putEndpoint writes the container's addresses. The programs find them there from their first
// packet on, so this comes before attaching.
func putEndpoint(dp maps, e registry.Endpoint) error {
	up, err := net.ParseMAC(e.UpMAC)
	if err != nil || len(up) != 6 {
		return failure(codePeer, err, "%s has no Ethernet address on the host's side", e.HostInterface)
	}
	own, err := net.ParseMAC(e.MAC)
	if err != nil || len(own) != 6 {
		return failure(codePeer, err, "%s has no Ethernet address in the container", e.Ifname)
	}
	record := datapath.Endpoint{UpIfindex: e.UpIfindex, UpMAC: [6]byte(up), MAC: [6]byte(own), Owner: registry.Owner(e.ContainerID)}
	for _, a := range e.Addresses {
		key := datapath.EndpointKey{Address: a, Ifindex: e.HostIfindex}
		err := dp.PutEndpoint(key, record)
		if errors.Is(err, datapath.ErrFull) {
			return failure(types.ErrTryAgainLater, err, "this node has no room for another attached container")
		}
		if err != nil {
			return failure(codeMaps, err, "the endpoint map cannot be written")
		}
	}
	return nil
}

// attach puts both programs on the host side and returns how.
func (p *plugin) attach(dp maps, bpffs string, e registry.Endpoint) (string, error) {
	failed := func(prog string, err error) error {
		return failure(codeAttach, err, "%s cannot be attached to %s", prog, e.HostInterface)
	}
	in, err := p.links.Attach(dp.Program(datapath.FromContainer), int(e.HostIfindex), attach.Ingress, inPin(bpffs, e.ID))
	if err != nil {
		return "", failed(datapath.FromContainer, err)
	}
	_, err = p.links.Attach(dp.Program(datapath.ToContainer), int(e.HostIfindex), attach.Egress, outPin(bpffs, e.ID))
	if errors.Is(err, attach.ErrNoEgress) {
		p.log.Warn("another plugin's ingress qdisc leaves no egress hook: the container's connections to services are balanced to attached containers only",
			"endpoint", e.ID, "interface", e.HostInterface)
		return in.Kind, nil
	}
	if err != nil {
		return "", failed(datapath.ToContainer, err)
	}
	return in.Kind, nil
}

// supersede takes away what an older attachment of the same interface has and e has not. What
// stays is left alone, so that a repeated ADD disturbs no connection.
func (p *plugin) supersede(dp maps, old trace, e registry.Endpoint) error {
	if old.ifindex == e.HostIfindex {
		old.addrs = slices.DeleteFunc(slices.Clone(old.addrs), func(a netip.Addr) bool { return slices.Contains(e.Addresses, a) })
	}
	if err := forget(dp, old); err != nil {
		return failure(codeMaps, err, "the records of an earlier attachment cannot be removed")
	}
	return nil
}
