package reconcile

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// servicePrefix begins the names of problems of services that have no bookkeeping yet.
const servicePrefix = "service "

// Timing counts something that takes time.
type Timing struct {
	Count uint64
	Total time.Duration
}

// Stats are counted since the start.
type Stats struct {
	Applied  uint64 // revision of the last pass
	LastPass time.Time
	LastTook time.Duration
	Passes   Timing
	Tables   Timing
	Failures uint64
	Repaired uint64
}

func (s *Stats) finish(started time.Time, took time.Duration, now time.Time) {
	s.LastPass, s.LastTook = now, took
	s.Passes.Count++
	s.Passes.Total += took
}

// ServiceError is why something is not in the maps. Service is empty for what concerns all.
type ServiceError struct {
	Service string
	Err     error
	Since   time.Time
}

// problem is an error that concerns no single service.
type problem struct {
	err      error
	since    time.Time
	attempts int
	retryAt  time.Time
}

// backoff is how long to wait after that many attempts.
func backoff(attempts int) time.Duration {
	d := firstRetry << min(attempts, 10)
	return min(d, lastRetry)
}

// note retains or clears the error of a service.
func (r *Reconciler) note(svc *service, err error) {
	now := r.now()
	if err == nil {
		if svc.err != nil {
			r.log.Info("service is complete again", "service", svc.name)
		}
		svc.err, svc.attempts = nil, 0
		return
	}
	r.stats.Failures++
	if svc.err == nil {
		svc.since = now
	}
	if svc.err == nil || svc.err.Error() != err.Error() {
		r.log.Error("service is not in force as it should be", "service", svc.name, "err", err)
	}
	svc.err = err
	svc.retryAt = now.Add(backoff(svc.attempts))
	svc.attempts++
}

// failGeneral retains an error that concerns no single service, by what failed.
func (r *Reconciler) failGeneral(what string, err error) {
	now := r.now()
	r.stats.Failures++
	p, known := r.general[what]
	if !known {
		p.since = now
	}
	if !known || p.err.Error() != err.Error() {
		r.log.Error("reconcile", "err", err)
	}
	p.err = err
	p.retryAt = now.Add(backoff(p.attempts))
	p.attempts++
	r.general[what] = p
}

func (r *Reconciler) fineGeneral(what string) { delete(r.general, what) }

// Stats returns what was counted.
func (r *Reconciler) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
}

// Ready says whether the first complete pass is done.
func (r *Reconciler) Ready() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pruned
}

// Errors returns what is not in the maps as it should be, by service.
func (r *Reconciler) Errors() []ServiceError {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []ServiceError
	for _, svc := range r.services {
		if svc.err != nil {
			out = append(out, ServiceError{svc.name, svc.err, svc.since})
		}
	}
	for what, p := range r.general {
		name, ok := strings.CutPrefix(what, servicePrefix)
		if !ok {
			name = ""
		}
		out = append(out, ServiceError{name, p.err, p.since})
	}
	slices.SortFunc(out, func(a, b ServiceError) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Err.Error(), b.Err.Error()))
	})
	return out
}

// Service is how a service stands in the maps.
type Service struct {
	ID       uint32
	Err      error
	Moved    uint64            // slots that changed owner by updates
	Backends map[Target]uint32 // ids
}

// Target is where packets of a service go.
type Target struct {
	Address  netip.Addr
	Port     uint16
	Protocol lb.Protocol
	Zone     uint16 // id of its node; 0 = reached from here without a tunnel
}

// Service returns how the service of that name stands; the zero value if it is not there.
func (r *Reconciler) Service(name string) Service {
	r.mu.Lock()
	defer r.mu.Unlock()
	svc := r.services[name]
	if svc == nil {
		return Service{Err: r.general[servicePrefix+name].err}
	}
	out := Service{ID: svc.id, Err: svc.err, Moved: svc.moved, Backends: make(map[Target]uint32, len(svc.ids))}
	for _, id := range svc.ids {
		b := &r.backends[id]
		out.Backends[Target{b.Address, b.Port, b.Protocol, b.Zone}] = id
	}
	return out
}
