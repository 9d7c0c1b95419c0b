package outlier

import (
	"fmt"
	"slices"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

const (
	firstEjection = 5 * time.Second
	longest       = 5 * time.Minute
	// quiet is how long a backend must have served, at least, for its ejections to be forgotten.
	quiet = time.Minute
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
	fails  uint64        // how often it failed in the window, while it is a candidate
	found  verdict       // while it is a candidate
}

// verdict is why a backend is to be ejected.
type verdict struct {
	reason  string
	refused bool // most failures were refusals
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

// judge reads the counters and says whether the backend is to be ejected.
func (b *backend) judge(read func(uint32) Counts, now time.Duration) bool {
	b.fails = 0
	bad := false
	for _, p := range b.ports {
		o := p.take(read(p.ID), now)
		switch b.phase {
		case serving:
			if o, within, failing := p.failing(now); failing {
				p.guilty = true
				if o.failures() > b.fails {
					b.fails, b.found = o.failures(), p.verdict(o, within)
				}
				bad = true
			} else {
				p.guilty = false
			}
		case onTrial:
			if o.failures() > 0 {
				p.guilty = true
				b.fails, b.found = o.failures(), verdict{p.name() + ": " + how(o) + " on trial", o.refused >= o.silent}
				bad = true
			}
		}
	}
	return bad
}

func (p *port) name() string { return fmt.Sprintf("port %d/%s", p.Port.Port, p.Protocol) }

// verdict puts into words what speaks against the port.
func (p *port) verdict(o outcomes, within time.Duration) verdict {
	v := verdict{refused: o.refused >= o.silent}
	if p.Protocol == lb.UDP {
		v.reason = fmt.Sprintf("%s: %d datagrams refused in %v", p.name(), o.refused, within)
	} else {
		v.reason = fmt.Sprintf("%s: %d of %d connections %s in %v", p.name(), o.failures(), o.failures()+o.answered, how(o), within)
	}
	return v
}

// how says in which ways flows failed.
func how(o outcomes) string {
	switch {
	case o.silent == 0:
		return "refused"
	case o.refused == 0:
		return "unanswered"
	}
	return "unanswered or refused"
}

// eject begins an ejection.
func (b *backend) eject(now time.Time) {
	again := b.phase == onTrial || b.lasts > 0 && now.Sub(b.back) < max(b.lasts, quiet)
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
