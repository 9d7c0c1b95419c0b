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

// tally is what one walk found of a backend, or the difference to its counters.
type tally struct{ active, load int64 }

// Recount counts the connections of every backend anew, from the records of the pairs alone, and
// compares. What differs is looked at again: only what lies on the same side each time is a
// difference, by the least that was seen. Packets may flow meanwhile.
func (d *Datapath) Recount() (Drift, error) {
	var drift map[uint32]tally
	for i := range recounts {
		seen, err := d.recountOnce()
		if err != nil {
			return Drift{}, err
		}
		if i == 0 {
			drift = seen
		}
		for id, t := range drift {
			t.active, t.load = agreed(t.active, seen[id].active), agreed(t.load, seen[id].load)
			if drift[id] = t; t == (tally{}) {
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
		out.Active += uint64(max(t.active, -t.active))
		out.Load += uint64(max(t.load, -t.load))
		out.IDs = append(out.IDs, id)
	}
	groups, err := d.recountGroups()
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
func (d *Datapath) recountOnce() (map[uint32]tally, error) {
	before, err := d.counters()
	if err != nil {
		return nil, err
	}
	found, err := d.walkPairs(before)
	if err != nil {
		return nil, err
	}
	after, err := d.counters()
	if err != nil {
		return nil, err
	}
	out := make(map[uint32]tally)
	for id, is := range after {
		was, known := before[id]
		if !known || was.gen != is.gen {
			continue
		}
		t := tally{
			active: outside(found[id].active, was.active, is.active),
			load:   outside(found[id].load, was.load, is.load),
		}
		if t != (tally{}) {
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

// counter is what the datapath says of a backend.
type counter struct {
	gen, group uint32
	tally
}

func (d *Datapath) counters() (map[uint32]counter, error) {
	out := make(map[uint32]counter)
	err := each(d, bpf.MapsMapBackends, 1, math.MaxUint32, func(id uint32, b *bpf.MapsBackend) bool {
		if gen := atomic.LoadUint32(&b.Gen); gen != 0 {
			s := d.BackendStat(id)
			out[id] = counter{gen, b.Group, tally{int64(int32(s.Active)), int64(int32(s.Load))}}
		}
		return true
	})
	return out, err
}

// walkPairs counts pairs by backend, those of the present generation.
func (d *Datapath) walkPairs(backends map[uint32]counter) (map[uint32]tally, error) {
	out := make(map[uint32]tally)
	err := each(d, bpf.MapsMapCtPairs, 0, math.MaxUint32, func(_ uint32, p *bpf.MapsCtPair) bool {
		life := atomic.LoadUint32(&p.Life)
		if life&1 == 0 {
			return true
		}
		id, gen, state := p.Backend, p.BackendGen, FlowState(atomic.LoadUint32(&p.State))
		if id == 0 || backends[id].gen != gen || atomic.LoadUint32(&p.Life) != life {
			return true
		}
		t := out[id]
		switch state {
		case FlowEstablished:
			t.active++
			t.load++
		case FlowOpening:
			t.load++
		}
		out[id] = t
		return true
	})
	return out, err
}

// recountGroups compares groups with their backends, the same way.
func (d *Datapath) recountGroups() (uint64, error) {
	var drift map[uint32]int64
	for i := range recounts {
		before, err := d.groupLoads()
		if err != nil {
			return 0, err
		}
		sums := make(map[uint32]int64)
		counters, err := d.counters()
		if err != nil {
			return 0, err
		}
		for _, c := range counters {
			sums[c.group] += c.load
		}
		after, err := d.groupLoads()
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

// groupLoads returns the load of each group that has one or that backends are in. Id 0 is no group.
func (d *Datapath) groupLoads() (map[uint32]int64, error) {
	out := make(map[uint32]int64)
	err := each(d, bpf.MapsMapGroups, 1, math.MaxUint32, func(id uint32, g *bpf.MapsGroup) bool {
		if load := atomic.LoadInt64(&g.Load); load != 0 {
			out[id] = load
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	err = each(d, bpf.MapsMapBackends, 1, math.MaxUint32, func(_ uint32, b *bpf.MapsBackend) bool {
		if _, ok := out[b.Group]; !ok && b.Group != 0 {
			out[b.Group] = d.Group(b.Group).Load
		}
		return true
	})
	return out, err
}
