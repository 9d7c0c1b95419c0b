package sched

import (
	"errors"
	"fmt"
	"math/bits"
)

// MaxProbes is how far a walk goes. Half the slots excluded, all but one walk in 2^64 ends
// before; with 1 % left, every second. Frozen, as Probe is.
const MaxProbes = 64

// ErrEmpty says that every seat is excluded, so that no table can be built. Whether some of the
// excluded are then better than nobody is the caller's decision.
var ErrEmpty = errors.New("no member may take new flows")

// Probe returns the i-th slot, from 1, on the walk of a slot of a table of size slots.
//
// size must be a power of two from MinSize on. A walk is made from the slot's place in a table of
// MinSize, so that the walks of the two halves of a slot lead to the two halves of another one: what
// is lent stays where it is when a table doubles. Frozen: the datapath walks the same way.
func Probe(slot, i, size uint32) uint32 {
	unit := size / MinSize
	x := (slot/unit+1)*0x9E3779B1 + i*0x85EBCA77
	x ^= x >> 16
	x *= 0x7FEB352D
	x ^= x >> 15
	x *= 0x846CA68B
	x ^= x >> 16
	return x&(MinSize-1)*unit + slot%unit
}

// Excluded returns, seat by seat, who may not take new flows: members that are excluded or have
// weight 0, and seats whose member is not listed.
func (b *Base) Excluded(members []Member) []bool {
	serving := make(map[string]bool, len(members))
	for _, m := range members {
		serving[m.Key] = m.Weight > 0 && !m.Excluded
	}
	excluded := make([]bool, len(b.Seats))
	for i := range b.Seats {
		excluded[i] = b.Seats[i].Gone || !serving[b.Seats[i].Key]
	}
	return excluded
}

// Table returns the effective table, as seats by slot: see AppendTable.
func (b *Base) Table(excluded []bool) ([]uint32, error) {
	return b.AppendTable(nil, excluded)
}

// AppendTable appends the effective table to dst: the base, with the slots of excluded seats
// lent to others.
//
// excluded goes by seat, as Excluded returns it; nil stands for nobody. Gone seats are excluded
// in any case. A seat without slots can get some here, if all others are excluded and it is
// not. It returns ErrEmpty if every seat is excluded. Safe for concurrent use.
func (b *Base) AppendTable(dst []uint32, excluded []bool) ([]uint32, error) {
	if excluded != nil && len(excluded) != len(b.Seats) {
		return dst, fmt.Errorf("build table: %d exclusions for %d seats", len(excluded), len(b.Seats))
	}
	serves := make([]bool, len(b.Seats))
	serving := make([]uint32, 0, len(b.Seats))
	walk := false
	for i := range b.Seats {
		if b.Seats[i].Gone || excluded != nil && excluded[i] {
			continue
		}
		serves[i] = true
		serving = append(serving, uint32(i))
		walk = walk || b.Seats[i].Weight > 0
	}
	if len(serving) == 0 {
		return dst, fmt.Errorf("build table: %w", ErrEmpty)
	}
	start := len(dst)
	dst = append(dst, b.Owners...)
	if len(serving) == len(b.Seats) && b.owned() {
		return dst, nil
	}
	c := candidates{seats: b.Seats, serving: serving}
	table := dst[start:]
	for s, o := range b.Owners {
		switch {
		case o != NoSeat && serves[o]:
		case len(serving) == 1:
			table[s] = serving[0]
		default:
			to, ok := NoSeat, false
			if walk {
				to, ok = b.walk(uint32(s), serves)
			}
			if !ok {
				to = c.best(uint32(s))
			}
			table[s] = to
		}
	}
	return dst, nil
}

// walk returns the first seat on the walk of a slot that serves.
func (b *Base) walk(slot uint32, serves []bool) (uint32, bool) {
	mask := uint32(len(b.Owners) - 1)
	for i := uint32(1); i <= MaxProbes; i++ {
		if o := b.Owners[Probe(slot, i, mask+1)&mask]; serves[o] {
			return o, true
		}
	}
	return NoSeat, false
}

// candidates chooses by weighted rendezvous where a walk found nobody: each seat draws a number
// from the slot and its seed, and the best number wins. Like the walk, to take a seat away
// changes nothing where it was not the winner.
type candidates struct {
	seats   []Seat
	serving []uint32
}

// best returns the winner among the serving seats, of which there is at least one.
func (c candidates) best(slot uint32) uint32 {
	win := c.serving[0]
	high := c.draw(slot, win)
	for _, i := range c.serving[1:] {
		if h := c.draw(slot, i); beats(h, c.weight(i), high, c.weight(win)) {
			win, high = i, h
		}
	}
	return win
}

func (c candidates) draw(slot, seat uint32) uint64 {
	return mix64(c.seats[seat].Seed + uint64(slot)*hashSeed)
}

// weight is never 0: in the last resort seats that have no weight yet are equals.
func (c candidates) weight(seat uint32) uint64 {
	return uint64(max(c.seats[seat].Weight, 1))
}

// beats reports whether draw a of weight wa wins over draw b of weight wb.
//
// The smallest -log(a/2^64)/wa wins, which is what makes the odds proportional to weight. For
// equal weights that is the higher draw. Ties are for the higher draw, then the earlier seat.
func beats(a, wa, b, wb uint64) bool {
	if wa != wb {
		if ca, cb := minusLog2(a)*wb, minusLog2(b)*wa; ca != cb {
			return ca < cb
		}
	}
	return a > b
}

// logBits is the precision of minusLog2. Its result fits 31 bits, times a weight 63.
const logBits = 24

// minusLog2 returns -log2(x / 2^64) in units of 2^-logBits. Integers only, because floating
// point differs between architectures in the last bit; each squaring yields one more bit.
func minusLog2(x uint64) uint64 {
	x |= 1
	zeros := bits.LeadingZeros64(x)
	log := uint64(63 - zeros)
	x <<= zeros
	for range logBits {
		hi, lo := bits.Mul64(x, x)
		log <<= 1
		if hi>>63 == 1 {
			log |= 1
			x = hi
		} else {
			x = hi<<1 | lo>>63
		}
	}
	return 64<<logBits - log
}
