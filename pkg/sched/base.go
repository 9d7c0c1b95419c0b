package sched

import (
	"fmt"
	"slices"
)

// Member is a backend as a service's member list has it.
type Member struct {
	// Key identifies the backend on every node; unique in a list. Frozen: its permutation is
	// made from it.
	Key string
	// Weight is the configured weight; 0 is maintenance, which excludes the member.
	Weight uint32
	// Excluded says that the member may not take new flows now, for any other reason than its
	// weight. It concerns the effective table only, never the base.
	Excluded bool
}

// Seat is a position in a table: what slots hold, and who sits there.
type Seat struct {
	// Key is that of the present member, or the last one if the seat is gone.
	Key string
	// Seed makes the seat's permutation. It comes from the key of the seat's first member and
	// stays when another takes over.
	Seed uint64
	// Weight is the last weight above 0 of its member; what its slots were measured for. 0
	// means that the seat has no slots yet.
	Weight uint32
	// Gone means that the member is not listed any more; its slots wait for it.
	Gone bool
	// Idle means that the member is listed with weight 0; its slots wait for its weight.
	Idle bool
}

// excluded reports whether the member list alone keeps the seat from serving.
func (s *Seat) excluded() bool { return s.Gone || s.Idle }

// Base is a service's base table for one address family.
//
// The zero value is a base without members, ready for Update. Fields are there to be read; only
// the methods write them. It has no lock: Update needs a base for itself, everything else may
// run concurrently.
type Base struct {
	// Size is the number of slots, a power of two from MinSize to MaxSize.
	Size uint32
	// Seats in order: a slot holds a position in it. Positions stay until the next New.
	Seats []Seat
	// Owners is the seat of each slot; NoSeat in all of them while no seat has a weight.
	Owners []uint32
}

// Clone returns a copy that shares nothing with b.
func (b *Base) Clone() *Base {
	return &Base{Size: b.Size, Seats: slices.Clone(b.Seats), Owners: slices.Clone(b.Owners)}
}

// Update brings the base to a new member list and returns how many slots changed owner.
//
// Every one of them went to or came from a member that is new or has another weight; see the
// package comment for the rules. The result depends on the base and the list, not on the list's
// order. On an error, ErrDuplicate or ErrTooMany, the base stays as it was.
func (b *Base) Update(members []Member) (moved int, err error) {
	list, err := sortMembers(members)
	if err != nil {
		return 0, fmt.Errorf("update base: %w", err)
	}
	if !b.owned() {
		fresh, err := New(list)
		if err != nil {
			return 0, err
		}
		*b = *fresh
		return 0, nil
	}
	r := newReseating(b, list)
	r.seatMembers(list)
	b.grow(sizeFor(len(b.Seats)))
	if !slices.Contains(r.changed, true) {
		return 0, nil
	}
	return newRebalance(b, r.changed, r.idle(), r.lent).run(), nil
}

// owned reports whether the slots have owners. They do as soon as one seat has a weight.
func (b *Base) owned() bool {
	return len(b.Owners) > 0 && b.Owners[0] != NoSeat
}

// grow splits every slot in two until there are size of them. No flow notices: a slot's number
// is made from the high bits of the hash.
func (b *Base) grow(size uint32) {
	if size <= b.Size {
		return
	}
	times := int(size / b.Size)
	owners := make([]uint32, 0, size)
	for _, o := range b.Owners {
		for range times {
			owners = append(owners, o)
		}
	}
	b.Size, b.Owners = size, owners
}

// reseating finds a seat for every member of a new list. Owners stay as they are.
type reseating struct {
	base    *Base
	seatOf  map[string]uint32   // members with a seat of their own
	vacant  map[uint32][]uint32 // weight -> gone seats of that weight, by position
	seeds   map[uint64]bool     // of all seats; made when the first seat is added
	changed []bool              // by seat: its weight is another one than that of its slots
	lent    []bool              // by seat: excluded by the old list, so that its slots were lent
}

// idle returns, by seat, who is excluded by the new list.
func (r *reseating) idle() []bool {
	idle := make([]bool, len(r.base.Seats))
	for i := range idle {
		idle[i] = r.base.Seats[i].excluded()
	}
	return idle
}

