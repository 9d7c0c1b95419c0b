package main

import (
	"errors"
	"os"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// del takes an attachment away. It never fails: DEL runs through a chain backwards, and an error
// from us would leave the addresses and port mappings of the plugins before us behind for good.
// What could not be done goes to standard error, and the proxy's sweep finds it later.
func (p *plugin) del(args *skel.CmdArgs) error {
	conf, warnings := parsePlaces(args.StdinData)
	for _, w := range warnings {
		p.log.Warn("DEL", "err", w)
	}
	id := registry.EndpointID(args.ContainerID, args.IfName)
	reg, unlock := p.lockExisting(conf.RunDir, id)
	defer unlock()

	dp, err := p.opened(reg, conf.BPFFS)
	if err != nil {
		p.log.Error("open datapath", "endpoint", id, "err", err)
	}
	if dp != nil {
		defer func() { _ = dp.Close() }()
	}
	if err := p.remove(reg, dp, conf.BPFFS, p.previous(reg, dp, conf.BPFFS, id)); err != nil {
		p.log.Error("remove attachment", "endpoint", id, "err", err)
	}
	return nil
}

// opened returns the datapath, nil where there is none: nothing is loaded, or the proxy carries connections itself and
// this process may not look. reg may be nil.
func (p *plugin) opened(reg *registry.Dir, bpffs string) (maps, error) {
	dp, err := p.open(bpffs)
	if err == nil {
		return dp, nil
	}
	if reg != nil && datapath.NotPermitted(err) {
		if mode, _ := reg.Mode(); mode == registry.ModeUserspace {
			return nil, nil
		}
	}
	if errors.Is(err, datapath.ErrNotLoaded) {
		return nil, nil
	}
	return nil, err
}

// lockExisting opens the run directory if there is one: DEL makes nothing. reg is nil without.
func (p *plugin) lockExisting(runDir, id string) (reg *registry.Dir, unlock func()) {
	unlock = func() {}
	if _, err := os.Stat(runDir); err != nil {
		return nil, unlock
	}
	reg, err := registry.Open(runDir)
	if err != nil {
		p.log.Error("open run directory", "err", err)
		return nil, unlock
	}
	release, err := reg.Lock(id)
	if err != nil {
		p.log.Error("lock endpoint", "endpoint", id, "err", err)
		return reg, unlock
	}
	return reg, release
}

// remove takes away what t names, as far as reg and dp, which may be nil, are there. Packets are
// led past the container first; the file goes last, so that an interrupted removal is seen.
func (p *plugin) remove(reg *registry.Dir, dp maps, bpffs string, t trace) error {
	var errs []error
	if dp != nil {
		errs = append(errs, forget(dp, t))
	}
	// An interface is named only where filters may be without a pin: its number may be another's by now.
	ifindex := 0
	if t.filters {
		ifindex = int(t.ifindex)
	}
	errs = append(errs, p.links.Detach(outPin(bpffs, t.id), ifindex), p.links.Detach(inPin(bpffs, t.id), ifindex))
	if reg != nil {
		errs = append(errs, reg.Delete(t.id))
	}
	return errors.Join(errs...)
}
