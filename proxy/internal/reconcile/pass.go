package reconcile

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// chunk is how many services are planned before they are committed: enough to make batches worth it,
// few enough to keep what a pass allocates small.
const chunk = 512

// Apply makes the maps equal to a snapshot, as far as they differ from it. What failed before is
// tried again when its time has come. Errors are found in Status.
func (r *Reconciler) Apply(s *state.Snapshot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s == nil {
		return
	}
	r.snapshot = s
	r.pass()
}

// Retry makes another pass with the snapshot of the last one.
func (r *Reconciler) Retry() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.snapshot == nil {
		return
	}
	if _, failed := r.general[resyncProblem]; failed {
		r.resync()
		return
	}
	r.pass()
}

// NextRetry returns when something that failed should be tried again; false if all is well.
func (r *Reconciler) NextRetry() (time.Time, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var next time.Time
	earlier := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, svc := range r.services {
		if svc.err != nil {
			earlier(svc.retryAt)
		}
	}
	for _, p := range r.general {
		earlier(p.retryAt)
	}
	return next, !next.IsZero()
}

// pass is one way through. r.mu is held.
func (r *Reconciler) pass() {
	started := time.Now()
	defer func() { r.stats.finish(started, time.Since(started), r.now()) }()
	if !r.recovered {
		if err := r.recover(); err != nil {
			r.failGeneral("recover", err)
			return
		}
		r.fineGeneral("recover")
	}
	r.postpone()
	all := r.putTimeouts()
	r.markOutside()
	clean := r.takeLeftover()
	r.unclaimed = false
	changes := make([]*change, 0, chunk)
	wanted := make(map[string]bool, len(r.snapshot.Services))
	for _, want := range r.snapshot.Services {
		wanted[want.Spec.Name] = true
		if svc := r.consider(want, all); svc != nil {
			if changes = append(changes, newChange(svc, want)); len(changes) == chunk {
				r.carryOut(changes, &clean)
				changes = changes[:0]
			}
		}
	}
	r.carryOut(changes, &clean)
	for name, svc := range r.services {
		if !wanted[name] {
			r.remove(svc, &clean)
		}
	}
	r.clean(&clean)
	if !r.pruned && !r.unclaimed {
		r.prune()
		r.pruned, r.found = true, nil
	}
	r.stats.Applied = r.snapshot.Revision
}

// carryOut builds, plans and commits changes, and notes what they leave to be taken away.
func (r *Reconciler) carryOut(changes []*change, clean *cleanup) {
	r.buildAll(changes)
	for _, c := range changes {
		r.plan(c)
	}
	r.commit(changes)
	for _, c := range changes {
		r.after(c, clean)
	}
	r.putDirect(changes)
	for _, c := range changes {
		r.note(c.svc, errors.Join(c.errs...))
	}
}

// postpone sets the next time for problems that this pass is a try at, and drops those of services that
// nobody wants any more. A pass that solves one clears it.
func (r *Reconciler) postpone() {
	now := r.now()
	for what, p := range r.general {
		name, ofService := strings.CutPrefix(what, servicePrefix)
		switch {
		case ofService && r.snapshot.Service(name) == nil:
			delete(r.general, what)
		case !now.Before(p.retryAt):
			p.retryAt = now.Add(backoff(p.attempts))
			p.attempts++
			r.general[what] = p
		}
	}
}

// takeLeftover returns what earlier passes could not take away and nobody wants now.
func (r *Reconciler) takeLeftover() cleanup {
	out := r.leftover
	r.leftover = cleanup{}
	return out
}

// consider returns the service to be planned, or nil if nothing about it is new.
func (r *Reconciler) consider(want *state.Service, force bool) *service {
	name := want.Spec.Name
	svc := r.services[name]
	if svc == nil {
		var err error
		if svc, err = r.adopt(want); err != nil {
			r.failGeneral(servicePrefix+name, err)
			return nil
		}
		r.fineGeneral(servicePrefix + name)
	}
	due := svc.err != nil && !r.now().Before(svc.retryAt)
	if svc.applied == want && !svc.dirty && !force && !due {
		return nil
	}
	svc.dirty = false
	return svc
}

// markOutside marks the services whose VIPs clients beyond the uplinks are to be told something else of.
func (r *Reconciler) markOutside() {
	if r.outside == r.snapshot.Outside {
		return
	}
	r.outside = r.snapshot.Outside
	for _, svc := range r.services {
		for _, key := range svc.keys {
			if key.Port == 0 && r.vipRecord(svc.id, key.VIP) != withoutEpoch(r.frontends[key]) {
				svc.dirty = true
			}
		}
	}
}

// putTimeouts writes the node-wide timeouts. If they changed, every service has to be looked at.
func (r *Reconciler) putTimeouts() (changed bool) {
	if sameTimeouts(r.timeouts, r.snapshot.Timeouts) {
		return false
	}
	if err := r.maps.PutService(0, datapath.Service{Gen: 1, Timeouts: r.snapshot.Timeouts}); err != nil {
		r.failGeneral("timeouts", fmt.Errorf("write node-wide timeouts: %w", err))
		return false
	}
	r.fineGeneral("timeouts")
	r.timeouts = r.snapshot.Timeouts
	return true
}

// Save writes the base tables that passes changed, and returns how many. It may take long and holds
// nobody up: call it after passes, from a goroutine of its own.
func (r *Reconciler) Save() int {
	n, err := r.bases.flush()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.failGeneral("tables", err)
	} else {
		r.fineGeneral("tables")
	}
	return n
}