// newReseating marks who left and who is back.
func newReseating(b *Base, list []Member) *reseating {
	r := &reseating{
		base:    b,
		seatOf:  make(map[string]uint32, len(b.Seats)),
		vacant:  map[uint32][]uint32{},
		changed: make([]bool, len(b.Seats)),
		lent:    make([]bool, len(b.Seats)),
	}
	for i := range b.Seats {
		r.lent[i] = b.Seats[i].excluded()
		b.Seats[i].Gone, b.Seats[i].Idle = true, false
		r.seatOf[b.Seats[i].Key] = uint32(i)
	}
	for _, m := range list {
		if i, ok := r.seatOf[m.Key]; ok {
			b.Seats[i].Gone = false
		}
	}
	for i := range b.Seats {
		if s := &b.Seats[i]; s.Gone {
			r.vacant[s.Weight] = append(r.vacant[s.Weight], uint32(i))
		}
	}
	return r
}

// seatMembers seats the members in Key order: who has a seat, then who finds a gone one of the
// same weight, then the rest. Otherwise one newcomer could take what fits the next exactly.
func (r *reseating) seatMembers(list []Member) {
	var arrivals, rest []Member
	for _, m := range list {
		i, seated := r.seatOf[m.Key]
		switch {
		case seated && (m.Weight == 0 || r.base.Seats[i].Weight > 0):
			r.sit(i, m)
		default:
			arrivals = append(arrivals, m)
		}
	}
	for _, m := range arrivals {
		if i, ok := r.takeVacant(m.Weight); ok {
			r.takeOver(i, m)
		} else {
			rest = append(rest, m)
		}
	}
	for _, m := range rest {
		if i, ok := r.takeNearest(m.Weight); ok {
			r.takeOver(i, m)
		} else if i, seated := r.seatOf[m.Key]; seated {
			r.sit(i, m)
		} else if i, ok := r.takeVacant(0); ok {
			r.takeOver(i, m)
		} else {
			r.append(m)
		}
	}
}

// sit lets a member sit in a seat with its weight of today.
func (r *reseating) sit(i uint32, m Member) {
	s := &r.base.Seats[i]
	s.Key, s.Gone, s.Idle = m.Key, false, m.Weight == 0
	if m.Weight > 0 && m.Weight != s.Weight {
		s.Weight = m.Weight
		r.changed[i] = true
	}
}

// takeOver lets a member sit in a gone seat. If it had a seat without slots, the one whom it
// replaces gets that, or two seats would have one key.
func (r *reseating) takeOver(i uint32, m Member) {
	if own, seated := r.seatOf[m.Key]; seated {
		s := &r.base.Seats[own]
		s.Key, s.Gone, s.Idle = r.base.Seats[i].Key, true, false
	}
	r.sit(i, m)
}

// takeVacant takes the first gone seat of exactly that weight off the list.
func (r *reseating) takeVacant(weight uint32) (uint32, bool) {
	seats := r.vacant[weight]
	if len(seats) == 0 {
		return 0, false
	}
	r.vacant[weight] = seats[1:]
	return seats[0], true
}

// takeNearest takes a gone seat with slots off the list: the heaviest that is lighter than
// weight, for then the member only gains; or else the lightest, which has least to give away.
// A member without weight needs no slots and gets none, so that their owner may still return.
func (r *reseating) takeNearest(weight uint32) (uint32, bool) {
	if weight == 0 {
		return 0, false
	}
	var below, above uint32
	for w, seats := range r.vacant { // picks by value: the map's order does not matter
		switch {
		case len(seats) == 0:
		case w < weight: // 0, a seat without slots, counts as none
			below = max(below, w)
		case above == 0 || w < above:
			above = w
		}
	}
	if below > 0 {
		return r.takeVacant(below)
	}
	if above > 0 {
		return r.takeVacant(above)
	}
	return 0, false
}

// append adds a seat. Its seed is that of the member's key unless a seat has it already: that
// of a member who was replaced and is back. Two seats with one seed would compete for the same
// slots, and one would always win.
func (r *reseating) append(m Member) {
	if r.seeds == nil {
		r.seeds = make(map[uint64]bool, len(r.base.Seats)+1)
		for i := range r.base.Seats {
			r.seeds[r.base.Seats[i].Seed] = true
		}
	}
	seed := stableSeed(m.Key)
	for r.seeds[seed] {
		seed = mix64(seed + hashSeed)
	}
	r.seeds[seed] = true
	r.base.Seats = append(r.base.Seats, Seat{Seed: seed})
	r.changed = append(r.changed, false)
	r.lent = append(r.lent, false)
	r.sit(uint32(len(r.base.Seats)-1), m)
}
