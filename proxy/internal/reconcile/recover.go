package reconcile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// remains are what the maps held at start, by service id, until a service claims it.
type remains struct {
	keys     map[uint32][]lb.Frontend
	backends map[uint32][]uint32
	regions  map[datapath.Region]bool
	groups   map[uint32]bool
}

// recover reads the maps. Nothing is written.
func (r *Reconciler) recover() error {
	var err error
	if r.frontends, err = r.maps.Frontends(); err != nil {
		return fmt.Errorf("read frontends: %w", err)
	}
	if r.allows, err = r.maps.Allows(); err != nil {
		return fmt.Errorf("read allowed sources: %w", err)
	}
	backends, err := r.maps.Backends()
	if err != nil {
		return fmt.Errorf("read backends: %w", err)
	}
	node, err := r.maps.Service(0)
	if err != nil {
		return fmt.Errorf("read node-wide timeouts: %w", err)
	}
	r.timeouts = node.Timeouts
	r.makeRoom()
	r.found = &remains{
		keys:     make(map[uint32][]lb.Frontend),
		backends: make(map[uint32][]uint32),
		regions:  make(map[datapath.Region]bool),
		groups:   make(map[uint32]bool),
	}
	r.recoverBackends(backends)
	r.recoverFrontends()
	r.recoverGroups()
	r.recovered = true
	return nil
}

// makeRoom sizes what is known of the maps for what will be in them: growing step by step costs a
// fifth of a first pass over many services.
func (r *Reconciler) makeRoom() {
	keys := 0
	for _, svc := range r.snapshot.Services {
		keys += len(svc.Spec.VIPs)*(len(svc.Spec.Ports)+1) + len(svc.Backends)*(len(svc.Spec.Ports)+1)
	}
	if keys > len(r.frontends) {
		frontends := make(map[lb.Frontend]datapath.Frontend, keys)
		maps.Copy(frontends, r.frontends)
		r.frontends = frontends
	}
	r.direct = make(map[lb.Frontend]int, keys)
}

// inUse says whether a backend record stands for a backend. Retired records keep their generation
// alone.
func inUse(b *datapath.Backend) bool { return b.Protocol != 0 }

func (r *Reconciler) recoverBackends(backends map[uint32]datapath.Backend) {
	var last uint32
	for id := range backends {
		last = max(last, id)
	}
	r.backends = make([]datapath.Backend, last+1)
	for id, b := range backends {
		r.backends[id] = b
		if inUse(&b) && r.backendIDs.take(id) {
			r.found.backends[b.Service] = append(r.found.backends[b.Service], id)
		}
	}
	r.backendIDs.skip(last, r.now())
	for _, ids := range r.found.backends {
		slices.Sort(ids)
	}
}

// recoverFrontends reserves the regions that frontends point to. A region that cannot be, because it
// overlaps another, was not made by us as it stands: its frontends count as having none, so that they
// get new ones.
func (r *Reconciler) recoverFrontends() {
	bad := make(map[datapath.Region]bool)
	for _, region := range r.regionsInMaps() {
		if err := r.arena.Reserve(region); err != nil {
			r.log.Warn("frontends point to a table that cannot be: it is replaced", "offset", region.Offset, "len", region.Len, "err", err)
			bad[region] = true
			continue
		}
		r.found.regions[region] = true
	}
	for key, f := range r.frontends {
		if f.Kind == datapath.KindBackend {
			continue
		}
		if bad[f.Table] || bad[f.Members] {
			f.Table, f.Members = datapath.Region{}, datapath.Region{}
			f.Kind = datapath.FrontendKind(0xff) // never what is wanted
			r.frontends[key] = f
		}
		r.serviceIDs.take(f.Service)
		r.found.keys[f.Service] = append(r.found.keys[f.Service], key)
	}
}

// regionsInMaps returns every region that frontends point to, once, in order.
func (r *Reconciler) regionsInMaps() []datapath.Region {
	seen := make(map[datapath.Region]bool)
	for _, f := range r.frontends {
		for _, region := range [...]datapath.Region{f.Table, f.Members} {
			if region.Len > 0 {
				seen[region] = true
			}
		}
	}
	out := make([]datapath.Region, 0, len(seen))
	for region := range seen {
		out = append(out, region)
	}
	slices.SortFunc(out, func(a, b datapath.Region) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Len, b.Len))
	})
	return out
}

