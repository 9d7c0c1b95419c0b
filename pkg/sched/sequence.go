package sched

import "fmt"

// MaxSequence is the longest sequence. Weights whose sum, divided by what they have in common, is
// larger are scaled down to it: each share is then right to 1 in MaxSequence.
const MaxSequence = 1 << 16

// MaxExact is how many members least-conn compares, all of them; among more it draws a few. The
// datapath's SCHEDULE_EXACT.
const MaxExact = 32

// AppendServing appends the seats that serve, in order. excluded goes by seat, as for AppendTable; it
// returns ErrEmpty if nobody serves. Safe for concurrent use.
func (b *Base) AppendServing(dst []uint32, excluded []bool) ([]uint32, error) {
	if excluded != nil && len(excluded) != len(b.Seats) {
		return dst, fmt.Errorf("list who serves: %d exclusions for %d seats", len(excluded), len(b.Seats))
	}
	start := len(dst)
	for i := range b.Seats {
		if !b.Seats[i].Gone && (excluded == nil || !excluded[i]) {
			dst = append(dst, uint32(i))
		}
	}
	if len(dst) == start {
		return dst, fmt.Errorf("list who serves: %w", ErrEmpty)
	}
	return dst, nil
}

// AppendSequence appends the seats that serve in the order in which they take turns: each as often as
// its weight says and as evenly as possible. A round has as many turns as the sum of the weights
// divided by their greatest common divisor, at most MaxSequence. A seat without a weight counts as
// one of weight 1. Errors as of AppendServing. Safe for concurrent use.
func (b *Base) AppendSequence(dst []uint32, excluded []bool) ([]uint32, error) {
	serving, err := b.AppendServing(nil, excluded)
	if err != nil {
		return dst, err
	}
	return appendTurns(dst, serving, b.turns(serving)), nil
}

// turns returns how often each seat has its turn in a round.
func (b *Base) turns(serving []uint32) []uint32 {
	out := make([]uint32, len(serving))
	var common, sum uint64
	for i, seat := range serving {
		out[i] = max(b.Seats[seat].Weight, 1)
		common = divisor(common, uint64(out[i]))
		sum += uint64(out[i])
	}
	for i := range out {
		out[i] /= uint32(common)
	}
	if sum/common <= MaxSequence {
		return out
	}
	seats := make([]Seat, len(serving))
	for i := range seats {
		seats[i].Weight = out[i]
	}
	return quotas(seats, MaxSequence)
}

// divisor returns the greatest common divisor; of 0 and b it is b.
func divisor(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// appendTurns deals out a round. The k-th of a seat's n turns is due at (k + 1/2) / n of it; turns that
// are due at one place follow in seat order.
func appendTurns(dst, serving, turns []uint32) []uint32 {
	var length uint64
	for _, n := range turns {
		length += uint64(n)
	}
	at := make([]uint32, length+1)
	due := func(k, n uint32) uint64 { return (2*uint64(k) + 1) * length / (2 * uint64(n)) }
	for _, n := range turns {
		for k := range n {
			at[due(k, n)+1]++
		}
	}
	for i := uint64(1); i <= length; i++ {
		at[i] += at[i-1]
	}
	start := len(dst)
	dst = append(dst, make([]uint32, length)...)
	for i, n := range turns {
		for k := range n {
			place := &at[due(k, n)]
			dst[start+int(*place)] = serving[i]
			*place++
		}
	}
	return dst
}
