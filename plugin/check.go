package main

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// check compares what ADD made with what is there. Whether a proxy runs, and which services it
// knows, is no part of that: Nomad kills an allocation whose CHECK fails.
func (p *plugin) check(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	prev, err := conf.prevResult()
	if err != nil {
		return err
	}
	e, err := p.registered(conf, registry.EndpointID(args.ContainerID, args.IfName))
	if err != nil {
		return err
	}
	v, err := p.net.Resolve(args.Netns, args.IfName)
	if err != nil {
		return err
	}
	if v.HostIfindex != e.HostIfindex {
		return drift("%s is now joined to %s (index %d), but %s (index %d) was attached",
			args.IfName, v.HostName, v.HostIfindex, e.HostInterface, e.HostIfindex)
	}
	if err := checkAddresses(prev.addresses(args.IfName), v, e); err != nil {
		return err
	}
	if e.Attach == registry.AttachNone {
		return nil // in whatever mode the proxy runs now: ADD made nothing else
	}
	if err := p.checkLinks(conf.BPFFS, e); err != nil {
		return err
	}
	return p.checkMaps(conf.BPFFS, e)
}

func drift(format string, args ...any) error {
	return failure(codeDrift, nil, format+"; the container has to be restarted or its network connected again", args...)
}

func (p *plugin) registered(c *netConf, id string) (registry.Endpoint, error) {
	reg, err := registry.Open(c.RunDir)
	if err != nil {
		return registry.Endpoint{}, failure(types.ErrIOFailure, err, "the run directory cannot be used")
	}
	e, err := reg.Get(id)
	if errors.Is(err, registry.ErrNotFound) {
		return e, drift("%s has no endpoint %s: this interface is not attached", c.RunDir, id)
	}
	if err != nil {
		return e, failure(codeDrift, err, "the endpoint file cannot be read")
	}
	return e, nil
}

// checkAddresses asks for the addresses that ADD was given, which must still be the container's.
// Others come and go by themselves (router advertisements) and prove nothing.
func checkAddresses(given []netip.Addr, v veth, e registry.Endpoint) error {
	for _, a := range given {
		if !slices.Contains(v.Addresses, a) {
			return drift("%s lost its address %s", e.Ifname, a)
		}
		if !slices.Contains(e.Addresses, a) {
			return drift("address %s of %s is not registered", a, e.Ifname)
		}
	}
	return nil
}

func (p *plugin) checkLinks(bpffs string, e registry.Endpoint) error {
	pins := map[string]string{datapath.FromContainer: inPin(bpffs, e.ID)}
	if e.Attach != attach.KindIngress {
		pins[datapath.ToContainer] = outPin(bpffs, e.ID)
	}
	for prog, pin := range pins {
		l, err := p.links.Inspect(pin)
		switch {
		case errors.Is(err, attach.ErrNotFound):
			return drift("%s is not attached to %s any more", prog, e.HostInterface)
		case err != nil:
			return failure(codeDrift, err, "the attachment of %s to %s cannot be read", prog, e.HostInterface)
		case !l.Alive || l.Ifindex != e.HostIfindex:
			return drift("%s does not run on %s any more", prog, e.HostInterface)
		}
	}
	return nil
}

func (p *plugin) checkMaps(bpffs string, e registry.Endpoint) error {
	dp, err := p.open(bpffs)
	if errors.Is(err, datapath.ErrNotLoaded) {
		return drift("no maps are pinned below %s", bpffs)
	}
	if err != nil {
		return datapathFailure(err)
	}
	defer func() { _ = dp.Close() }()
	all, err := dp.Endpoints()
	if err != nil {
		return failure(codeMaps, err, "the endpoint map cannot be read")
	}
	for _, a := range e.Addresses {
		if _, ok := all[datapath.EndpointKey{Address: a, Ifindex: e.HostIfindex}]; !ok {
			return drift("address %s of %s is not in the endpoint map", a, e.HostInterface)
		}
	}
	return nil
}
