package main

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// trace is what an attachment has in the maps and on interfaces.
type trace struct {
	id      string
	ifindex uint32 // 0 = unknown
	addrs   []netip.Addr
	filters bool // attached by filters, which outlive a lost pin
}

func traceOf(e registry.Endpoint) trace {
	return trace{id: e.ID, ifindex: e.HostIfindex, addrs: e.Addresses, filters: e.Attach == attach.KindClsact || e.Attach == attach.KindIngress}
}

// previous finds what an attachment left: by its file, else, after a crash or with a corrupt
// file, by its pins. dp may be nil.
func (p *plugin) previous(reg *registry.Dir, dp maps, bpffs, id string) trace {
	if reg != nil {
		e, err := reg.Get(id)
		boot, bootErr := p.bootID()
		switch {
		case err == nil && (bootErr != nil || e.BootID == boot):
			return traceOf(e)
		case err == nil:
			// Interfaces have been numbered anew since: only the file is left of this attachment.
		case !errors.Is(err, registry.ErrNotFound):
			p.log.Warn("read endpoint file: going by the pins", "endpoint", id, "err", err)
		}
	}
	t := trace{id: id}
	for _, pin := range []string{inPin(bpffs, id), outPin(bpffs, id)} {
		if l, err := p.links.Inspect(pin); err == nil && l.Alive {
			t.ifindex = l.Ifindex
		}
	}
	if t.ifindex == 0 || dp == nil {
		return t
	}
	all, err := dp.Endpoints()
	if err != nil {
		p.log.Warn("read endpoints", "err", err)
	}
	for k := range all {
		if k.Ifindex == t.ifindex {
			t.addrs = append(t.addrs, k.Address)
		}
	}
	return t
}

// forget marks the backends behind t gone and removes its addresses.
func forget(dp maps, t trace) error {
	if t.ifindex == 0 || len(t.addrs) == 0 {
		return nil
	}
	var errs []error
	if _, err := dp.RetireEndpoint(t.ifindex, t.addrs); err != nil {
		errs = append(errs, fmt.Errorf("retire backends: %w", err))
	}
	for _, a := range t.addrs {
		if err := dp.DeleteEndpoint(datapath.EndpointKey{Address: a, Ifindex: t.ifindex}); err != nil {
			errs = append(errs, fmt.Errorf("remove address %s: %w", a, err))
		}
	}
	return errors.Join(errs...)
}
