package sched

import (
	"fmt"
	"math/rand"
	"testing"
)

// equalMembers returns n members of weight 100, keys in address order.
func equalMembers(n int) []Member {
	list := make([]Member, n)
	for i := range list {
		list[i] = Member{Key: key(i), Weight: 100}
	}
	return list
}

func key(i int) string {
	return fmt.Sprintf("node-a/192.0.%d.%d", i>>8, i&255)
}

func weighted(weights ...uint32) []Member {
	list := equalMembers(len(weights))
	for i, w := range weights {
		list[i].Weight = w
	}
	return list
}

func mustNew(t testing.TB, members []Member) *Base {
	t.Helper()
	b, err := New(members)
	if err != nil {
		t.Fatal(err)
	}
	checkBase(t, b)
	return b
}

func mustUpdate(t testing.TB, b *Base, members []Member) int {
	t.Helper()
	moved, err := b.Update(members)
	if err != nil {
		t.Fatal(err)
	}
	checkBase(t, b)
	return moved
}

func mustTable(t testing.TB, b *Base, members []Member) []uint32 {
	t.Helper()
	table, err := b.Table(b.Excluded(members))
	if err != nil {
		t.Fatal(err)
	}
	if len(table) != int(b.Size) {
		t.Fatalf("table has %d slots, want %d", len(table), b.Size)
	}
	return table
}

// checkBase verifies what Base promises in any state.
func checkBase(t testing.TB, b *Base) {
	t.Helper()
	if err := b.check(); err != nil {
		t.Fatalf("broken base: %v", err)
	}
}

// byKey translates a table to keys, so that tables of other sizes and seats compare.
func byKey(b *Base, table []uint32, size uint32) []string {
	out := make([]string, size)
	for s := range out {
		o := table[uint64(s)*uint64(len(table))/uint64(size)]
		if o == NoSeat {
			continue
		}
		out[s] = b.Seats[o].Key
	}
	return out
}

func counts(b *Base, table []uint32) map[string]int {
	n := map[string]int{}
	for _, o := range table {
		n[b.Seats[o].Key]++
	}
	return n
}

// collateral counts the slots that changed although neither side is in the set.
func collateral(before, after []string, changed map[string]bool) int {
	n := 0
	for s := range before {
		if before[s] != after[s] && !changed[before[s]] && !changed[after[s]] {
			n++
		}
	}
	return n
}

func shuffled(rng *rand.Rand, members []Member) []Member {
	out := append([]Member(nil), members...)
	rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}
