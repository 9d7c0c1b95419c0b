package sched

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"
)

// Limits of a base table.
const (
	// MinSize is the smallest size; it keeps weights apart where members are few.
	MinSize = 1 << 8
	// MaxSize is the largest size. Services of more than 2621 members pay with balance.
	MaxSize = 1 << 18
	// MaxMembers leaves each member at least four slots of the largest table.
	MaxMembers = 1 << 16

	slotsPerSeat = 100
)

// NoSeat is the owner of every slot of a base in which no seat has a weight yet.
const NoSeat = ^uint32(0)

// Errors of member lists that no table can be built from.
var (
	ErrDuplicate = errors.New("member listed twice")
	ErrTooMany   = errors.New("too many members")
)

// New builds a base from nothing: the same for the same members, in whatever order they are.
//
// It is the only way for a base to get smaller, and moves most flows of a service that has
// another base already: use Update for that. It returns ErrDuplicate or ErrTooMany.
func New(members []Member) (*Base, error) {
	list, err := sortMembers(members)
	if err != nil {
		return nil, fmt.Errorf("build base: %w", err)
	}
	b := &Base{Seats: make([]Seat, len(list))}
	for i, m := range list {
		b.Seats[i] = Seat{Key: m.Key, Seed: stableSeed(m.Key), Weight: m.Weight, Idle: m.Weight == 0}
	}
	b.place()
	return b, nil
}

// sortMembers returns the members in Key order, which is what makes lists comparable.
func sortMembers(members []Member) ([]Member, error) {
	if len(members) > MaxMembers {
		return nil, fmt.Errorf("%w: %d, at most %d", ErrTooMany, len(members), MaxMembers)
	}
	list := slices.Clone(members)
	slices.SortFunc(list, func(a, b Member) int { return cmp.Compare(a.Key, b.Key) })
	for i := 1; i < len(list); i++ {
		if list[i].Key == list[i-1].Key {
			return nil, fmt.Errorf("%w: %q", ErrDuplicate, list[i].Key)
		}
	}
	return list, nil
}

// sizeFor returns the size of a fresh table for that many seats.
func sizeFor(seats int) uint32 {
	want := min(max(seats*slotsPerSeat, MinSize), MaxSize)
	return 1 << bits.Len32(uint32(want-1))
}

// permutation is a seat's order of preferred slots: offset, then on by skip.
//
// The skip is odd and the size a power of two, so it visits each slot exactly once.
type permutation struct{ offset, skip, mask uint32 }

func newPermutation(seed uint64, size uint32) permutation {
	return permutation{offset: uint32(seed), skip: uint32(seed>>32) | 1, mask: size - 1}
}

// at returns the slot at position n, for n below the size.
func (p permutation) at(n uint32) uint32 {
	return (p.offset + n*p.skip) & p.mask
}

// place sizes the table for its seats and deals out the slots anew, in Maglev's way.
//
// Turns come in rounds; after round r of R every seat has r/R of its quota, rounded up, so that
// light seats get their first choice too. There are no more rounds than the mean quota, or the
// cost with one heavy seat among many light ones would be their product.
func (b *Base) place() {
	b.Size = sizeFor(len(b.Seats))
	b.Owners = make([]uint32, b.Size)
	for s := range b.Owners {
		b.Owners[s] = NoSeat
	}
	quota := quotas(b.Seats, b.Size)
	var most, weighted uint32
	for _, q := range quota {
		most = max(most, q)
		weighted += min(q, 1)
	}
	if weighted == 0 {
		return
	}
	rounds := uint64(min(most, (b.Size+weighted-1)/weighted))
	taken := make([]uint32, len(b.Seats))
	next := make([]uint32, len(b.Seats))
	for r := uint64(1); r <= rounds; r++ {
		for i, q := range quota {
			target := uint32((uint64(q)*r + rounds - 1) / rounds)
			if taken[i] < target {
				next[i] = b.claim(uint32(i), next[i], target-taken[i])
				taken[i] = target
			}
		}
	}
}

// claim gives a seat the next n free slots of its permutation, from position from on, and
// returns the position after the last.
func (b *Base) claim(seat, from, n uint32) uint32 {
	p := newPermutation(b.Seats[seat].Seed, b.Size)
	for n > 0 {
		if s := p.at(from); b.Owners[s] == NoSeat {
			b.Owners[s] = seat
			n--
		}
		from++
	}
	return from
}
