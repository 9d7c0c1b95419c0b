package sched

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"reflect"
	"testing"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestPermutationVisitsEachSlotOnce(t *testing.T) {
	for size := uint32(MinSize); size <= MaxSize; size *= 2 {
		for _, k := range []string{"", "a", key(1), key(2)} {
			p := newPermutation(stableSeed(k), size)
			seen := make([]bool, size)
			for n := range size {
				if s := p.at(n); seen[s] {
					t.Fatalf("size %d, key %q: slot %d twice", size, k, s)
				} else {
					seen[s] = true
				}
			}
		}
	}
}

func TestSizeIsSmallestPowerOfTwoThatFits(t *testing.T) {
	for seats, want := range map[int]uint32{
		0: 256, 1: 256, 2: 256, 3: 512, 5: 512, 6: 1024, 10: 1024, 11: 2048, 1000: 131072, 1310: 131072, 1311: 262144,
		MaxMembers: MaxSize,
	} {
		if got := sizeFor(seats); got != want {
			t.Errorf("sizeFor(%d) = %d, want %d", seats, got, want)
		}
	}
}

func TestEqualMembersAreWithinOnePercent(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 7, 10, 33, 100, 999, 1000, 2621} {
		b := mustNew(t, equalMembers(n))
		for k, got := range counts(b, b.Owners) {
			ideal := float64(b.Size) / float64(n)
			if ratio := float64(got) / ideal; ratio > 1.01 || ratio < 0.99 {
				t.Errorf("%d members: %s has %d slots, %.4f of its ideal", n, k, got, ratio)
			}
		}
	}
}

func TestWeightsAreExactToTheSlot(t *testing.T) {
	for _, weights := range [][]uint32{
		{1, 2, 7},
		{1, 1000},
		{1, 1},
		{3, 3, 3, 1},
		{1000, 999, 998, 1, 1},
		{4294967295, 4294967295, 4294967295, 2147483648},
	} {
		b := mustNew(t, weighted(weights...))
		var sum float64
		for _, w := range weights {
			sum += float64(w)
		}
		got := counts(b, b.Owners)
		for i, w := range weights {
			ideal := float64(b.Size) * float64(w) / sum
			if n := float64(got[key(i)]); n < 1 || n < ideal-1 || n > ideal+1 {
				t.Errorf("weights %v: member %d has %.0f slots, ideal %.2f", weights, i, n, ideal)
			}
		}
	}
}

func TestNoWeightStarves(t *testing.T) {
	huge := equalMembers(1000)
	for i := range huge {
		huge[i].Weight = 4294967295
	}
	huge[500].Weight = 1
	full := equalMembers(MaxMembers)
	full[0].Weight = 4294967295
	for name, list := range map[string][]Member{
		"one against four billion":  weighted(1, 4294967295),
		"one among 999 huge":        huge,
		"most members, one is huge": full,
		"light ones below one slot": weighted(1, 1, 1, 2, 3, 1000, 1000),
	} {
		b := mustNew(t, list) // checks that each weight has a slot
		if got := len(counts(b, b.Owners)); got != len(list) {
			t.Errorf("%s: %d members have slots, want %d", name, got, len(list))
		}
	}
}

func TestQuotasAddUpToTheSize(t *testing.T) {
	rng := rand.New(rand.NewSource(1))
	for range 2000 {
		seats := make([]Seat, 1+rng.Intn(50))
		for i := range seats {
			seats[i].Weight = uint32(rng.Int63n(1 << (1 + rng.Intn(32))))
		}
		var sum, weights uint64
		for i, q := range quotas(seats, MinSize) {
			sum += uint64(q)
			weights += uint64(seats[i].Weight)
			if (q == 0) != (seats[i].Weight == 0) {
				t.Fatalf("weight %d has quota %d in %v", seats[i].Weight, q, seats)
			}
		}
		if weights > 0 && sum != MinSize {
			t.Fatalf("quotas of %v add up to %d", seats, sum)
		}
	}
}

func TestNewDoesNotDependOnOrder(t *testing.T) {
	rng := rand.New(rand.NewSource(2))
	list := weighted(100, 1, 50, 50, 0, 1000, 7, 100, 100)
	want := mustNew(t, list)
	for range 20 {
		if got := mustNew(t, shuffled(rng, list)); !reflect.DeepEqual(got, want) {
			t.Fatal("another order gives another base")
		}
	}
}

func TestWeightZeroGetsSeatWithoutSlots(t *testing.T) {
	b := mustNew(t, weighted(100, 0, 100))
	if len(b.Seats) != 3 {
		t.Fatalf("%d seats, want 3", len(b.Seats))
	}
	if got := counts(b, b.Owners); len(got) != 2 || got[key(1)] != 0 {
		t.Errorf("slots %v, want none for %s", got, key(1))
	}
}

func TestBadMemberListsAreRefused(t *testing.T) {
	twice := append(equalMembers(3), Member{Key: key(1), Weight: 5})
	for name, c := range map[string]struct {
		list []Member
		want error
	}{
		"twice": {twice, ErrDuplicate}, "too many": {equalMembers(MaxMembers + 1), ErrTooMany},
	} {
		if _, err := New(c.list); !errors.Is(err, c.want) {
			t.Errorf("%s: New gives %v, want %v", name, err, c.want)
		}
		b := mustNew(t, equalMembers(2))
		before := b.Clone()
		if _, err := b.Update(c.list); !errors.Is(err, c.want) {
			t.Errorf("%s: Update gives %v, want %v", name, err, c.want)
		}
		if !reflect.DeepEqual(b, before) {
			t.Errorf("%s: a refused list changed the base", name)
		}
	}
}

// The golden file pins whatever is frozen: hash, permutation, turns, quotas, walk, rendezvous.
// A difference means that nodes of two releases disagree and that an upgrade moves flows.
func TestGoldenTables(t *testing.T) {
	list := weighted(100, 100, 50)
	b := mustNew(t, list)
	var got bytes.Buffer
	dump := func(title string, table []uint32) {
		fmt.Fprintf(&got, "# %s\n", title)
		for s, o := range table {
			end := byte(' ')
			if s%64 == 63 {
				end = '\n'
			}
			fmt.Fprintf(&got, "%d%c", o, end)
		}
	}
	dump("three members, weights 100 100 50", b.Owners)
	list[0].Excluded = true
	dump("the first is excluded", mustTable(t, b, list))
	list[0].Excluded = false
	list = append(list, Member{Key: key(3), Weight: 200})
	mustUpdate(t, b, list)
	dump("a fourth of weight 200 comes", b.Owners)
	mustUpdate(t, b, list[1:])
	dump("the first goes", mustTable(t, b, list[1:]))
	list[3].Weight = 20
	mustUpdate(t, b, list[1:])
	dump("the fourth has weight 20", b.Owners)
	last := []Member{{Key: "x"}, {Key: "y"}, {Key: "z"}}
	zero := mustNew(t, last)
	table, err := zero.Table(make([]bool, 3))
	if err != nil {
		t.Fatal(err)
	}
	dump("last resort: nobody has a weight", table)

	const file = "testdata/golden.txt"
	if *update {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("tables differ from %s:\n%s", file, got.String())
	}
}
