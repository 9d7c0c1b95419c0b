package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
	"github.com/tc-loadbalancer/tclb/proxy/internal/sweep"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

var _ view.View = (*proxy)(nil)

// Node implements view.View.
func (p *proxy) Node() view.Node { return *p.node.Load() }

// Mode implements view.View.
func (p *proxy) Mode() view.Mode { return p.mode.describe() }

// Tunnel implements view.View.
func (p *proxy) Tunnel() view.Tunnel { return p.mode.tunnel() }

// Config implements view.View.
func (p *proxy) Config() *config.Config { return p.config.Load() }

// Services implements view.View.
func (p *proxy) Services() []view.Service {
	s := p.store.Snapshot()
	if s == nil {
		return nil
	}
	out := make([]view.Service, 0, len(s.Services))
	for _, svc := range s.Services {
		in := p.reconcile.Service(svc.Spec.Name)
		v := view.Service{Service: svc.Spec, File: svc.File, ID: in.ID, MovedSlots: in.Moved}
		v.Probes = view.Probes(p.checks.checker.Counts(svc.Spec.Name))
		v.Ejections = view.Ejections(p.ejections.judge.Tally(svc.Spec.Name))
		v.Backends = make([]lb.Backend, len(svc.Backends))
		for i := range svc.Backends {
			v.Backends[i] = svc.Backends[i].Backend
		}
		if err := p.serviceError(svc.Spec.Name); err != nil {
			v.Error = err.Error()
		}
		out = append(out, v)
	}
	return out
}

// serviceError says why a service is not as it should be: not in the maps, or not served though it is.
func (p *proxy) serviceError(name string) error {
	err := p.reconcile.Service(name).Err
	unserved, _ := p.mode.unserved()
	if e, ok := unserved[name]; ok {
		err = errors.Join(err, errors.New(e.Err))
	}
	return err
}

// Backends implements view.View.
func (p *proxy) Backends(service string) []view.Backend {
	s := p.store.Snapshot()
	if s == nil {
		return nil
	}
	var out []view.Backend
	for _, svc := range s.Services {
		if service == "" || svc.Spec.Name == service {
			out = append(out, rows(svc, p.reconcile.Service(svc.Spec.Name))...)
		}
	}
	backdate(out, p.unhealthy())
	return out
}

// backdate says since when unhealthy backends are: reports outlive the proxy, the state's time does not.
func backdate(rows []view.Backend, reports []view.Unhealthy) {
	if len(reports) == 0 {
		return
	}
	type key struct {
		service, node string
		address       netip.Addr
	}
	since := make(map[key]time.Time, len(reports))
	for _, r := range reports {
		k := key{r.Service, r.Node, r.Address}
		if at, twice := since[k]; !twice || r.Since.Before(at) {
			since[k] = r.Since
		}
	}
	for i := range rows {
		b := &rows[i]
		if at, ok := since[key{b.Service, b.Place(), b.Address}]; ok && b.State == lb.Unhealthy {
			b.Since = at
		}
	}
}

// rows returns a row for each backend and target port of a service.
func rows(svc *state.Service, in reconcile.Service) []view.Backend {
	var out []view.Backend
	for i := range svc.Backends {
		b := &svc.Backends[i]
		from := len(out)
		for _, port := range svc.Spec.Ports {
			t := reconcile.Target{Address: b.Address, Port: svc.Spec.TargetPort(port, b.Backend), Protocol: port.Protocol, Zone: b.Zone}
			if slices.ContainsFunc(out[from:], func(r view.Backend) bool { return r.Port == t.Port && r.Protocol == t.Protocol }) {
				continue
			}
			row := view.Backend{
				Service: svc.Spec.Name, Address: b.Address, Port: t.Port, Protocol: t.Protocol, Node: b.Node,
				VLAN: b.VLAN, Weight: b.Weight, State: b.State, Local: b.Endpoint != "", Endpoint: b.Endpoint,
				Since: b.Since, Lost: b.Lost,
			}
			if b.Placed() {
				row.ID = in.Backends[t]
			}
			out = append(out, row)
		}
		slices.SortFunc(out[from:], func(a, b view.Backend) int {
			return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
		})
	}
	return out
}

// Endpoints implements view.View.
func (p *proxy) Endpoints() []view.Endpoint {
	s := p.store.Snapshot()
	if s == nil {
		return nil
	}
	vips := make(map[string][]netip.Addr, len(s.Services))
	for _, svc := range s.Services {
		vips[svc.Spec.Name] = svc.Spec.VIPs
	}
	subnets := *p.bridges.Load()
	out := make([]view.Endpoint, len(s.Endpoints))
	for i, e := range s.Endpoints {
		out[i] = view.Endpoint{Endpoint: e, Joined: s.Joined[e.ID], Notes: sweep.Notes(e, subnets[e.UpIfindex], vips)}
	}
	return out
}

// Unattached implements view.View.
func (p *proxy) Unattached() []view.Unattached {
	return p.finder.Find(func() map[string]bool {
		attached, _ := p.dir.List() // who cannot be read is reported by who follows the directory
		ids := make(map[string]bool, len(attached))
		for _, e := range attached {
			ids[e.ID] = true
		}
		return ids
	})
}

