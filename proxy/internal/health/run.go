package health

import (
	"context"
	"sync"
	"time"
)

const (
	// grain is how exactly probes keep their time: those that are due within it share one wake-up.
	grain = 5 * time.Millisecond
	// idle is how long to sleep when nobody waits; a new backend ends it.
	idle = time.Hour
	// warnEvery bounds the warnings that this node could not probe.
	warnEvery = time.Minute
)

// Run probes until ctx ends, and returns when no probe is under way any more.
func (c *Checker) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		timer.Reset(c.dispatch(ctx, &running))
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		case <-timer.C:
		}
	}
}

// dispatch begins every probe that is due and has room, and returns how long nothing else is.
func (c *Checker) dispatch(ctx context.Context, running *sync.WaitGroup) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	wait := idle
	for _, l := range []*lane{&c.prompt, &c.slow} {
		for e := l.next(now); e != nil; e = l.next(now) {
			l.running++
			check, at := e.service.check, e.at
			asked, cancel := context.WithTimeout(ctx, check.Timeout)
			e.cancel = cancel
			running.Go(func() {
				defer cancel()
				c.finish(ctx, e, l, now, c.probe(asked, at, check))
			})
		}
		// A lane without room is looked at again when one of its probes ends.
		if !l.full() && len(l.waiting) > 0 {
			wait = min(wait, max(l.waiting[0].due.Sub(now), grain))
		}
	}
	return wait
}

// finish takes in the outcome of a probe that began at a time, in a lane. After the end of Run's context
// it means nothing.
func (c *Checker) finish(ctx context.Context, e *entry, l *lane, began time.Time, o Outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.full() {
		notify(c.wake)
	}
	l.running--
	e.cancel = nil
	if e.gone || ctx.Err() != nil {
		return
	}
	now := time.Now()
	c.judge(e, o, now)
	e.due = following(began, e.service.check.Interval)
	if e.due.Before(now) {
		e.due = now
	}
	e.late = o.Result == Timeout
	next := c.laneOf(e)
	next.push(e)
	if e.place == 0 {
		notify(c.wake)
	}
}

// judge counts an outcome and tells if it changed the backend's state. c.mu is held.
func (c *Checker) judge(e *entry, o Outcome, now time.Time) {
	counts, check := &e.service.counts, &e.service.check
	switch o.Result {
	case Success:
		counts.Success++
	case Failure:
		counts.Failure++
	case Timeout:
		counts.Timeout++
	case Unknown:
		if now.Sub(c.warned) >= warnEvery {
			c.warned = now
			c.log.Warn("backends could not be probed and keep their state", "service", e.service.name, "backend", e.at, "reason", o.Reason)
		}
		return
	}
	began := e.since
	if !e.take(o, check.Rise, check.Fall, now) {
		return
	}
	if e.bad {
		c.unhealthy[e] = struct{}{}
		c.log.Warn("backend is unhealthy", "service", e.service.name, "backend", e.at, "reason", e.reason, "fall", check.Fall)
	} else {
		delete(c.unhealthy, e)
		c.log.Info("backend is healthy again", "service", e.service.name, "backend", e.at, "took", now.Sub(began).Round(time.Millisecond))
	}
	notify(c.changed)
}

// laneOf returns the lane that a backend waits in. c.mu is held.
func (c *Checker) laneOf(e *entry) *lane {
	if e.late {
		return &c.slow
	}
	return &c.prompt
}
