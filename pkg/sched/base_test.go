package sched

import (
	"math/rand"
	"reflect"
	"slices"
	"testing"
)

func TestReturnRestoresTheMapping(t *testing.T) {
	list := weighted(100, 100, 50, 1, 1000)
	b := mustNew(t, list)
	want := b.Clone()
	for i := range list {
		less := slices.Delete(slices.Clone(list), i, i+1)
		if moved := mustUpdate(t, b, less); moved != 0 || !slices.Equal(b.Owners, want.Owners) {
			t.Errorf("removal of %s moved %d slots of the base", list[i].Key, moved)
		}
		if slices.Contains(mustTable(t, b, less), uint32(i)) {
			t.Errorf("%s is gone and has slots", list[i].Key)
		}
	}
	if mustUpdate(t, b, list); !reflect.DeepEqual(b, want) {
		t.Error("all are back and the base is another one")
	}
}

func TestMaintenanceKeepsSlots(t *testing.T) {
	list := equalMembers(4)
	b := mustNew(t, list)
	want := b.Clone()
	before := mustTable(t, b, list)
	list[2].Weight = 0
	if moved := mustUpdate(t, b, list); moved != 0 {
		t.Errorf("maintenance moved %d slots of the base", moved)
	}
	if slices.Contains(mustTable(t, b, list), 2) {
		t.Error("a member of weight 0 has slots")
	}
	list[2].Weight = 100
	mustUpdate(t, b, list)
	if !reflect.DeepEqual(b, want) || !slices.Equal(mustTable(t, b, list), before) {
		t.Error("the end of maintenance did not restore the mapping")
	}
}

func TestReplacementInheritsSlots(t *testing.T) {
	list := weighted(100, 50, 100, 100)
	b := mustNew(t, list)
	want := byKey(b, b.Owners, b.Size)
	// Two are replaced at once; the newcomer of weight 50 sorts first and must not take a 100.
	list[1] = Member{Key: "new-a", Weight: 50}
	list[2] = Member{Key: "new-b", Weight: 100}
	if moved := mustUpdate(t, b, list); moved != 0 || len(b.Seats) != 4 {
		t.Fatalf("%d slots moved and %d seats, want 0 and 4", moved, len(b.Seats))
	}
	for s, k := range byKey(b, b.Owners, b.Size) {
		heir := map[string]string{key(1): "new-a", key(2): "new-b"}[want[s]]
		if k != want[s] && k != heir {
			t.Fatalf("slot %d: from %s to %s", s, want[s], k)
		}
	}
}

func TestAdditionTakesItsShareAndNothingElseMoves(t *testing.T) {
	for _, n := range []int{1, 2, 3, 9, 40, 99, 300} {
		list := equalMembers(n + 1)
		b := mustNew(t, list[:n])
		before := b.Clone()
		moved := mustUpdate(t, b, list)
		old := byKey(before, before.Owners, b.Size)
		if c := collateral(old, byKey(b, b.Owners, b.Size), map[string]bool{key(n): true}); c != 0 {
			t.Errorf("%d+1 members: %d other slots moved", n, c)
		}
		ideal := float64(b.Size) / float64(n+1)
		for k, got := range counts(b, b.Owners) {
			if ratio := float64(got) / ideal; ratio > 1.011 {
				t.Errorf("%d+1 members: %s has %.4f of its ideal", n, k, ratio)
			}
		}
		if got := counts(b, b.Owners)[key(n)]; moved != got {
			t.Errorf("%d+1 members: %d slots moved, the newcomer has %d", n, moved, got)
		}
	}
}

