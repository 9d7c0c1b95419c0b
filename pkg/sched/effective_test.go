package sched

import (
	"errors"
	"math/rand"
	"slices"
	"testing"
)

func TestExclusionMovesOnlyItsOwnSlots(t *testing.T) {
	rng := rand.New(rand.NewSource(3))
	for _, weights := range [][]uint32{
		{100, 100, 100}, {1, 2, 7, 10}, {1, 1000, 1, 1000, 500}, {5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5},
	} {
		list := weighted(weights...)
		b := mustNew(t, list)
		seen := map[string][]string{} // exclusion set -> table: a set gives one table, however it came about
		before := byKey(b, mustTable(t, b, list), b.Size)
		for range 300 {
			i := rng.Intn(len(list))
			list[i].Excluded = !list[i].Excluded
			if !slices.ContainsFunc(list, func(m Member) bool { return !m.Excluded }) {
				list[i].Excluded = false
				continue
			}
			after := byKey(b, mustTable(t, b, list), b.Size)
			if n := collateral(before, after, map[string]bool{list[i].Key: true}); n > 0 {
				t.Fatalf("weights %v: %d slots of others moved", weights, n)
			}
			var set string
			for _, m := range list {
				if m.Excluded {
					set += m.Key + " "
				}
			}
			if was, ok := seen[set]; ok && !slices.Equal(was, after) {
				t.Fatalf("weights %v: excluding %s gave two tables", weights, set)
			}
			seen[set] = after
			if slices.ContainsFunc(list, func(m Member) bool { return m.Excluded && slices.Contains(after, m.Key) }) {
				t.Fatalf("weights %v: an excluded member has slots", weights)
			}
			before = after
		}
	}
}

// Few survivors of many: most walks end nowhere, and rendezvous must keep every promise.
func TestExclusionOfNearlyAll(t *testing.T) {
	const n, survivors = 200, 4
	list := equalMembers(n)
	for i := range list {
		list[i].Weight = uint32(1 + i%survivors)
		list[i].Excluded = i >= survivors
	}
	b := mustNew(t, list)
	four := mustTable(t, b, list)
	sum := 1 + 2 + 3 + 4
	for i := range survivors {
		got := float64(counts(b, four)[key(i)]) / float64(b.Size) * float64(sum)
		if want := float64(list[i].Weight); got < 0.9*want || got > 1.1*want {
			t.Errorf("survivor of weight %.0f has a share of %.2f", want, got)
		}
	}
	for i := range survivors {
		list[i].Excluded = true
		three := mustTable(t, b, list)
		if n := collateral(byKey(b, four, b.Size), byKey(b, three, b.Size), map[string]bool{key(i): true}); n > 0 {
			t.Errorf("excluding one of four survivors moved %d other slots", n)
		}
		list[i].Excluded = false
	}
	list[0].Excluded, list[1].Excluded, list[2].Excluded = true, true, true
	if got := counts(b, mustTable(t, b, list))[key(3)]; got != int(b.Size) {
		t.Errorf("the last survivor has %d slots, want all %d", got, b.Size)
	}
}

func TestLentSlotsAreSpreadEvenly(t *testing.T) {
	list := equalMembers(10)
	b := mustNew(t, list)
	list[4].Excluded = true
	got := counts(b, mustTable(t, b, list))
	for i := range list {
		lent := got[key(i)] - counts(b, b.Owners)[key(i)]
		if i != 4 && (lent < 2 || lent > 25) { // 102 slots for nine: 11.4, sigma 3.2
			t.Errorf("%s was lent %d slots of 102", key(i), lent)
		}
	}
}

func TestNobodyServing(t *testing.T) {
	list := equalMembers(3)
	b := mustNew(t, list)
	for i := range list {
		list[i].Excluded = true
	}
	if table, err := b.Table(b.Excluded(list)); !errors.Is(err, ErrEmpty) || table != nil {
		t.Errorf("all excluded: %d slots and %v, want ErrEmpty", len(table), err)
	}
	if _, err := new(Base).Table(nil); !errors.Is(err, ErrEmpty) {
		t.Errorf("zero base: %v, want ErrEmpty", err)
	}
	mustUpdate(t, b, nil)
	if _, err := b.Table(nil); !errors.Is(err, ErrEmpty) {
		t.Errorf("all gone: %v, want ErrEmpty", err)
	}
	if _, err := mustNew(t, list).Table(make([]bool, 2)); err == nil || errors.Is(err, ErrEmpty) {
		t.Errorf("two exclusions for three seats: %v, want an error of its own", err)
	}
}

func TestLastResortCanUseSeatsWithoutSlots(t *testing.T) {
	b := mustNew(t, weighted(100, 0, 0))
	table, err := b.Table([]bool{true, false, false})
	if err != nil {
		t.Fatal(err)
	}
	got := counts(b, table)
	if got[key(0)] != 0 || got[key(1)] < int(b.Size)/3 || got[key(2)] < int(b.Size)/3 {
		t.Errorf("slots %v, want them shared by the two without weight", got)
	}
}

func TestAppendTableKeepsWhatIsThere(t *testing.T) {
	b := mustNew(t, equalMembers(3))
	for _, excluded := range [][]bool{nil, {true, false, false}} {
		want, err := b.Table(excluded)
		if err != nil {
			t.Fatal(err)
		}
		got, err := b.AppendTable([]uint32{7, 8}, excluded)
		if err != nil || got[0] != 7 || got[1] != 8 || !slices.Equal(got[2:], want) {
			t.Errorf("excluded %v: wrong table after the prefix (%v)", excluded, err)
		}
	}
}

func TestMinusLog2(t *testing.T) {
	for _, c := range []struct{ x, want uint64 }{
		{1 << 63, 1 << logBits},
		{1 << 62, 2 << logBits},
		{1, 64 << logBits},
		{0, 64 << logBits},
		{3 << 62, 6963173}, // log2(4/3) = 0.41503749928
	} {
		if got := minusLog2(c.x); got != c.want && got != c.want+1 {
			t.Errorf("minusLog2(%#x) = %d, want %d", c.x, got, c.want)
		}
	}
}
