package userspace

import "github.com/tc-loadbalancer/tclb/pkg/datapath"

// Recount counts the connections of every backend anew, from the flows alone, and compares. Connections
// may begin and end meanwhile.
func (m *Maps) Recount() (datapath.Drift, error) { return datapath.Recount(ledger{m}) }

// ledger is the maps for a recount.
type ledger struct{ m *Maps }

// Counters returns what is counted for each backend.
func (l ledger) Counters() (map[uint32]datapath.Counter, error) {
	records, err := l.m.Backends()
	if err != nil {
		return nil, err
	}
	out := make(map[uint32]datapath.Counter, len(records))
	for id := range records {
		s := &l.m.stats[id]
		s.mu.Lock()
		b := l.m.BackendAt(id)
		out[id] = datapath.Counter{
			Gen: b.Gen, Group: b.Group,
			Tally: datapath.Tally{Active: int64(int32(s.active.Load())), Load: int64(int32(s.load.Load()))},
		}
		s.mu.Unlock()
	}
	return out, nil
}

// Walk counts the flows of present generations.
func (l ledger) Walk(counters map[uint32]datapath.Counter) (map[uint32]datapath.Tally, error) {
	out := make(map[uint32]datapath.Tally)
	err := l.m.Pairs(func(p datapath.Pair) bool {
		if counters[p.BackendID].Gen == p.BackendGen {
			t := out[p.BackendID]
			t.Add(p.State)
			out[p.BackendID] = t
		}
		return true
	})
	return out, err
}

// GroupLoads returns the load of each group that has one or that backends are in.
func (l ledger) GroupLoads() (map[uint32]int64, error) {
	out := make(map[uint32]int64)
	for id := 1; id < len(l.m.groups); id++ {
		if load := l.m.groups[id].load.Load(); load != 0 {
			out[uint32(id)] = load
		}
	}
	counters, err := l.Counters()
	for _, c := range counters {
		if c.Group != 0 {
			out[c.Group] = l.m.Group(c.Group).Load
		}
	}
	return out, err
}