func TestGrowthMovesNothing(t *testing.T) {
	b := mustNew(t, equalMembers(3))
	want := b.Clone()
	b.grow(8 * b.Size)
	checkBase(t, b)
	rng := rand.New(rand.NewSource(4))
	for range 10000 {
		h := rng.Uint32()
		if now, was := b.Owners[Slot(h, b.Size)], want.Owners[Slot(h, want.Size)]; now != was {
			t.Fatalf("hash %#x went from %d to %d", h, was, now)
		}
	}
	// The other way round: a member without weight makes the table grow, and only that.
	list := append(equalMembers(5), Member{Key: "idle"})
	b = mustNew(t, list[:5])
	want = b.Clone()
	if moved := mustUpdate(t, b, list); moved != 0 || b.Size != 2*want.Size {
		t.Errorf("size %d, %d slots moved; want %d and none", b.Size, moved, 2*want.Size)
	}
	if !slices.Equal(byKey(b, b.Owners, b.Size), byKey(want, want.Owners, b.Size)) {
		t.Error("doubling moved slots")
	}
}

func TestServiceGrownOneByOneStaysBalanced(t *testing.T) {
	list := equalMembers(400)
	b := new(Base)
	for n := 1; n <= len(list); n++ {
		mustUpdate(t, b, list[:n])
	}
	ideal := float64(b.Size) / float64(len(list))
	for k, got := range counts(b, b.Owners) {
		if ratio := float64(got) / ideal; ratio > 1.02 || ratio < 0.98 {
			t.Errorf("%s has %d slots, %.3f of its ideal", k, got, ratio)
		}
	}
}

func TestWeightChangeMovesOnlyItsShare(t *testing.T) {
	for _, c := range []struct{ from, to uint32 }{{100, 200}, {100, 50}, {100, 1}, {1, 1000}, {1000, 1}, {100, 101}} {
		list := weighted(100, 30, c.from, 70, 500)
		b := mustNew(t, list)
		before := byKey(b, b.Owners, b.Size)
		list[2].Weight = c.to
		moved := mustUpdate(t, b, list)
		if n := collateral(before, byKey(b, b.Owners, b.Size), map[string]bool{key(2): true}); n != 0 {
			t.Errorf("%d to %d: %d other slots moved", c.from, c.to, n)
		}
		got, want := counts(b, b.Owners)[key(2)], int(quotas(b.Seats, b.Size)[2])
		if got != want {
			t.Errorf("%d to %d: %d slots, want %d", c.from, c.to, got, want)
		}
		was := 0
		for _, k := range before {
			if k == key(2) {
				was++
			}
		}
		if least := max(got-was, was-got); moved != least {
			t.Errorf("%d to %d: %d slots moved, %d had to", c.from, c.to, moved, least)
		}
	}
}

// The member was lent out when its weight fell. Its surplus must go where packets went already.
func TestReturnWithLowerWeightMovesNothingElse(t *testing.T) {
	for _, c := range []struct {
		members  int
		from, to uint32
		bound    float64
	}{
		{3, 100, 50, 0}, {10, 100, 50, 0}, {100, 100, 50, 0.003}, {3, 100, 1, 0.015}, {10, 100, 1, 0.015}, {10, 1000, 100, 0.015},
	} {
		list := equalMembers(c.members)
		list[0].Weight = c.from
		b := mustNew(t, list)
		list[0].Weight = 0
		mustUpdate(t, b, list)
		before := byKey(b, mustTable(t, b, list), b.Size)
		list[0].Weight = c.to
		mustUpdate(t, b, list)
		n := collateral(before, byKey(b, mustTable(t, b, list), b.Size), map[string]bool{key(0): true})
		if share := float64(n) / float64(b.Size); share > c.bound {
			t.Errorf("%d members, %d to %d: %d other slots moved, %.2f %%", c.members, c.from, c.to, n, 100*share)
		}
	}
}

