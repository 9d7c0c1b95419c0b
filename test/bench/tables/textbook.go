package main

import (
	"hash/maphash"
	"slices"
)

// textbook is Maglev as its paper has it: a prime size, a permutation for each backend from two hashes
// of its name, turns in proportion to weight, and no memory of the table before.
type textbook struct {
	size uint64
	seed maphash.Seed
}

func newTextbook(backends int) *textbook {
	return &textbook{size: prime(uint64(100 * backends)), seed: maphash.MakeSeed()}
}

// prime returns the smallest prime that is not below n.
func prime(n uint64) uint64 {
	for ; ; n++ {
		composite := n < 2
		for d := uint64(2); d*d <= n && !composite; d++ {
			composite = n%d == 0
		}
		if !composite {
			return n
		}
	}
}

// table returns the owner of each slot, by name.
func (m *textbook) table(members []member) []string {
	out := make([]string, m.size)
	members = slices.DeleteFunc(slices.Clone(members), func(b member) bool { return b.weight == 0 })
	next := make([]uint64, len(members))
	credit := make([]int, len(members))
	most := 0
	for _, b := range members {
		most = max(most, b.weight)
	}
	for filled := uint64(0); len(members) > 0; {
		for i, b := range members {
			for credit[i] += b.weight; credit[i] >= most; credit[i] -= most {
				offset := maphash.String(m.seed, b.name) % m.size
				skip := maphash.String(m.seed, "skip "+b.name)%(m.size-1) + 1
				at := (offset + next[i]*skip) % m.size
				for out[at] != "" {
					next[i]++
					at = (offset + next[i]*skip) % m.size
				}
				out[at] = b.name
				if filled++; filled == m.size {
					return out
				}
			}
		}
	}
	return out
}
