package daemon

import (
	"context"
	"slices"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/proxy/internal/outlier"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// ejections leads backends from snapshots to the judge of outliers, and its verdicts back into the store.
type ejections struct {
	judge *outlier.Judge
	store *state.Store
	inMap func(service string) reconcile.Service // how a service stands in the maps

	// seen are the services that the judge was told of: nil, if not all of their backends had ids.
	seen map[string]*state.Service
}

func newEjections(store *state.Store, judge *outlier.Judge, inMap func(string) reconcile.Service) *ejections {
	return &ejections{judge: judge, store: store, inMap: inMap, seen: make(map[string]*state.Service)}
}

// countsOf reads what the judge judges by.
func countsOf(d interface {
	BackendStat(id uint32) datapath.BackendStat
},
) func(id uint32) outlier.Counts {
	return func(id uint32) outlier.Counts {
		s := d.BackendStat(id)
		return outlier.Counts{Flows: uint32(s.Total), SYNs: s.SYNs, Answered: s.Answered, Rejected: s.Rejected}
	}
}

// follow tells the judge who there is and the store who is out, until ctx ends. passed returns a channel
// that is closed after the next pass over the maps, which is what gives backends their ids.
func (e *ejections) follow(ctx context.Context, passed func() <-chan struct{}) error {
	for {
		next := passed()
		if s := e.store.Snapshot(); s != nil {
			e.sync(s)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-next:
		case <-e.judge.Changed():
			e.publish()
		}
	}
}

// sync tells the judge about services that changed.
func (e *ejections) sync(s *state.Snapshot) {
	for name := range e.seen {
		if svc := s.Service(name); svc == nil || !svc.Spec.Outlier.Enabled {
			e.judge.RemoveService(name)
			delete(e.seen, name)
		}
	}
	for _, svc := range s.Services {
		name := svc.Spec.Name
		if !svc.Spec.Outlier.Enabled || e.seen[name] == svc {
			continue
		}
		targets, complete := watched(svc, e.inMap(name))
		e.judge.SetService(name, targets)
		e.seen[name] = svc
		if !complete {
			e.seen[name] = nil
		}
	}
}

// watched returns the backends of a service that packets reach from here, and whether all of them have ids.
func watched(svc *state.Service, in reconcile.Service) (out []outlier.Target, complete bool) {
	complete = true
	out = make([]outlier.Target, 0, len(svc.Backends))
	for i := range svc.Backends {
		b := &svc.Backends[i]
		if !b.Placed() {
			continue
		}
		t := outlier.Target{
			Backend: outlier.Backend{Node: b.Place(), Address: b.Address, Endpoint: b.Endpoint}, Able: b.Able(),
			Ports: make([]outlier.Port, 0, len(svc.Spec.Ports)),
		}
		for _, p := range svc.Spec.Ports {
			at := outlier.Port{Port: svc.Spec.TargetPort(p, b.Backend), Protocol: p.Protocol}
			at.ID = in.Backends[reconcile.Target{Address: b.Address, Port: at.Port, Protocol: at.Protocol, Zone: b.Zone}]
			if slices.Contains(t.Ports, at) {
				continue
			}
			if at.ID == 0 {
				complete = false
				continue
			}
			t.Ports = append(t.Ports, at)
		}
		out = append(out, t)
	}
	return out, complete
}

// publish tells the store who is out.
func (e *ejections) publish() {
	set := make(map[state.HealthRef]state.Ejection)
	for _, r := range e.judge.Outliers() {
		ref := state.HealthRef{Service: r.Service, Node: r.Node, Address: r.Address, Endpoint: r.Endpoint}
		set[ref] = state.Ejected
		if r.Trial {
			set[ref] = state.OnTrial
		}
	}
	e.store.SetEjections(set)
}
