package reconcile

import (
	"errors"
	"fmt"
	"slices"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// cleanup collects what a pass takes away. It happens after everything that is new stands, and in
// the reverse order.
type cleanup struct {
	keys    []lb.Frontend
	direct  []lb.Frontend // backends' own addresses that lost a user
	retire  []uint32
	stale   []uint32 // to be retired if nobody got them meanwhile
	allow   []datapath.AllowKey
	changed []*change
	removed []*service
}

// after notes what a committed change leaves behind.
func (r *Reconciler) after(c *change, clean *cleanup) {
	clean.changed = append(clean.changed, c)
	if c.failed {
		// What was numbered for it is unused; the next try numbers again.
		for _, id := range c.ids {
			if !slices.Contains(c.svc.ids, id) {
				clean.retire = append(clean.retire, id)
				c.svc.retiring = append(c.svc.retiring, id)
			}
		}
		r.ungroup(c)
		return
	}
	svc := c.svc
	for _, key := range svc.direct {
		if _, ok := slices.BinarySearchFunc(c.direct, key, compareFrontends); !ok {
			r.direct[key]--
			clean.direct = append(clean.direct, key)
		}
	}
	for _, key := range svc.keys {
		if !slices.Contains(c.keys, key) && r.owns(svc, key) {
			clean.keys = append(clean.keys, key)
		}
	}
	for _, k := range svc.allow {
		if !slices.Contains(c.allow, k) {
			clean.allow = append(clean.allow, k)
		}
	}
	clean.retire = append(clean.retire, c.retire...)
	svc.retiring = append(svc.retiring, c.retire...)
	// Keys that could not be deleted earlier stay in the list, or nobody would delete them.
	svc.keys = union(c.keys, svc.keys)
	svc.ids, svc.direct, svc.allow = c.ids, c.direct, c.allow
	svc.tables, svc.applied = c.tables, c.want
	r.regroup(svc, c.groups)
}

func union(a, b []lb.Frontend) []lb.Frontend {
	for _, key := range b {
		if !slices.Contains(a, key) {
			a = append(a, key)
		}
	}
	return a
}

// owns says whether the maps hold a VIP's key for this service.
func (r *Reconciler) owns(svc *service, key lb.Frontend) bool {
	f, ok := r.frontends[key]
	return ok && f.Kind != datapath.KindBackend && f.Service == svc.id
}

// remove takes a service away that is wanted no more.
func (r *Reconciler) remove(svc *service, clean *cleanup) {
	for _, key := range svc.keys {
		if r.owns(svc, key) {
			clean.keys = append(clean.keys, key)
		}
	}
	for _, key := range svc.direct {
		r.direct[key]--
		clean.direct = append(clean.direct, key)
	}
	clean.retire = append(clean.retire, svc.ids...)
	clean.allow = append(clean.allow, svc.allow...)
	svc.retiring = append(svc.retiring, svc.ids...)
	svc.ids, svc.direct, svc.allow = nil, nil, nil
	svc.tables = [2]tables{}
	svc.applied, svc.err = nil, nil
	r.regroup(svc, nil)
	clean.removed = append(clean.removed, svc)
	for family := range familyNames {
		r.bases.remove(baseName(svc.name, family))
	}
	r.shared.Drop(svc.name)
}

// clean takes away what is left over.
func (r *Reconciler) clean(clean *cleanup) {
	left := &r.leftover
	r.conclude("delete", r.deleteFrontends(clean), len(left.keys)+len(left.direct))
	r.conclude("retire", r.retire(append(clean.retire, r.unowned(clean.stale)...)), len(left.stale))
	r.conclude("allow", r.deleteAllows(clean.allow), len(left.allow))
	for _, c := range clean.changed {
		r.settle(c.svc, len(c.errs) == 0)
	}
	for _, svc := range clean.removed {
		r.settle(svc, true)
		if len(svc.keys) > 0 {
			continue // tried again with the next pass
		}
		delete(r.names, svc.id)
		delete(r.services, svc.name)
		r.serviceIDs.put(svc.id, r.now())
	}
}

// conclude retains the error of a kind of deletion. It is over when nothing is left over.
func (r *Reconciler) conclude(what string, err error, left int) {
	switch {
	case err != nil:
		r.failGeneral(what, err)
	case left == 0:
		r.fineGeneral(what)
	}
}

// deleteFrontends deletes keys. Those that are also a backend's own address become that again.
func (r *Reconciler) deleteFrontends(clean *cleanup) error {
	var gone []lb.Frontend
	back := make(map[lb.Frontend]datapath.Frontend)
	for _, key := range clean.keys {
		if r.wanted(key) {
			continue // by a service that got it in this pass
		}
		if r.direct[key] > 0 {
			back[key] = datapath.Frontend{Kind: datapath.KindBackend}
		} else {
			gone = append(gone, key)
		}
	}
	for _, key := range clean.direct {
		if r.direct[key] > 0 {
			continue
		}
		delete(r.direct, key)
		if f, ok := r.frontends[key]; ok && f.Kind == datapath.KindBackend {
			gone = append(gone, key)
		}
	}
	var errs []error
	if len(back) > 0 {
		errs = append(errs, r.putFrontends(back))
	}
	if len(gone) > 0 {
		if err := r.maps.DeleteFrontends(gone); err != nil {
			errs = append(errs, fmt.Errorf("delete frontends: %w", err))
			r.leftover.keys = append(r.leftover.keys, clean.keys...)
			r.leftover.direct = append(r.leftover.direct, clean.direct...)
		} else {
			for _, key := range gone {
				delete(r.frontends, key)
			}
		}
	}
	return errors.Join(errs...)
}

// wanted says whether a service has that VIP's key.
func (r *Reconciler) wanted(key lb.Frontend) bool {
	f, ok := r.frontends[key]
	if !ok || f.Kind == datapath.KindBackend {
		return false
	}
	svc := r.services[r.names[f.Service]]
	if svc == nil || svc.applied == nil {
		return false
	}
	spec := &svc.applied.Spec
	return slices.Contains(spec.VIPs, key.VIP) && (key.Port == 0 || slices.ContainsFunc(spec.Ports, func(p lb.Port) bool {
		return p.Port == key.Port && p.Protocol == key.Protocol
	}))
}

// retire ends backends: their flows die with the generation, and nothing new goes there.
func (r *Reconciler) retire(ids []uint32) error {
	if len(ids) == 0 {
		return nil
	}
	records := make([]datapath.Backend, len(ids))
	for i, id := range ids {
		records[i] = datapath.Backend{Gen: nextGen(r.recordOf(id).Gen)}
	}
	if err := r.maps.PutBackends(ids, records); err != nil {
		r.leftover.stale = append(r.leftover.stale, ids...)
		return fmt.Errorf("retire backends: %w", err)
	}
	for i, id := range ids {
		r.maps.ResetBackendStat(id, r.recordOf(id).Group)
		r.setRecord(id, records[i])
	}
	return nil
}

// unowned returns the ids that no service has.
func (r *Reconciler) unowned(ids []uint32) []uint32 {
	if len(ids) == 0 {
		return nil
	}
	owned := make(map[uint32]bool)
	for _, svc := range r.services {
		for _, id := range svc.ids {
			owned[id] = true
		}
	}
	return slices.DeleteFunc(ids, func(id uint32) bool { return owned[id] })
}

// deleteAllows deletes after the frontends are swapped: a service that is open again must not refuse
// for a moment.
func (r *Reconciler) deleteAllows(keys []datapath.AllowKey) error {
	var errs []error
	for _, k := range keys {
		if svc := r.services[r.names[k.Service]]; svc != nil && slices.Contains(svc.allow, k) {
			continue
		}
		if err := r.maps.DeleteAllow(k); err != nil {
			r.leftover.allow = append(r.leftover.allow, k)
			errs = append(errs, fmt.Errorf("delete allowed source %s: %w", k.Prefix, err))
			continue
		}
		delete(r.allows, k)
	}
	return errors.Join(errs...)
}

// settle gives back what no packet can meet any more: regions, and ids that no seat list names.
func (r *Reconciler) settle(svc *service, complete bool) {
	svc.keys = slices.DeleteFunc(svc.keys, func(key lb.Frontend) bool { return !r.owns(svc, key) })
	r.release(svc)
	if !complete {
		return
	}
	now := r.now()
	for _, id := range svc.retiring {
		r.backendIDs.put(id, now)
	}
	svc.retiring = nil
}

// prune takes away what the maps held at start and nobody claimed. It runs once, when every
// service had its turn.
func (r *Reconciler) prune() {
	left := r.found
	var clean cleanup
	for key, f := range r.frontends {
		if f.Kind == datapath.KindBackend {
			if r.direct[key] == 0 {
				clean.direct = append(clean.direct, key)
			}
		} else if r.names[f.Service] == "" {
			clean.keys = append(clean.keys, key)
		}
	}
	for _, ids := range left.backends {
		clean.retire = append(clean.retire, ids...)
	}
	for k := range r.allows {
		if r.names[k.Service] == "" {
			clean.allow = append(clean.allow, k)
		}
	}
	r.clean(&clean)
	now := r.now()
	for _, id := range clean.retire {
		r.backendIDs.put(id, now)
	}
	for id := range left.keys {
		r.serviceIDs.put(id, now)
	}
	for id := range left.groups {
		r.groupIDs.put(id, now)
	}
	for region := range left.regions {
		r.arena.Free(region)
	}
	if n := len(clean.keys) + len(clean.direct) + len(clean.retire); n > 0 {
		r.log.Info("removed what nobody wants any more", "frontends", len(clean.keys)+len(clean.direct), "backends", len(clean.retire))
	}
}
