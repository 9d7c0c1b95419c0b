package sched

import (
	"math"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Limits of the index rules: SELECT_... and SCHEDULE_... of bpf/lib.
const (
	pickWalk    = 16 // slots probed for somebody who takes new flows
	pickSeats   = 64 // then seats looked at in order
	pickSamples = 8  // slots that least-conn draws where there are more than MaxExact backends
	pickDraws   = 4  // draws of the latency scheduler for two different backends
	pickBounded = 64 // slots that bounded-load looks at for room below the cap
)

// LoadFactorUnit is the 1.0 of Rule.Factor.
const LoadFactorUnit = 1 << 10

// RefusalSeconds is how long a backend that refused a flow, and has answered none since, is passed over.
const RefusalSeconds = 3

// Candidate is who sits in a seat and takes new flows. It is small, for least-conn looks at many.
type Candidate struct {
	Seat, ID uint32
	Load     uint32 // flows that are opening or established
	Weight   uint32
	Proven   bool // has answered a flow
	Spared   bool // as Spared says: passed over while there are others
}

// Spared says whether a backend is passed over while there are others: it refused a flow within RefusalSeconds
// and has answered none since, or it is on trial and another flow is opening there. refused is the tick of
// the last refusal, 0 for none since an answer.
func Spared(refused, now uint32, trial bool, load, active uint32) bool {
	return refused != 0 && int32(refused-(now-RefusalSeconds*LatencyTicks)) > 0 || trial && load > active
}

// Records is what a rule reads, and the turns that it takes, while it chooses. It stands for one frontend
// and one client.
type Records interface {
	// Seat returns who owns a slot of the frontend's table, below Rule.Slots.
	Seat(slot uint32) uint32
	// Look returns who sits in a seat; false if that takes no new flows, or there is no such seat.
	Look(seat uint32) (Candidate, bool)
	// Latencies returns how long a backend takes to answer a SYN and a first request.
	Latencies(id uint32) (syn, first Latency)
	// Turn takes the group's next turn.
	Turn() uint64
	// Random draws a number.
	Random() uint32
	// GroupLoad returns the load of all the table's backends; false if they are in no group.
	GroupLoad() (int64, bool)
	// Bound returns the seat that the client is bound to, and binds it for longer.
	Bound() (seat uint32, ok bool)
	// Bind binds the client to a seat.
	Bind(seat uint32)
}

// Rule is how a frontend's table is indexed for a new flow: the datapath's schedule.h in Go, for the mode
// in which the proxy chooses by itself. Parity tests hold the two together.
type Rule struct {
	Scheduler lb.Scheduler
	Affinity  bool
	Listed    bool   // the table is a list, walked in order; else one of 2^n slots
	Slots     uint32 // of the table; 0: no backends
	Head      uint32 // least-conn: slots in front that list who serves; a sequence follows
	Weight    uint32 // sum over the backends in the table
	Factor    uint32 // bounded-load, in 1 / LoadFactorUnit
	Tick      uint32 // now, for latencies
}

// wish is whom a new flow asks for.
type wish struct {
	avoid  uint32 // not this backend, which refused this flow; 0: none
	proven bool   // only who has answered a flow before
	any    bool   // those are better than nobody
}

// grants says whether a candidate may take the flow.
func (w wish) grants(c *Candidate) bool {
	return w.any || !c.Spared && c.ID != w.avoid && (c.Proven || !w.proven)
}

// Pick returns who takes a new flow. hash is TupleHash, with affinity ClientHash; avoid is the backend
// that refused this flow, 0 for a flow's first choice. Who refused any flow just now, or is on trial, is
// passed over while there are others. A flow that was refused goes to somebody who has answered before,
// if there is one: where containers start one after the other it would else meet a new one each time.
func (r *Rule) Pick(in Records, hash, avoid uint32) (Candidate, bool) {
	if r.Slots == 0 {
		return Candidate{}, false
	}
	wishes := [...]wish{{avoid: avoid, proven: true}, {avoid: avoid}, {avoid: avoid, any: true}}
	first := 0
	if avoid == 0 {
		first = 1
	}
	for _, w := range wishes[first:] {
		full := false
		if r.Affinity {
			var c Candidate
			var bound bool
			if c, bound, full = r.bound(in, w); bound {
				return c, true
			}
		}
		c, ok := r.apply(in, hash, w)
		if !ok { // what was drawn, or listed, may have gone just now: then look at everybody
			c, ok = r.walk(in, 0, w)
		}
		if !ok {
			continue
		}
		if r.Affinity && !full {
			in.Bind(c.Seat)
		}
		return c, true
	}
	return Candidate{}, false
}

// Another says whether somebody who refuses nobody could take a flow instead of the backend that refused
// it.
func (r *Rule) Another(in Records, avoid uint32) bool {
	if r.Slots == 0 {
		return false
	}
	_, ok := r.walk(in, 0, wish{avoid: avoid})
	return ok
}

// bound returns the backend that the client is bound to, if that may take the flow; or says that it is
// bound, but that bounded-load sends this flow past its backend.
func (r *Rule) bound(in Records, w wish) (c Candidate, here, full bool) {
	seat, ok := in.Bound()
	if !ok {
		return c, false, false
	}
	if c, ok = r.seat(in, seat, w); !ok {
		return c, false, false
	}
	if r.Scheduler == lb.BoundedLoad && !r.hasRoom(in, &c) {
		return c, false, true
	}
	return c, true, false
}

// apply applies the scheduler.
func (r *Rule) apply(in Records, hash uint32, w wish) (Candidate, bool) {
	switch r.Scheduler {
	case lb.Random:
		return r.walk(in, r.drawn(in), w)
	case lb.RoundRobin:
		return r.walk(in, uint32(in.Turn()%uint64(r.Slots)), w)
	case lb.LeastConn:
		if r.Head > 0 && r.Head < r.Slots {
			return r.least(in, w)
		}
		return r.sampled(in, w)
	case lb.BoundedLoad:
		return r.bounded(in, Slot(hash, r.Slots), w)
	case lb.Latency:
		return r.fastest(in, w)
	}
	return r.walk(in, Slot(hash, r.Slots), w)
}

// next is where the walk from a slot goes at step i, 0 being the slot itself.
func (r *Rule) next(slot, i uint32) uint32 {
	switch {
	case r.Listed || r.Slots < MinSize:
		return (slot + i) % r.Slots
	case i == 0:
		return slot
	}
	return Probe(slot, i, r.Slots)
}

func (r *Rule) drawn(in Records) uint32 { return Slot(in.Random(), r.Slots) }

// seat returns who sits in a seat, if that may take the flow.
func (r *Rule) seat(in Records, seat uint32, w wish) (Candidate, bool) {
	c, ok := in.Look(seat)
	if !ok || !w.grants(&c) {
		return Candidate{}, false
	}
	c.Weight = max(c.Weight, 1)
	return c, true
}

func (r *Rule) slot(in Records, slot uint32, w wish) (Candidate, bool) {
	return r.seat(in, in.Seat(slot), w)
}

// walk returns the first that may take the flow: a slot's owner, then along the walk that the next table
// is built with, then everybody.
func (r *Rule) walk(in Records, slot uint32, w wish) (Candidate, bool) {
	for i := range uint32(pickWalk + 1) {
		if c, ok := r.slot(in, r.next(slot, i), w); ok {
			return c, true
		}
	}
	for i := range uint32(pickSeats) {
		if c, ok := r.seat(in, i, w); ok {
			return c, true
		}
	}
	return Candidate{}, false
}

// lighter says whether a carries less for its weight than b.
func lighter(a, b *Candidate) bool {
	return uint64(a.Load)*uint64(b.Weight) < uint64(b.Load)*uint64(a.Weight)
}

// least compares everybody who serves. Among equals it takes who is next in the sequence.
func (r *Rule) least(in Records, w wish) (Candidate, bool) {
	turn := in.Turn()
	best, found := r.slot(in, r.Head+uint32(turn%uint64(r.Slots-r.Head)), w)
	at := uint32(turn % uint64(r.Head))
	for range min(r.Head, MaxExact) {
		next, ok := r.slot(in, at, w)
		if at++; at == r.Head {
			at = 0
		}
		if ok && (!found || lighter(&next, &best)) {
			best, found = next, true
		}
	}
	return best, found
}

// sampled compares a few that are drawn by weight.
func (r *Rule) sampled(in Records, w wish) (best Candidate, found bool) {
	for range pickSamples {
		next, ok := r.slot(in, r.drawn(in), w)
		if ok && (!found || lighter(&next, &best)) {
			best, found = next, true
		}
	}
	return best, found
}

// hasRoom says whether a backend stays within factor x its weighted fair share of the group's load,
// rounded up, with one flow more: load + 1 <= ceil(factor * (total + 1) * weight / sum).
func (r *Rule) hasRoom(in Records, c *Candidate) bool {
	total, grouped := in.GroupLoad()
	if !grouped {
		return true
	}
	return uint64(c.Load)*LoadFactorUnit*uint64(r.Weight) <
		uint64(r.Factor)*uint64(max(total, 0)+1)*uint64(c.Weight)
}

// bounded walks on from a slot to somebody with room, or else to the lightest on the way.
func (r *Rule) bounded(in Records, slot uint32, w wish) (best Candidate, found bool) {
	for i := range uint32(pickBounded + pickSeats) {
		var next Candidate
		var ok bool
		if i < pickBounded {
			next, ok = r.slot(in, r.next(slot, i), w)
		} else {
			next, ok = r.seat(in, i-pickBounded, w)
		}
		if ok && r.hasRoom(in, &next) {
			return next, true
		}
		if ok && (!found || lighter(&next, &best)) {
			best, found = next, true
		}
	}
	return best, found
}

// fastest draws two by weight and takes who is likely to answer first.
func (r *Rule) fastest(in Records, w wish) (best Candidate, found bool) {
	for range pickDraws {
		next, ok := r.slot(in, r.drawn(in), w)
		switch {
		case !ok || found && next.ID == best.ID:
		case !found:
			best, found = next, true
		default:
			if r.cost(in, &next)*uint64(best.Weight) < r.cost(in, &best)*uint64(next.Weight) {
				best = next
			}
			return best, true
		}
	}
	return best, found
}

// cost is what one flow more may expect: the estimate for each flow that is there. Nobody knows about a
// backend that was never measured: it gets one flow, to find out.
func (r *Rule) cost(in Records, c *Candidate) uint64 {
	syn, first := in.Latencies(c.ID)
	ns := syn.At(r.Tick) + first.At(r.Tick)
	switch {
	case ns > 0:
	case syn.NS == 0 && first.NS == 0:
		if c.Load > 0 {
			ns = math.MaxUint32
		}
	default:
		ns = 1
	}
	return ns * (uint64(c.Load) + 1)
}