// A seat of another weight is taken over as well; packets of others must not notice.
func TestReplacementWithOtherWeight(t *testing.T) {
	for _, w := range []uint32{1, 40, 150, 1000} {
		list := equalMembers(5)
		b := mustNew(t, list)
		mustUpdate(t, b, list[1:])
		before := byKey(b, mustTable(t, b, list[1:]), b.Size)
		list[0] = Member{Key: "new", Weight: w}
		mustUpdate(t, b, list)
		if len(b.Seats) != 5 {
			t.Errorf("weight %d: %d seats, want 5", w, len(b.Seats))
		}
		after := byKey(b, mustTable(t, b, list), b.Size)
		n := collateral(before, after, map[string]bool{"new": true})
		if share := float64(n) / float64(b.Size); share > 0.015 {
			t.Errorf("weight %d: %d other slots moved, %.2f %%", w, n, 100*share)
		}
	}
}

func TestNewcomerPrefersNearestVacantSeat(t *testing.T) {
	for _, c := range []struct{ weight, want uint32 }{{100, 100}, {60, 50}, {99, 50}, {500, 100}, {7, 10}, {10, 10}} {
		list := append(weighted(50, 10, 100), Member{Key: "stays", Weight: 1})
		b := mustNew(t, list)
		was := slices.Clone(b.Seats)
		mustUpdate(t, b, []Member{list[3], {Key: "x", Weight: c.weight}})
		i := slices.IndexFunc(b.Seats, func(s Seat) bool { return s.Key == "x" })
		if got := was[i].Weight; got != c.want {
			t.Errorf("weight %d took the seat of weight %d, want %d", c.weight, got, c.want)
		}
	}
}

func TestReplacedMemberComesBackBesideItsHeir(t *testing.T) {
	b := mustNew(t, equalMembers(3))
	list := append(equalMembers(3)[1:], Member{Key: "heir", Weight: 100})
	mustUpdate(t, b, list)
	mustUpdate(t, b, append(list, equalMembers(1)...))
	seeds := map[uint64]bool{}
	for _, s := range b.Seats {
		seeds[s.Seed] = true
	}
	if len(b.Seats) != 4 || len(seeds) != 4 {
		t.Errorf("%d seats with %d seeds, want 4 of each", len(b.Seats), len(seeds))
	}
	if got := counts(b, b.Owners)[key(0)]; got != 128 {
		t.Errorf("who came back has %d slots, want 128", got)
	}
}

func TestFirstWeightOfMemberWithoutSlots(t *testing.T) {
	list := append(equalMembers(3), Member{Key: "idle"})
	b := mustNew(t, list)
	mustUpdate(t, b, list[1:]) // one leaves ...
	list[3].Weight = 100
	if moved := mustUpdate(t, b, list[1:]); moved != 0 { // ... and its seat suits
		t.Errorf("%d slots moved, want 0", moved)
	}
	mustUpdate(t, b, list) // who left comes back to the seat that has no slots
	if got := counts(b, b.Owners); len(b.Seats) != 4 || got[key(0)] != 128 || got["idle"] < 128 {
		t.Errorf("%d seats, slots %v", len(b.Seats), got)
	}
}

func TestBaseWithoutWeightsStartsAfresh(t *testing.T) {
	list := weighted(0, 0, 0)
	b := mustNew(t, list)
	list = weighted(100, 0, 50)
	if moved := mustUpdate(t, b, list); moved != 0 {
		t.Errorf("%d slots moved from nobody", moved)
	}
	if want := mustNew(t, list); !reflect.DeepEqual(b, want) {
		t.Error("the first weights do not give a fresh base")
	}
}

func TestSeatsAreReusedForGood(t *testing.T) {
	b := new(Base)
	rng := rand.New(rand.NewSource(5))
	for range 500 {
		var list []Member
		for range 1 + rng.Intn(6) {
			list = append(list, Member{Key: key(rng.Int() & 0xffff), Weight: uint32(rng.Intn(4))})
		}
		if _, err := sortMembers(list); err == nil {
			mustUpdate(t, b, list)
		}
	}
	if len(b.Seats) > 12 {
		t.Errorf("%d seats after services of at most 6 members, want at most 12", len(b.Seats))
	}
}
