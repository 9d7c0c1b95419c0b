// Package health probes backends and says which of them are unhealthy.
//
// It knows services, addresses and time; what follows from a verdict is its user's business. One
// goroutine waits for all backends: goroutines exist only for probes under way, and those are
// limited, so that thousands of backends cost what is being asked of them and nothing while they wait.
package health

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Backend is who is probed, within a service. Another endpoint at the same address is another backend
// and begins anew.
type Backend struct {
	Node     string
	Address  netip.Addr
	Endpoint string // registry.Endpoint.ID of a container attached here; else empty
}

// Target is a backend and where it is probed.
type Target struct {
	Backend
	Port uint16
	// Reason and Since make a backend that is new here begin unhealthy: it was so before a restart.
	Reason string
	Since  time.Time
}

// Report is an unhealthy backend.
type Report struct {
	Service string
	Backend
	Reason string // what the last failed probe met
	Since  time.Time
}

// Counts are a service's probes by result, since its checks began.
type Counts struct {
	Success, Failure, Timeout uint64
}

// Options are what a checker works with.
type Options struct {
	// Probe asks a backend once; nil = over the network. It must return when ctx ends.
	Probe func(ctx context.Context, at netip.AddrPort, check lb.HealthCheck) Outcome
	// Limit is how many probes may be under way, at least 2; 0 = DefaultLimit.
	Limit int
	Log   *slog.Logger
}

// DefaultLimit is how many probes may be under way. Those that are answered take a millisecond, so
// this is for backends that swallow packets: a probe of them takes its whole timeout.
const DefaultLimit = 2048

// Checker probes backends while Run runs. Its methods are safe for concurrent use.
type Checker struct {
	probe   func(context.Context, netip.AddrPort, lb.HealthCheck) Outcome
	log     *slog.Logger
	changed chan struct{}
	wake    chan struct{}

	mu        sync.Mutex // guards all below
	services  map[string]*service
	unhealthy map[*entry]struct{}
	prompt    lane // backends that answered last time, or were not asked yet
	slow      lane // those that let the last probe time out
	warned    time.Time
}

// service is one whose backends are probed.
type service struct {
	name    string
	check   lb.HealthCheck
	counts  Counts
	entries map[Backend]*entry
}

// New returns a checker without backends.
func New(o Options) *Checker {
	c := &Checker{
		probe: o.Probe, log: o.Log, changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		services: make(map[string]*service), unhealthy: make(map[*entry]struct{}),
	}
	if c.probe == nil {
		c.probe = Probe
	}
	if o.Limit == 0 {
		o.Limit = DefaultLimit
	}
	c.slow.limit = max(o.Limit/2, 1)
	c.prompt.limit = max(o.Limit-c.slow.limit, 1)
	return c
}

// Changed yields after the set of unhealthy backends changed, once for any number of changes.
func (c *Checker) Changed() <-chan struct{} { return c.changed }

// SetService says how a service is probed, and all its backends. Those that stay keep their state,
// those that are missing are forgotten.
//
// A new backend is healthy until it fails check.Fall probes. It is probed at once, unless the whole
// service is new: then first probes are spread over the interval.
func (c *Checker) SetService(name string, check lb.HealthCheck, targets []Target) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	svc, known := c.services[name]
	if !known {
		svc = &service{name: name, entries: make(map[Backend]*entry, len(targets))}
		c.services[name] = svc
	}
	other := known && check != svc.check
	svc.check = check
	stay := make(map[Backend]bool, len(targets))
	for i := range targets {
		t := &targets[i]
		stay[t.Backend] = true
		at := netip.AddrPortFrom(t.Address, t.Port)
		switch e, old := svc.entries[t.Backend]; {
		case !old:
			c.add(svc, t, at, now, !known)
		case other || e.at != at:
			e.at = at
			c.hurry(e, spread(now, check.Interval))
		}
	}
	for b, e := range svc.entries {
		if !stay[b] {
			delete(svc.entries, b)
			c.drop(e)
		}
	}
	notify(c.wake)
}

// RemoveService ends the probing of a service. Its backends count as healthy.
func (c *Checker) RemoveService(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	svc := c.services[name]
	if svc == nil {
		return
	}
	delete(c.services, name)
	for _, e := range svc.entries {
		c.drop(e)
	}
}

// Unhealthy returns who is, by service, address and node.
func (c *Checker) Unhealthy() []Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Report, 0, len(c.unhealthy))
	for e := range c.unhealthy {
		out = append(out, Report{Service: e.service.name, Backend: e.backend, Reason: e.reason, Since: e.since})
	}
	slices.SortFunc(out, func(a, b Report) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), a.Address.Compare(b.Address), cmp.Compare(a.Node, b.Node))
	})
	return out
}

// Counts returns the probes of a service; the zero value if it is not probed.
func (c *Checker) Counts(service string) Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	if svc := c.services[service]; svc != nil {
		return svc.counts
	}
	return Counts{}
}

// add begins to probe a backend. c.mu is held.
func (c *Checker) add(svc *service, t *Target, at netip.AddrPort, now time.Time, isSpread bool) {
	e := &entry{service: svc, backend: t.Backend, at: at, due: now, place: outside}
	if isSpread {
		e.due = spread(now, svc.check.Interval)
	}
	if t.Reason != "" {
		e.bad, e.reason, e.since = true, t.Reason, t.Since
		c.unhealthy[e] = struct{}{}
	}
	svc.entries[t.Backend] = e
	c.prompt.push(e)
}

// hurry moves a backend's next probe forward. c.mu is held.
func (c *Checker) hurry(e *entry, due time.Time) {
	if e.place == outside || !due.Before(e.due) {
		return // under way: its next time follows from the new interval
	}
	l := c.laneOf(e)
	l.remove(e)
	e.due = due
	l.push(e)
}

// drop forgets a backend. A probe of it that is under way ends unheard. c.mu is held.
func (c *Checker) drop(e *entry) {
	e.gone = true
	if e.place != outside {
		c.laneOf(e).remove(e)
	}
	if e.cancel != nil {
		e.cancel()
	}
	if e.bad {
		delete(c.unhealthy, e)
		notify(c.changed)
	}
}

// notify leaves word in a channel with room for one.
func notify(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