// Findings implements view.View.
func (p *proxy) Findings() []config.Finding {
	var out []config.Finding
	if r := p.reload.Load(); r != nil {
		out = slices.Clone(*r)
	}
	return append(out, p.services.Findings()...)
}

// Files implements view.View.
func (p *proxy) Files() []string { return p.services.Files() }

// Status implements view.View.
func (p *proxy) Status() view.Status {
	st := p.reconcile.Stats()
	out := view.Status{
		Ready: p.reconcile.Ready(), Applied: st.Applied, LastPass: st.LastPass, LastTook: st.LastTook,
		Passes: view.Timing(st.Passes), Tables: view.Timing(st.Tables),
		Failures: st.Failures, Repaired: st.Repaired, StartedAt: p.started,
		Drift: p.recounter.Drift(),
	}
	if s := p.store.Snapshot(); s != nil {
		out.Revision = s.Revision
	}
	for _, e := range p.reconcile.Errors() {
		out.Errors = append(out.Errors, view.ServiceError{Service: e.Service, Err: e.Err.Error(), Since: e.Since})
	}
	unserved, ever := p.mode.unserved()
	out.Failures += ever
	for _, name := range slices.Sorted(maps.Keys(unserved)) {
		out.Errors = append(out.Errors, unserved[name])
	}
	out.Unhealthy = p.unhealthy()
	out.Cluster = p.clusterStatus()
	out.Ways = p.mode.ways()
	return out
}

// unhealthy returns who fails its health checks, who is ejected, and whom nobody reaches in its VLAN, by service,
// address and node.
func (p *proxy) unhealthy() []view.Unhealthy {
	var out []view.Unhealthy
	for _, r := range p.checks.checker.Unhealthy() {
		out = append(out, view.Unhealthy{
			Service: r.Service, Address: r.Address, Node: r.Node, Reason: r.Reason, Since: r.Since,
		})
	}
	for _, r := range p.ejections.judge.Outliers() {
		if !r.Trial {
			out = append(out, view.Unhealthy{
				Service: r.Service, Address: r.Address, Node: r.Node, Ejected: true, Reason: "ejected: " + r.Reason, Since: r.Since,
			})
		}
	}
	out = append(out, away(p.store.Snapshot())...)
	slices.SortStableFunc(out, func(a, b view.Unhealthy) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), a.Address.Compare(b.Address), cmp.Compare(a.Node, b.Node))
	})
	return out
}

// away returns the backends in VLANs that cannot be reached.
func away(s *state.Snapshot) []view.Unhealthy {
	if s == nil {
		return nil
	}
	var out []view.Unhealthy
	for _, svc := range s.Services {
		for i := range svc.Backends {
			if b := &svc.Backends[i]; b.Away != "" {
				out = append(out, view.Unhealthy{
					Service: svc.Spec.Name, Address: b.Address, Node: b.Place(), Away: true, Reason: b.Away, Since: b.Since,
				})
			}
		}
	}
	return out
}

// SetDrain implements view.View.
func (p *proxy) SetDrain(ctx context.Context, service, backend string, drain bool) error {
	return p.commanded(ctx, p.store.SetDrain(service, backend, drain))
}

// SetWeight implements view.View.
func (p *proxy) SetWeight(ctx context.Context, service, backend string, weight *int) error {
	return p.commanded(ctx, p.store.SetWeight(service, backend, weight))
}

// commanded waits until packets feel a command, or says in the view's words why not.
func (p *proxy) commanded(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, state.ErrNoService):
		return inViewsWords(err, state.ErrNoService, view.ErrNoService, "tclb service list shows them")
	case errors.Is(err, state.ErrNoBackend):
		return inViewsWords(err, state.ErrNoBackend, view.ErrNoBackend, "tclb backend list shows them")
	case err != nil:
		return err
	}
	return p.waitApplied(ctx)
}

// inViewsWords replaces the cause at the end of err by the view's sentinel, and adds what to do.
func inViewsWords(err, cause, sentinel error, advice string) error {
	return fmt.Errorf("%s: %w: %s", strings.TrimSuffix(err.Error(), ": "+cause.Error()), sentinel, advice)
}

// Flush implements view.View.
func (p *proxy) Flush(_ context.Context, service string) (view.Flushed, error) {
	var id uint32
	if service != "" {
		if id = p.reconcile.Service(service).ID; id == 0 {
			return view.Flushed{}, fmt.Errorf("flush %q: %w", service, view.ErrNoService)
		}
	}
	swept, err := p.mode.tables().Sweep(datapath.SweepRequest{Flush: true, Service: id})
	if err != nil {
		return view.Flushed{}, fmt.Errorf("flush flows: %w", err)
	}
	affinities, err := p.mode.tables().FlushAffinity(id)
	if err != nil {
		return view.Flushed{}, fmt.Errorf("flush affinities: %w", err)
	}
	if err := p.mode.tables().FlushFragments(); err != nil {
		return view.Flushed{}, fmt.Errorf("flush fragments: %w", err)
	}
	return view.Flushed{Pairs: int(swept.Removed), Affinities: affinities}, nil
}
