package datapath

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/tc-loadbalancer/tclb/bpf"
)

// Drift is by how much the counters of connections differ from what a recount finds. All are 0 as long
// as every change of a pair was counted exactly once.
type Drift struct {
	Active uint64   // sum over backends, either way
	Load   uint64   // the same of connections that are opening or established
	Groups uint64   // sum over groups: load of a group against that of its backends
	IDs    []uint32 // the backends whose counters differ
}

// recounts is how many walks must agree on a difference: while packets flow a walk and the counters are
// never of one moment.
const recounts = 4

// recountPause lies between two walks that disagree with the counters.
const recountPause = 50 * time.Millisecond

// Tally is what counters say of a backend's connections, what one walk found, or the difference.
type Tally struct{ Active, Load int64 }

// Counter is what is counted for a backend of a generation, and the group that its load counts in.
type Counter struct {
	Gen, Group uint32
	Tally
}

// Ledger is what a recount compares.
type Ledger interface {
	// Counters returns what is counted, by backend id.
	Counters() (map[uint32]Counter, error)
	// Walk counts flows by backend, from their records alone: those of the generations in counters.
	Walk(counters map[uint32]Counter) (map[uint32]Tally, error)
	// GroupLoads returns the load of each group that has one or that backends are in. Id 0 is no group.
	GroupLoads() (map[uint32]int64, error)
}

// Recount counts the connections of every backend anew, from the records of the pairs alone, and
// compares. Packets may flow meanwhile.
func (d *Datapath) Recount() (Drift, error) { return Recount(ledger{d}) }

// Recount compares a ledger's counters with its flows. What differs is looked at again: only what lies
// on the same side each time is a difference, by the least that was seen.
func Recount(l Ledger) (Drift, error) {
	var drift map[uint32]Tally
	for i := range recounts {
		seen, err := recountOnce(l)
		if err != nil {
			return Drift{}, err
		}
		if i == 0 {
			drift = seen
		}
		for id, t := range drift {
			t.Active, t.Load = agreed(t.Active, seen[id].Active), agreed(t.Load, seen[id].Load)
			if drift[id] = t; t == (Tally{}) {
				delete(drift, id)
			}
		}
		if len(drift) == 0 {
			break
		}
		time.Sleep(recountPause)
	}
	out := Drift{}
	for id, t := range drift {
		out.Active += uint64(max(t.Active, -t.Active))
		out.Load += uint64(max(t.Load, -t.Load))
		out.IDs = append(out.IDs, id)
	}
	groups, err := recountGroups(l)
	out.Groups = groups
	return out, err
}

// agreed is what two differences have in common.
func agreed(a, b int64) int64 {
	switch {
	case a > 0 && b > 0:
		return min(a, b)
	case a < 0 && b < 0:
		return max(a, b)
	}
	return 0
}

// recountOnce returns by how much each backend's counters differ from one walk. Counters are read before
// and after it: what lies between is no difference.
func recountOnce(l Ledger) (map[uint32]Tally, error) {
	before, err := l.Counters()
	if err != nil {
		return nil, err
	}
	found, err := l.Walk(before)
	if err != nil {
		return nil, err
	}
	after, err := l.Counters()
	if err != nil {
		return nil, err
	}
	out := make(map[uint32]Tally)
	for id, is := range after {
		was, known := before[id]
		if !known || was.Gen != is.Gen {
			continue
		}
		t := Tally{
			Active: outside(found[id].Active, was.Active, is.Active),
			Load:   outside(found[id].Load, was.Load, is.Load),
		}
		if t != (Tally{}) {
			out[id] = t
		}
	}
	return out, nil
}

// outside is how far the counters lie above what was found, or below.
func outside(found, a, b int64) int64 {
	switch low, high := min(a, b), max(a, b); {
	case found < low:
		return low - found
	case found > high:
		return high - found
	}
	return 0
}

// recountGroups compares groups with their backends, the same way.
func recountGroups(l Ledger) (uint64, error) {
	var drift map[uint32]int64
	for i := range recounts {
		before, err := l.GroupLoads()
		if err != nil {
			return 0, err
		}
		sums := make(map[uint32]int64)
		counters, err := l.Counters()
		if err != nil {
			return 0, err
		}
		for _, c := range counters {
			sums[c.Group] += c.Load
		}
		after, err := l.GroupLoads()
		if err != nil {
			return 0, err
		}
		seen := make(map[uint32]int64)
		for id, is := range after {
			seen[id] = outside(sums[id], before[id], is)
		}
		if i == 0 {
			drift = seen
		}
		for id, n := range drift {
			if drift[id] = agreed(n, seen[id]); drift[id] == 0 {
				delete(drift, id)
			}
		}
		if len(drift) == 0 {
			return 0, nil
		}
		time.Sleep(recountPause)
	}
	var sum uint64
	for _, n := range drift {
		sum += uint64(max(n, -n))
	}
	return sum, nil
}

// ledger reads the maps.
type ledger struct{ d *Datapath }

// Counters reads the records of backends and what is counted for them.
func (l ledger) Counters() (map[uint32]Counter, error) {
	out := make(map[uint32]Counter)
	err := each(l.d, bpf.MapsMapBackends, 1, math.MaxUint32, func(id uint32, b *bpf.MapsBackend) bool {
		if gen := atomic.LoadUint32(&b.Gen); gen != 0 {
			s := l.d.BackendStat(id)
			out[id] = Counter{gen, b.Group, Tally{int64(int32(s.Active)), int64(int32(s.Load))}}
		}
		return true
	})
	return out, err
}

// Walk counts pairs by backend, those of the present generation.
func (l ledger) Walk(counters map[uint32]Counter) (map[uint32]Tally, error) {
	out := make(map[uint32]Tally)
	err := each(l.d, bpf.MapsMapCtPairs, 0, math.MaxUint32, func(_ uint32, p *bpf.MapsCtPair) bool {
		life := atomic.LoadUint32(&p.Life)
		if life&1 == 0 {
			return true
		}
		id, gen, state := p.Backend, p.BackendGen, FlowState(atomic.LoadUint32(&p.State))
		if id == 0 || counters[id].Gen != gen || atomic.LoadUint32(&p.Life) != life {
			return true
		}
		t := out[id]
		t.Add(state)
		out[id] = t
		return true
	})
	return out, err
}

// Add takes in a flow by its state.
func (t *Tally) Add(state FlowState) {
	switch state {
	case FlowEstablished:
		t.Active++
		t.Load++
	case FlowOpening:
		t.Load++
	}
}

// GroupLoads reads the groups.
func (l ledger) GroupLoads() (map[uint32]int64, error) {
	out := make(map[uint32]int64)
	err := each(l.d, bpf.MapsMapGroups, 1, math.MaxUint32, func(id uint32, g *bpf.MapsGroup) bool {
		if load := atomic.LoadInt64(&g.Load); load != 0 {
			out[id] = load
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	err = each(l.d, bpf.MapsMapBackends, 1, math.MaxUint32, func(_ uint32, b *bpf.MapsBackend) bool {
		if _, ok := out[b.Group]; !ok && b.Group != 0 {
			out[b.Group] = l.d.Group(b.Group).Load
		}
		return true
	})
	return out, err
}
