package sched

import (
	"cmp"
	"slices"
)

// quotas returns how many of size slots each seat is to own, by largest remainder.
//
// The quotas add up to size, or are all zero if no seat has a weight. A seat with a weight gets
// one slot at least, whatever the others weigh, so seats with a weight must not outnumber the
// slots. Gone seats count: their slots wait for them.
func quotas(seats []Seat, size uint32) []uint32 {
	quota := make([]uint32, len(seats))
	order := make([]uint32, 0, len(seats))
	var sum uint64
	for i := range seats {
		if w := seats[i].Weight; w > 0 {
			sum += uint64(w)
			order = append(order, uint32(i))
		}
	}
	if sum == 0 {
		return quota
	}
	order, slots, sum := raiseLight(seats, quota, order, uint64(size), sum)

	remainder := make([]uint64, len(seats))
	left := slots
	for _, i := range order {
		share := slots * uint64(seats[i].Weight)
		quota[i] = uint32(share / sum)
		remainder[i] = share % sum
		left -= share / sum
	}
	slices.SortFunc(order, func(i, j uint32) int {
		return cmp.Or(cmp.Compare(remainder[j], remainder[i]), cmp.Compare(i, j))
	})
	for _, i := range order[:left] {
		quota[i]++
	}
	return quota
}

// raiseLight gives one slot to each seat that is too light for one, lightest first, and returns
// the other seats with the slots and the weight that are left to them.
//
// Each slot given away makes the rest scarcer, so the next seat is measured against what is
// left then. Since seats come by weight, the first that needs no help ends it.
func raiseLight(seats []Seat, quota, order []uint32, slots, sum uint64) ([]uint32, uint64, uint64) {
	fits := func(i uint32) bool { return slots*uint64(seats[i].Weight) >= sum }
	if !slices.ContainsFunc(order, func(i uint32) bool { return !fits(i) }) {
		return order, slots, sum
	}
	slices.SortFunc(order, func(i, j uint32) int {
		return cmp.Or(cmp.Compare(seats[i].Weight, seats[j].Weight), cmp.Compare(i, j))
	})
	for len(order) > 0 && !fits(order[0]) {
		quota[order[0]] = 1
		slots--
		sum -= uint64(seats[order[0]].Weight)
		order = order[1:]
	}
	return order, slots, sum
}
