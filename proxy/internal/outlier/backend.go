package outlier

import (
	"slices"
	"time"
)

const (
	firstEjection = 5 * time.Second
	longest       = 5 * time.Minute
	// calm is how long a backend must have served, at least, for its ejections to be forgotten.
	calm = time.Minute
)

// phase is where a backend stands.
type phase uint8

const (
	serving phase = iota
	ejected
	onTrial
)

// backend is one that is watched.
type backend struct {
	Backend
	able  bool
	ports []*port

	phase  phase
	since  time.Time     // of the phase; of a trial, when the backend was ejected
	back   time.Time     // when it last returned from a trial
	lasts  time.Duration // of the last ejection
	reason string        // of it
	found  verdict       // while it is to be ejected
}

// setPorts gives the backend its ports. A port that had another id begins anew.
func (b *backend) setPorts(ports []Port, read func(uint32) Counts) {
	before := b.ports
	b.ports = make([]*port, len(ports))
	for i, p := range ports {
		at := slices.IndexFunc(before, func(o *port) bool { return o.Port == p })
		if at >= 0 {
			b.ports[i] = before[at]
			continue
		}
		b.ports[i] = &port{Port: p, last: read(p.ID)}
	}
}

// judge reads the counters and says whether the backend is to be ejected, for what was found.
func (b *backend) judge(read func(uint32) Counts, now time.Duration) bool {
	b.found = verdict{}
	bad := false
	for _, p := range b.ports {
		o := p.take(read(p.ID), now)
		v, fails := verdict{}, false
		switch b.phase {
		case serving:
			v, fails = p.failing(now)
			p.guilty = fails
		case onTrial:
			if fails = o.failures() > 0; fails {
				v = verdict{p.name() + ": " + o.how() + " on trial", o.failures(), o.refused >= o.silent}
				p.guilty = true
			}
		}
		if fails && (!bad || v.failures > b.found.failures) {
			b.found = v
		}
		bad = bad || fails
	}
	return bad
}

// eject begins an ejection.
func (b *backend) eject(now time.Time) {
	again := b.phase == onTrial || b.lasts > 0 && now.Sub(b.back) < max(b.lasts, calm)
	if again {
		b.lasts = min(2*b.lasts, longest)
	} else {
		b.lasts = firstEjection
	}
	b.phase, b.since, b.reason = ejected, now, b.found.reason
}

// try begins a trial. What was counted before it does not count.
func (b *backend) try(read func(uint32) Counts) {
	b.phase = onTrial
	b.restart(read)
}

// restart lets nothing count that was counted up to now.
func (b *backend) restart(read func(uint32) Counts) {
	for _, p := range b.ports {
		p.restart(read(p.ID))
	}
}

// proven says that the backend on trial may come back.
func (b *backend) proven(now time.Duration) bool {
	return !slices.ContainsFunc(b.ports, func(p *port) bool { return !p.proven(now) })
}

// settle ends a trial well.
func (b *backend) settle(now time.Time) {
	b.phase, b.since, b.back, b.reason = serving, time.Time{}, now, ""
	for _, p := range b.ports {
		p.guilty = false
	}
}
