package sched

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// seated returns a base whose seats have these weights, in order.
func seated(t testing.TB, weights ...uint32) *Base {
	t.Helper()
	members := make([]Member, len(weights))
	for i, w := range weights {
		members[i] = Member{Key: fmt.Sprintf("%05d", i), Weight: w}
	}
	b, err := New(members)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sequence(t testing.TB, b *Base, excluded []bool) []uint32 {
	t.Helper()
	out, err := b.AppendSequence(nil, excluded)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestSequenceIsFrozen(t *testing.T) {
	for _, c := range []struct {
		weights []uint32
		want    []uint32
	}{
		{[]uint32{100, 100, 100}, []uint32{0, 1, 2}},
		{[]uint32{100, 200, 700}, []uint32{2, 1, 2, 2, 0, 2, 2, 1, 2, 2}},
		{[]uint32{5}, []uint32{0}},
		{[]uint32{3, 1}, []uint32{0, 0, 1, 0}},
	} {
		if got := sequence(t, seated(t, c.weights...), nil); len(got) != len(c.want) || !slices.Equal(turnsOf(got, len(c.weights)), turnsOf(c.want, len(c.weights))) {
			t.Errorf("%v: %v, want the turns of %v", c.weights, got, c.want)
		} else if len(c.weights) == 3 && !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.weights, got, c.want)
		}
	}
}

func turnsOf(seats []uint32, n int) []int {
	out := make([]int, n)
	for _, s := range seats {
		out[s]++
	}
	return out
}

// A round is exact, and no part of it from its start is more than a few turns off for anybody.
func TestSequenceIsExactAndSmooth(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		weights := make([]uint32, 1+rng.IntN(12))
		sum, common := uint64(0), uint64(0)
		for i := range weights {
			weights[i] = 1 + rng.Uint32N(60)
			sum += uint64(weights[i])
			common = divisor(common, uint64(weights[i]))
		}
		got := sequence(t, seated(t, weights...), nil)
		if len(got) != int(sum/common) {
			t.Fatalf("%v: a round of %d, want %d", weights, len(got), sum/common)
		}
		had := make([]float64, len(weights))
		for n, seat := range got {
			had[seat]++
			for i, w := range weights {
				ideal := float64(n+1) * float64(w) / float64(sum)
				if off := math.Abs(had[i] - ideal); off > 2 {
					t.Fatalf("%v: after %d turns seat %d had %.0f, ideal %.2f", weights, n+1, i, had[i], ideal)
				}
			}
		}
		for i, w := range weights {
			if had[i] != float64(uint64(w)/common) {
				t.Fatalf("%v: seat %d has %.0f turns", weights, i, had[i])
			}
		}
	}
}

func TestSequenceOfLargeWeightsIsScaled(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	weights := make([]uint32, 1000)
	sum := 0.0
	for i := range weights {
		weights[i] = 1 + rng.Uint32N(1000)
		sum += float64(weights[i])
	}
	got := sequence(t, seated(t, weights...), nil)
	if len(got) != MaxSequence {
		t.Fatalf("a round of %d, want %d", len(got), MaxSequence)
	}
	for i, n := range turnsOf(got, len(weights)) {
		if ideal := MaxSequence * float64(weights[i]) / sum; n == 0 || math.Abs(float64(n)-ideal) > 1.01 {
			t.Errorf("weight %d has %d turns, ideal %.2f", weights[i], n, ideal)
		}
	}
}

func TestSequenceLeavesOutWhoDoesNotServe(t *testing.T) {
	b := seated(t, 10, 20, 0, 30)
	got := sequence(t, b, []bool{true, false, true, false})
	if c := turnsOf(got, 4); !slices.Equal(c, []int{0, 2, 0, 3}) {
		t.Errorf("turns %v", c)
	}
	if got := sequence(t, b, []bool{true, true, false, true}); !slices.Equal(got, []uint32{2}) {
		t.Errorf("the last resort has no weight: %v", got)
	}
	if _, err := b.AppendSequence(nil, []bool{true, true, true, true}); !errors.Is(err, ErrEmpty) {
		t.Errorf("nobody serves: %v", err)
	}
	if _, err := b.AppendServing(nil, []bool{true}); err == nil || errors.Is(err, ErrEmpty) {
		t.Errorf("one exclusion for four seats: %v", err)
	}
	serving, err := b.AppendServing([]uint32{9}, []bool{false, true, true, false})
	if err != nil || !slices.Equal(serving, []uint32{9, 0, 3}) {
		t.Errorf("serving %v, %v", serving, err)
	}
}

// While somebody is excluded, an addition that doubles the table must not move what is lent.
func TestDoublingMovesNothingThatIsLent(t *testing.T) {
	for n := 3; n < 200; n++ {
		members := make([]Member, n)
		for i := range members {
			members[i] = Member{Key: fmt.Sprintf("198.51.%d.%d", i>>8, i&255), Weight: 100, Excluded: i%3 == 1}
		}
		b, err := New(members)
		if err != nil {
			t.Fatal(err)
		}
		before, err := b.Table(b.Excluded(members))
		if err != nil {
			t.Fatal(err)
		}
		more := append(slices.Clone(members), Member{Key: "198.51.255.1", Weight: 100})
		if _, err := b.Update(more); err != nil {
			t.Fatal(err)
		}
		if int(b.Size) == len(before) {
			continue
		}
		after, err := b.Table(b.Excluded(more))
		if err != nil {
			t.Fatal(err)
		}
		moved, newcomer := 0, uint32(len(b.Seats)-1)
		for slot, seat := range after {
			if was := before[slot*len(before)/len(after)]; was != seat && seat != newcomer {
				moved++
			}
		}
		if share := float64(moved) / float64(len(after)); share > 0.015 {
			t.Errorf("%d backends, a third excluded: %.2f %% of the slots moved besides", n, 100*share)
		}
	}
}
