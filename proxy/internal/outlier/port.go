package outlier

import (
	"fmt"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

const (
	// window is how far back outcomes count.
	window = time.Second
	// brief is the window in which somebody without any success is gone.
	brief = 400 * time.Millisecond
	// patience is how long after it was seen a SYN may be without an answer. It was sent up to
	// Every before.
	patience = 250 * time.Millisecond
	// enough is how many failures or successes say anything.
	enough = 3
	// implausible is a growth between two readings that means that the counter began anew.
	implausible = 1 << 24
)

// port is what is known of one port of a backend.
type port struct {
	Port
	last Counts
	open []cohort   // SYNs without an answer, oldest first
	past []outcomes // of the window, oldest first; none while nothing happens
	// spare are answers at the last reading whose SYNs were not seen: counters are not read at one moment.
	spare uint32
	// refused are refusals since the last answer, for TCP, and refusedAt is when the first was seen.
	refused   uint64
	refusedAt time.Duration

	guilty   bool // its backend was ejected for it
	proofs   uint64
	provenAt time.Duration // when there were enough
}

// cohort is SYNs seen by one reading.
type cohort struct {
	seen time.Duration
	n    uint32
}

// outcomes are what one reading found, or several together.
type outcomes struct {
	at                        time.Duration
	answered, refused, silent uint64
}

func (o outcomes) failures() uint64 { return o.refused + o.silent }

func (o outcomes) none() bool { return o.answered+o.refused+o.silent == 0 }

func (o *outcomes) add(p outcomes) {
	o.answered += p.answered
	o.refused += p.refused
	o.silent += p.silent
}

// restart forgets everything that was not counted yet, as if c was the first reading.
func (p *port) restart(c Counts) {
	p.last, p.spare, p.refused, p.proofs = c, 0, 0, 0
	p.open, p.past = nil, nil
}

// take reads the counters and returns what they say in addition.
func (p *port) take(c Counts, now time.Duration) outcomes {
	if c == p.last && p.spare == 0 && len(p.open) == 0 && len(p.past) == 0 {
		return outcomes{}
	}
	d := Counts{c.Flows - p.last.Flows, c.SYNs - p.last.SYNs, c.Answered - p.last.Answered, c.Rejected - p.last.Rejected}
	if max(d.Flows, d.SYNs, d.Answered, d.Rejected) >= implausible {
		p.restart(c)
		return outcomes{}
	}
	p.last = c
	o := outcomes{at: now, answered: uint64(d.Answered), refused: uint64(d.Rejected)}
	if p.Protocol == lb.TCP {
		p.match(d.SYNs, d.Answered+d.Rejected, now)
		p.noteRefusals(d, now)
		o.silent = p.expire(now)
	}
	for len(p.past) > 0 && now-p.past[0].at >= window {
		p.past = p.past[1:]
	}
	switch {
	case !o.none():
		p.past = append(p.past, o)
	case len(p.past) == 0:
		p.past = nil
	}
	p.prove(d, now)
	return o
}

// match puts answers to SYNs, the oldest first.
func (p *port) match(begun, ended uint32, now time.Duration) {
	early := min(p.spare, begun)
	if begun -= early; begun > 0 {
		p.open = append(p.open, cohort{now, begun})
	}
	for ended > 0 && len(p.open) > 0 {
		n := min(ended, p.open[0].n)
		ended -= n
		if p.open[0].n -= n; p.open[0].n == 0 {
			p.open = p.open[1:]
		}
	}
	p.spare = ended
	if len(p.open) == 0 {
		p.open = nil
	}
}

// noteRefusals counts refusals that no answer has followed. Of those of one reading nobody knows the
// order, so refusals count as the later ones.
func (p *port) noteRefusals(d Counts, now time.Duration) {
	if d.Answered > 0 {
		p.refused = 0
	}
	if p.refused == 0 {
		p.refusedAt = now
	}
	p.refused += uint64(d.Rejected)
}

// expire takes out the SYNs that have waited too long, and returns how many.
func (p *port) expire(now time.Duration) (silent uint64) {
	for len(p.open) > 0 && now-p.open[0].seen >= patience {
		silent += uint64(p.open[0].n)
		p.open = p.open[1:]
	}
	return silent
}

// prove counts what speaks for the port.
func (p *port) prove(d Counts, now time.Duration) {
	if !p.guilty {
		return
	}
	before := p.proofs
	if p.Protocol == lb.UDP {
		p.proofs += uint64(d.Flows)
	} else {
		p.proofs += uint64(d.Answered)
	}
	if before < enough && p.proofs >= enough {
		p.provenAt = now
	}
}

// proven says that the port has made up for what its backend was ejected for.
func (p *port) proven(now time.Duration) bool {
	return !p.guilty || p.proofs >= enough && (p.Protocol != lb.UDP || now-p.provenAt >= window)
}

// failing returns what speaks against the port, if that is enough.
func (p *port) failing(now time.Duration) (verdict, bool) {
	var long, short outcomes
	for _, o := range p.past {
		long.add(o)
		if now-o.at < brief {
			short.add(o)
		}
	}
	switch {
	case long.failures() >= enough && long.failures() >= long.answered:
		return p.verdict(long, window), true
	case short.failures() >= enough && short.answered == 0:
		return p.verdict(short, brief), true
	case p.refused > 0 && now-p.refusedAt >= patience:
		return verdict{p.name() + ": refused, and answered nobody since", p.refused, true}, true
	}
	return verdict{}, false
}

// verdict is why a backend is to be ejected.
type verdict struct {
	reason   string
	failures uint64
	refused  bool // most failures were refusals
}

func (p *port) name() string { return fmt.Sprintf("port %d/%s", p.Port.Port, p.Protocol) }

// verdict puts into words what speaks against the port.
func (p *port) verdict(o outcomes, within time.Duration) verdict {
	v := verdict{failures: o.failures(), refused: o.refused >= o.silent}
	if p.Protocol == lb.UDP {
		v.reason = fmt.Sprintf("%s: %d datagrams refused in %v", p.name(), o.refused, within)
	} else {
		v.reason = fmt.Sprintf("%s: %d of %d connections %s in %v", p.name(), o.failures(), o.failures()+o.answered, o.how(), within)
	}
	return v
}

// how says in which ways flows failed.
func (o outcomes) how() string {
	switch {
	case o.silent == 0:
		return "refused"
	case o.refused == 0:
		return "unanswered"
	}
	return "unanswered or refused"
}
