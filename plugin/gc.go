package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// gc removes the attachments of this network that the runtime does not know any more. Those of
// other networks, of the same container too, are none of its business.
func (p *plugin) gc(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	valid, err := conf.validAttachments()
	if err != nil {
		return err
	}
	if _, err := os.Stat(conf.RunDir); errors.Is(err, os.ErrNotExist) {
		return nil // nothing was ever attached
	}
	reg, err := registry.Open(conf.RunDir)
	if err != nil {
		return failure(types.ErrIOFailure, err, "the run directory cannot be used")
	}
	dp, err := p.opened(reg, conf.BPFFS)
	if err != nil {
		return datapathFailure(err)
	}
	if dp != nil {
		defer func() { _ = dp.Close() }()
	}
	endpoints, errs := reg.List()
	for _, e := range endpoints {
		if e.Network != conf.Name || valid[types.GCAttachment{ContainerID: e.ContainerID, IfName: e.Ifname}] {
			continue
		}
		if err := p.collect(reg, dp, conf.BPFFS, e); err != nil {
			errs = append(errs, fmt.Errorf("remove endpoint %s: %w", e.ID, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return failure(types.ErrInternal, err, "not everything could be collected")
	}
	return nil
}

func (p *plugin) collect(reg *registry.Dir, dp maps, bpffs string, e registry.Endpoint) error {
	unlock, err := reg.Lock(e.ID)
	if err != nil {
		return err
	}
	defer unlock()
	return p.remove(reg, dp, bpffs, p.previous(reg, dp, bpffs, e.ID))
}
