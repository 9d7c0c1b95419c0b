package reconcile

import (
	"fmt"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Resync reads everything back and repairs what somebody else changed.
func (r *Reconciler) Resync() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.snapshot != nil {
		r.resync()
	}
}

// resyncProblem names the error of a resync that failed.
const resyncProblem = "resync"

func (r *Reconciler) resync() {
	if r.pruned {
		if err := r.reread(); err != nil {
			r.failGeneral(resyncProblem, fmt.Errorf("read back: %w", err))
			return
		}
		r.fineGeneral(resyncProblem)
	}
	r.pass()
}

// reread replaces what is known of the maps by what they hold, and marks the services to which
// differences belong.
func (r *Reconciler) reread() error {
	d := differences{frontends: make(map[lb.Frontend]bool), backends: make(map[uint32]bool), services: make(map[uint32]bool)}
	if err := r.rereadFrontends(&d); err != nil {
		return err
	}
	if err := r.rereadBackends(&d); err != nil {
		return err
	}
	if err := r.rereadAllows(&d); err != nil {
		return err
	}
	for _, svc := range r.services {
		if err := r.rereadService(svc, &d); err != nil {
			return err
		}
	}
	node, err := r.maps.Service(0)
	if err != nil {
		return fmt.Errorf("read node-wide timeouts: %w", err)
	}
	if !sameTimeouts(node.Timeouts, r.timeouts) {
		r.timeouts = node.Timeouts
		d.count++
	}
	if d.count > 0 {
		r.stats.Repaired += uint64(d.count)
		r.log.Warn("somebody else changed the maps: repairing", "entries", d.count)
	}
	return nil
}

// differences are what somebody else changed.
type differences struct {
	frontends map[lb.Frontend]bool
	backends  map[uint32]bool
	services  map[uint32]bool
	count     int
}

func (r *Reconciler) rereadFrontends(d *differences) error {
	actual, err := r.maps.Frontends()
	if err != nil {
		return fmt.Errorf("read frontends: %w", err)
	}
	for key, f := range actual {
		known, ok := r.frontends[key]
		if ok && known == f {
			continue
		}
		d.frontends[key] = true
		if !ok { // nobody's, unless a service turns out to want it
			r.leftover.direct = append(r.leftover.direct, key)
			if f.Kind != datapath.KindBackend {
				r.leftover.keys = append(r.leftover.keys, key)
			}
		}
	}
	for key := range r.frontends {
		if _, ok := actual[key]; !ok {
			d.frontends[key] = true
		}
	}
	r.frontends = actual
	d.count += len(d.frontends)
	return nil
}

func (r *Reconciler) rereadBackends(d *differences) error {
	actual, err := r.maps.Backends()
	if err != nil {
		return fmt.Errorf("read backends: %w", err)
	}
	suspect := make(map[uint32]bool)
	for id := range r.backends {
		id := uint32(id)
		known, b := r.backends[id], actual[id]
		delete(actual, id)
		if b == known || !inUse(&b) && !inUse(&known) && b.Gen == known.Gen {
			continue
		}
		if marked := known; !r.suspect[id] {
			marked.Live, marked.New, marked.Local = false, false, false
			if b == marked {
				// The plugin does this at DEL, and its word on the endpoint is on its way here. If
				// it does not come until the next time, the mark was wrong.
				suspect[id] = true
				continue
			}
		}
		r.backends[id] = b
		d.backends[id] = true
		if inUse(&b) && !r.backendIDs.used[id] {
			r.leftover.stale = append(r.leftover.stale, id)
		}
	}
	for id, b := range actual {
		r.setRecord(id, b)
		d.backends[id] = true
		r.leftover.stale = append(r.leftover.stale, id)
	}
	r.suspect = suspect
	d.count += len(d.backends)
	return nil
}

func (r *Reconciler) rereadAllows(d *differences) error {
	actual, err := r.maps.Allows()
	if err != nil {
		return fmt.Errorf("read allowed sources: %w", err)
	}
	for k := range r.allows {
		if _, ok := actual[k]; !ok {
			d.services[k.Service] = true
			d.count++
		}
	}
	for k := range actual {
		if _, ok := r.allows[k]; !ok {
			r.leftover.allow = append(r.leftover.allow, k)
			d.count++
		}
	}
	r.allows = actual
	return nil
}

// rereadService marks the service if a difference is its own, and reads its record and tables.
func (r *Reconciler) rereadService(svc *service, d *differences) error {
	svc.dirty = svc.dirty || d.services[svc.id]
	for _, keys := range [...][]lb.Frontend{svc.keys, svc.direct} {
		for _, key := range keys {
			svc.dirty = svc.dirty || d.frontends[key]
		}
	}
	for _, id := range svc.ids {
		svc.dirty = svc.dirty || d.backends[id]
	}
	record, err := r.maps.Service(svc.id)
	if err != nil {
		return fmt.Errorf("read service %d: %w", svc.id, err)
	}
	if !sameRecord(record, svc.record) {
		svc.rewrite, svc.dirty = true, true
		d.count++
	}
	for family := range svc.tables {
		t := &svc.tables[family]
		if err := r.rereadRegion(svc, &t.slots, d); err != nil {
			return err
		}
		for i := range t.members {
			if err := r.rereadRegion(svc, &t.members[i], d); err != nil {
				return err
			}
		}
	}
	return nil
}

// rereadRegion compares a region with what was written there. One that differs is replaced, not
// repaired in place: packets read it.
func (r *Reconciler) rereadRegion(svc *service, h *held, d *differences) error {
	if h.region.Len == 0 {
		return nil
	}
	values, err := r.maps.ReadRegion(h.region)
	if err != nil {
		return fmt.Errorf("read table at %d: %w", h.region.Offset, err)
	}
	if hash := hashValues(values); hash != h.hash {
		h.hash, svc.dirty = hash, true
		d.count++
	}
	return nil
}
