package sched

// budgetShare of 100 is 1 % of the slots: what may move, seen by packets, for the sake of balance
// when the weight of an excluded member falls.
const budgetShare = 100

// rebalance moves slots until every changed seat has its quota, and no others.
//
// It moves slots only from a seat above its quota to one below, and only if at least one of the
// two changed. So seats that did not change may stay a slot or so off their quota: rounding that
// went the other way for them is not worth a flow.
type rebalance struct {
	base    *Base
	changed []bool
	idle    []bool // excluded by the new list
	lent    []bool // excluded by the old list
	quota   []uint32
	count   []uint32
	budget  int // slots that may go elsewhere than where they were lent
	moved   int
}

func newRebalance(b *Base, changed, idle, lent []bool) *rebalance {
	r := &rebalance{base: b, changed: changed, idle: idle, lent: lent, quota: quotas(b.Seats, b.Size)}
	r.count = make([]uint32, len(b.Seats))
	r.budget = int(b.Size / budgetShare)
	for _, o := range b.Owners {
		r.count[o]++
	}
	return r
}

// run lets gainers take first. After that what is above quota in changed seats is at most what
// is missing in unchanged ones, because both sides add up to the same: all of it finds a place.
func (r *rebalance) run() int {
	for i, c := range r.changed {
		if c {
			r.gain(uint32(i))
		}
	}
	for i, c := range r.changed {
		if c && r.above(uint32(i)) {
			r.give(uint32(i))
		}
	}
	return r.moved
}

func (r *rebalance) above(seat uint32) bool { return r.count[seat] > r.quota[seat] }
func (r *rebalance) below(seat uint32) bool { return r.count[seat] < r.quota[seat] }

func (r *rebalance) move(slot, to uint32) {
	r.count[r.base.Owners[slot]]--
	r.count[to]++
	r.base.Owners[slot] = to
	r.moved++
}

// gain fills a seat from those above their quota, in the order of its permutation.
func (r *rebalance) gain(seat uint32) {
	p := newPermutation(r.base.Seats[seat].Seed, r.base.Size)
	for n := uint32(0); r.below(seat); n++ {
		if s := p.at(n); r.above(r.base.Owners[s]) {
			r.move(s, seat)
		}
	}
}

// give moves what a seat has above its quota, the slots that it likes best last, so that it gets
// much the same ones when its weight rises again.
//
// A slot goes to its heir, to whom it is lent while seat is excluded: if seat was excluded until
// now, no flow notices. As long as heirs are below their quota, that is all; settle does the
// rest. Owners are written at the end: a walk must not find what was given just now.
func (r *rebalance) give(seat uint32) {
	var gifts, rest []gift
	p := newPermutation(r.base.Seats[seat].Seed, r.base.Size)
	surplus := r.count[seat] - r.quota[seat]
	for n := r.base.Size; n > 0 && uint32(len(gifts)) < surplus; n-- {
		s := p.at(n - 1)
		if r.base.Owners[s] != seat {
			continue
		}
		g := gift{s, r.heir(s)}
		if g.to == NoSeat || !r.below(g.to) {
			rest = append(rest, g)
			continue
		}
		r.count[g.to]++
		gifts = append(gifts, g)
	}
	rest = rest[:surplus-uint32(len(gifts))]
	r.settle(rest, r.lent[seat])
	for _, g := range append(gifts, rest...) {
		r.base.Owners[g.slot] = g.to
	}
	r.count[seat] -= surplus
	r.moved += int(surplus)
}

// settle finds owners for slots whose heirs have enough already, by chance or because others
// have to get something too.
//
// Excluded seats come first: whatever they own is lent to the same heirs as before. Then any
// seat below its quota will do if the giver's slots were its own until now. But if they were
// lent, every one of them is a move that only serves balance: those have a budget, and when it
// is used up heirs get more than their quota.
func (r *rebalance) settle(gifts []gift, lent bool) {
	idle, poor := uint32(0), uint32(0)
	seats := uint32(len(r.count))
	for i := range gifts {
		g := &gifts[i]
		for idle < seats && !(r.idle[idle] && r.below(idle)) {
			idle++
		}
		switch {
		case idle < seats:
			g.to = idle
		case g.to == NoSeat || !lent || r.budget > 0:
			for !r.below(poor) {
				poor++
			}
			if lent && g.to != NoSeat {
				r.budget--
			}
			g.to = poor
		}
		r.count[g.to]++
	}
}

// gift is a slot and its next owner.
type gift struct{ slot, to uint32 }

// heir returns whom the effective table lends the slot to when all changed seats are excluded,
// as far as the member list tells: nodes see health differently and must still agree. It returns
// NoSeat if the walk finds nobody.
func (r *rebalance) heir(slot uint32) uint32 {
	for i := uint32(1); i <= MaxProbes; i++ {
		o := r.base.Owners[Probe(slot, i, r.base.Size)]
		if !r.changed[o] && !r.idle[o] {
			return o
		}
	}
	return NoSeat
}
