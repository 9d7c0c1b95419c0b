package sched

import (
	"fmt"
	"math/rand"
	"reflect"
	"slices"
	"testing"
)

// history drives a base through random changes and checks every promise after each.
type history struct {
	t    *testing.T
	rng  *rand.Rand
	base *Base
	list []Member
	next int
}

// change alters the list a bit and returns the keys that came or got another weight.
func (h *history) change() map[string]bool {
	changed := map[string]bool{}
	for range 1 + h.rng.Intn(3) {
		i := 0
		if len(h.list) > 0 {
			i = h.rng.Intn(len(h.list))
		}
		switch n := h.rng.Intn(10); {
		case n < 4 || len(h.list) < 2:
			m := Member{Key: key(h.next), Weight: []uint32{100, 100, 100, 50, 1, 1000, 0}[h.rng.Intn(7)]}
			if h.rng.Intn(4) == 0 && h.next > 0 {
				m.Key = key(h.rng.Intn(h.next)) // one who was here before, or is
			} else {
				h.next++
			}
			if !slices.ContainsFunc(h.list, func(o Member) bool { return o.Key == m.Key }) {
				h.list = append(h.list, m)
				changed[m.Key] = true
			}
		case n < 7:
			h.list = slices.Delete(h.list, i, i+1)
		case n < 8:
			h.list[i].Weight = uint32(h.rng.Intn(3) * 100)
			changed[h.list[i].Key] = true
		default:
			h.list[i].Excluded = !h.list[i].Excluded
		}
	}
	return changed
}

// step makes one change and checks what it did.
func (h *history) step() {
	before, list := h.base.Clone(), slices.Clone(h.list)
	changed := h.change()
	mustUpdate(h.t, h.base, shuffled(h.rng, h.list))

	again := before.Clone()
	mustUpdate(h.t, again, h.list)
	if !reflect.DeepEqual(again, h.base) {
		h.t.Fatalf("the order of the list makes a difference")
	}
	h.checkSeats()
	h.checkStored()
	h.checkMoves(before, changed)
	if h.base.owned() {
		h.checkQuotas()
	}
	h.checkExclusion()
	h.checkPackets(before, list, changed)
}

func (h *history) checkSeats() {
	for _, m := range h.list {
		i := slices.IndexFunc(h.base.Seats, func(s Seat) bool { return s.Key == m.Key && !s.Gone })
		if i < 0 {
			h.t.Fatalf("%s has no seat", m.Key)
		}
		if m.Weight > 0 && h.base.Seats[i].Weight != m.Weight {
			h.t.Fatalf("%s has weight %d, its seat %d", m.Key, m.Weight, h.base.Seats[i].Weight)
		}
	}
	live := 0
	for _, s := range h.base.Seats {
		if !s.Gone {
			live++
		}
	}
	if live != len(h.list) {
		h.t.Fatalf("%d seats are taken by %d members", live, len(h.list))
	}
}

func (h *history) checkStored() {
	data, err := h.base.MarshalBinary()
	if err != nil {
		h.t.Fatal(err)
	}
	var read Base
	if err := read.UnmarshalBinary(data); err != nil {
		h.t.Fatal(err)
	}
	if !reflect.DeepEqual(&read, h.base) {
		h.t.Fatal("the stored base is another one")
	}
}

// checkMoves compares seat by seat: a member that takes over a seat moves no slot of the base.
func (h *history) checkMoves(before *Base, changed map[string]bool) {
	if !before.owned() {
		return
	}
	for s := range h.base.Owners {
		was, now := before.Owners[uint64(s)*uint64(before.Size)/uint64(h.base.Size)], h.base.Owners[s]
		if was != now && !changed[h.base.Seats[was].Key] && !changed[h.base.Seats[now].Key] {
			h.t.Fatalf("slot %d went from %q to %q, both unchanged", s, h.base.Seats[was].Key, h.base.Seats[now].Key)
		}
	}
}

// checkQuotas bounds what rounding and the budget leave behind.
func (h *history) checkQuotas() {
	slack := 4 + int(h.base.Size)/100
	got := make([]int, len(h.base.Seats))
	for _, o := range h.base.Owners {
		got[o]++
	}
	for i, want := range quotas(h.base.Seats, h.base.Size) {
		if d := got[i] - int(want); max(d, -d) > slack {
			h.t.Fatalf("seat %d has %d slots, quota %d", i, got[i], want)
		}
	}
}

// checkExclusion excludes one more.
func (h *history) checkExclusion() {
	excluded := h.base.Excluded(h.list)
	i := slices.Index(excluded, false)
	if i < 0 {
		return
	}
	before, err := h.base.Table(excluded)
	if err != nil {
		h.t.Fatal(err)
	}
	for s, o := range before {
		if excluded[o] {
			h.t.Fatalf("slot %d is with an excluded seat", s)
		}
		if own := h.base.Owners[s]; own != NoSeat && !excluded[own] && own != o {
			h.t.Fatalf("slot %d of a serving seat was lent", s)
		}
	}
	excluded[i] = true
	after, err := h.base.Table(excluded)
	if err != nil {
		return
	}
	for s := range after {
		if before[s] != after[s] && before[s] != uint32(i) {
			h.t.Fatalf("excluding seat %d moved slot %d from %d to %d", i, s, before[s], after[s])
		}
	}
}

// checkPackets compares effective tables: nothing moves besides what changed. The exception is
// an excluded member whose weight falls: who gets its slots for good is found by more walks.
func (h *history) checkPackets(before *Base, list []Member, changed map[string]bool) {
	if before.Size != h.base.Size || !before.owned() {
		return // all walks are new
	}
	for _, m := range list {
		if !slices.ContainsFunc(h.list, func(o Member) bool { return o.Key == m.Key && o.Weight == m.Weight }) {
			changed[m.Key] = true
		}
	}
	was, errWas := before.Table(before.listed())
	now, errNow := h.base.Table(h.base.listed())
	if errWas != nil || errNow != nil {
		return // nobody is serving
	}
	limit := 0
	for i := range before.Seats {
		if before.Seats[i].excluded() && h.base.Seats[i].Weight < before.Seats[i].Weight {
			limit = int(h.base.Size) / 5
		}
	}
	n := collateral(byKey(before, was, before.Size), byKey(h.base, now, h.base.Size), changed)
	if n > limit {
		h.t.Fatalf("%d of %d slots of others moved, at most %d may", n, h.base.Size, limit)
	}
}

// listed returns the exclusions that the member list alone makes.
func (b *Base) listed() []bool {
	excluded := make([]bool, len(b.Seats))
	for i := range excluded {
		excluded[i] = b.Seats[i].excluded()
	}
	return excluded
}

func TestRandomHistories(t *testing.T) {
	for seed := range int64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			h := &history{t: t, rng: rand.New(rand.NewSource(seed)), base: mustNew(t, nil)}
			for range 150 {
				h.step()
			}
		})
	}
}
