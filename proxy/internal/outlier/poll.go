package outlier

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// Run polls until ctx ends. While no service is watched it sleeps.
func (j *Judge) Run(ctx context.Context) error {
	ticker := time.NewTicker(Every)
	defer ticker.Stop()
	for {
		if !j.watching() {
			ticker.Stop()
			select {
			case <-ctx.Done():
				return nil
			case <-j.wake:
				ticker.Reset(Every)
				continue
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			j.Poll(time.Now())
		}
	}
}

func (j *Judge) watching() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.services) > 0
}

// Poll reads all counters and judges by them. now does not fall from one call to the next.
func (j *Judge) Poll(now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.clock += min(now.Sub(j.polled), 2*Every)
	j.polled = now
	for _, svc := range j.services {
		j.pollService(svc, now)
	}
}

// family is what the cap is about: the backends of a service with addresses of one kind.
type family struct {
	able, out  int // out: of those able, ejected or on trial
	candidates []*backend
}

func (f *family) most() int { return f.able / 2 }

// pollService judges the backends of a service. j.mu is held.
func (j *Judge) pollService(svc *service, now time.Time) {
	var families [2]family
	for _, b := range svc.ordered {
		f := &families[familyOf(b)]
		if b.able {
			f.able++
		}
		bad := b.judge(j.read, j.clock)
		switch {
		case b.phase == ejected && now.Sub(b.since) >= b.lasts:
			j.try(svc, b, now)
		case b.phase == onTrial && !bad && b.proven(j.clock):
			b.settle(now)
			j.log.Info("backend is back from ejection", "service", svc.name, "backend", b.Address, "node", b.Node)
			notify(j.changed)
		}
		if b.able && b.phase != serving {
			f.out++
		}
		if bad && b.able {
			f.candidates = append(f.candidates, b)
		}
	}
	full := false
	for i := range families {
		f := &families[i]
		j.release(svc, i, f, now)
		full = j.ejectWorst(svc, f, now) || full
	}
	if full && !svc.full {
		j.log.Warn("more backends fail than may be ejected: they serve on", "service", svc.name)
	}
	svc.full = full
}

// release lets those who were ejected first return, if more are than may be. j.mu is held.
func (j *Judge) release(svc *service, of int, f *family, now time.Time) {
	if f.out <= f.most() {
		return // nor are those of them who are ejected too many
	}
	var out []*backend
	for _, b := range svc.ordered {
		if familyOf(b) == of && b.able && b.phase == ejected {
			out = append(out, b)
		}
	}
	slices.SortStableFunc(out, func(a, b *backend) int { return a.since.Compare(b.since) })
	for _, b := range out[:max(len(out)-f.most(), 0)] {
		j.try(svc, b, now)
	}
}

// ejectWorst ejects candidates, as many as may be, and says whether that was not all. j.mu is held.
func (j *Judge) ejectWorst(svc *service, f *family, now time.Time) (full bool) {
	slices.SortStableFunc(f.candidates, func(a, b *backend) int { return cmp.Compare(b.found.failures, a.found.failures) })
	for _, b := range f.candidates {
		room := f.most() - f.out
		if b.phase == onTrial {
			room++ // it is among those who are out
		}
		if room <= 0 {
			full = true
			if b.phase == onTrial {
				b.restart(j.read)
			}
			continue
		}
		if b.phase == serving {
			f.out++
		}
		b.eject(now)
		if b.found.refused {
			svc.tally.Refused++
		} else {
			svc.tally.Unanswered++
		}
		j.log.Warn("backend is ejected", "service", svc.name, "backend", b.Address, "node", b.Node, "reason", b.reason, "for", b.lasts)
		notify(j.changed)
	}
	return full
}

// try puts a backend on trial. j.mu is held.
func (j *Judge) try(svc *service, b *backend, now time.Time) {
	b.try(j.read)
	j.log.Info("ejected backend is on trial", "service", svc.name, "backend", b.Address, "node", b.Node, "took", now.Sub(b.since).Round(Every))
	notify(j.changed)
}

// familyOf returns the index of a backend's family.
func familyOf(b *backend) int {
	if b.Address.Is4() {
		return 0
	}
	return 1
}