// adopt returns the bookkeeping of a service that has none: with the id that its frontends in the
// maps have, if they have one that nobody claimed, or else with a new one.
func (r *Reconciler) adopt(want *state.Service) (*service, error) {
	svc := &service{name: want.Spec.Name}
	if id := r.vote(want); id != 0 {
		svc.id = id
		if err := r.claim(svc, want); err != nil {
			r.unclaimed = true
			return nil, err
		}
	} else if err := r.begin(svc); err != nil {
		return nil, err
	}
	r.services[svc.name] = svc
	r.names[svc.id] = svc.name
	return svc, nil
}

// vote returns the unclaimed service id that most of a service's frontends have, or 0.
func (r *Reconciler) vote(want *state.Service) uint32 {
	if r.found == nil {
		return 0
	}
	votes := make(map[uint32]int)
	for _, key := range want.Spec.Frontends() {
		f, ok := r.frontends[key]
		if ok && f.Kind != datapath.KindBackend && f.Service != 0 && r.names[f.Service] == "" {
			votes[f.Service]++
		}
	}
	var best uint32
	for id, n := range votes {
		if best == 0 || n > votes[best] || n == votes[best] && id < best {
			best = id
		}
	}
	return best
}

// begin gives a service an id with a generation of its own.
func (r *Reconciler) begin(svc *service) error {
	id, err := r.serviceIDs.get(r.now())
	if err != nil {
		return fmt.Errorf("number service: %w", err)
	}
	before, err := r.maps.Service(id)
	if err != nil {
		r.serviceIDs.put(id, r.now())
		return fmt.Errorf("read service %d: %w", id, err)
	}
	svc.id = id
	svc.record = datapath.Service{Gen: before.Gen, BaseGen: before.BaseGen + 1}
	return nil
}

// claim makes what the maps hold under svc's id its own.
func (r *Reconciler) claim(svc *service, want *state.Service) error {
	var err error
	if svc.record, err = r.maps.Service(svc.id); err != nil {
		return fmt.Errorf("read service %d: %w", svc.id, err)
	}
	for key := range r.allows {
		if key.Service == svc.id {
			svc.allow = append(svc.allow, key)
		}
	}
	for family := range svc.tables {
		if err := r.claimTables(svc, want, family); err != nil {
			return err
		}
	}
	r.claimGroups(svc, &want.Spec)
	svc.keys = r.found.keys[svc.id]
	svc.ids = r.found.backends[svc.id]
	for _, region := range svc.regions {
		delete(r.found.regions, region)
	}
	delete(r.found.keys, svc.id)
	delete(r.found.backends, svc.id)
	return nil
}

// claimTables finds the regions of one family by the first VIP of it. If another VIP of the family has
// others, its frontends will differ from what is wanted, and be swapped.
func (r *Reconciler) claimTables(svc *service, want *state.Service, family int) error {
	vip, ok := firstVIP(&want.Spec, family)
	if !ok {
		return nil
	}
	t := &svc.tables[family]
	t.members = make([]held, len(want.Spec.Ports))
	for i, p := range want.Spec.Ports {
		f, ok := r.frontends[lb.Frontend{VIP: vip, Port: p.Port, Protocol: p.Protocol}]
		if !ok || f.Kind != datapath.KindService || f.Service != svc.id {
			continue
		}
		var err error
		if t.slots.region.Len == 0 {
			if t.slots, err = r.hold(svc, f.Table); err != nil {
				return err
			}
			t.shape = shapeOf(&f)
		}
		if t.members[i], err = r.hold(svc, f.Members); err != nil {
			return err
		}
	}
	return nil
}

// hold takes a region over from the remains.
func (r *Reconciler) hold(svc *service, region datapath.Region) (held, error) {
	if region.Len == 0 {
		return held{}, nil
	}
	values, err := r.maps.ReadRegion(region)
	if err != nil {
		return held{}, fmt.Errorf("read table at %d: %w", region.Offset, err)
	}
	if r.found.regions[region] && !slices.Contains(svc.regions, region) {
		svc.regions = append(svc.regions, region)
	}
	return held{region, hashValues(values)}, nil
}
