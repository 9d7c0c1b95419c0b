package userspace

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// tableShards is how many parts the table of flows has, each with a lock of its own.
const tableShards = 64

// table is all flows. A flow's number is its place in its part, times tableShards, plus the part's.
type table struct {
	shards  [tableShards]tableShard
	next    atomic.Uint32 // where the sweep goes on
	hurried atomic.Int64  // when it was made to
}

type tableShard struct {
	mu    sync.Mutex
	flows []*Flow  // nil where free; guarded by mu, as free
	free  []uint32 // places
}

// add gives a flow its number.
func (t *table) add(f *Flow) {
	last := f.client.Addr().As16()
	at := (uint32(f.client.Port()) + uint32(last[15])) % tableShards
	s := &t.shards[at]
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free); n > 0 {
		place := s.free[n-1]
		s.free = s.free[:n-1]
		s.flows[place] = f
		f.index = place*tableShards + at
		return
	}
	f.index = uint32(len(s.flows))*tableShards + at
	s.flows = append(s.flows, f)
}

// remove takes the number back.
func (t *table) remove(f *Flow) {
	s := &t.shards[f.index%tableShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	place := f.index / tableShards
	s.flows[place] = nil
	s.free = append(s.free, place)
}

// snapshot returns the flows of a part.
func (t *table) snapshot(shard uint32) []*Flow {
	s := &t.shards[shard%tableShards]
	s.mu.Lock()
	flows := slices.Clone(s.flows)
	s.mu.Unlock()
	return slices.DeleteFunc(flows, func(f *Flow) bool { return f == nil })
}

// each calls visit with every flow, locked, until it returns false. What visit returns besides is called without the
// lock.
func (t *table) each(visit func(*Flow) (then func(), goOn bool)) {
	for i := range uint32(tableShards) {
		for _, f := range t.snapshot(i) {
			f.mu.Lock()
			then, goOn := visit(f)
			f.mu.Unlock()
			if then != nil {
				then()
			}
			if !goOn {
				return
			}
		}
	}
}

// endOrphans ends the flows whose backend is gone. Those that are opening wait: it has not answered, and when it
// does not, they go to another one.
func (m *Maps) endOrphans() {
	m.flows.each(func(f *Flow) (func(), bool) {
		if datapath.FlowState(f.state.Load()) != datapath.FlowEstablished || !f.orphaned() {
			return nil, true
		}
		f.moveTo(datapath.FlowClosing)
		m.drop(datapath.DropBackendGone)
		return f.tell(), true
	})
}

// Sweep ends flows that were idle for too long or, to flush, however young they are: gone of each is called. It goes on where
// the last call ended.
func (m *Maps) Sweep(r datapath.SweepRequest) (datapath.SweepResult, error) {
	var done datapath.SweepResult
	for i := 0; i < tableShards && (r.Max == 0 || done.Looked < r.Max); i++ {
		for _, f := range m.flows.snapshot(m.flows.next.Add(1)) {
			done.Looked++
			if then := m.sweep(f, r); then != nil {
				then()
				done.Removed++
			}
		}
	}
	return done, nil
}

// sweep ends one flow if it is to end, and returns what is to be called then.
func (m *Maps) sweep(f *Flow, r datapath.SweepRequest) func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	state := datapath.FlowState(f.state.Load())
	switch {
	case state == stateFree:
		return nil
	case r.Flush:
		if r.Service != 0 && f.service != r.Service {
			return nil
		}
	case f.idle(m.elapsed()) <= f.timeout():
		return nil
	default:
		m.rooms.expired[state].Add(1)
	}
	f.finish()
	return f.tell()
}

// Times and bounds of a look for expired flows while the table is full.
const (
	hurryEvery = 100 * time.Millisecond
	hurryLooks = 1024
)

// hurry looks for flows that were idle for too long, where there is no place for another one. It returns whether there
// were any.
func (m *Maps) hurry() bool {
	now, last := int64(m.elapsed()), m.flows.hurried.Load()
	if now-last < int64(hurryEvery) && last != 0 || !m.flows.hurried.CompareAndSwap(last, max(now, 1)) {
		return false
	}
	done, err := m.Sweep(datapath.SweepRequest{Max: hurryLooks})
	return err == nil && done.Removed > 0
}

// idle is the time since something went either way.
func (f *Flow) idle(now time.Duration) time.Duration {
	return max(now-time.Duration(max(f.traffic[0].seen.Load(), f.traffic[1].seen.Load())), 0)
}

// Pairs calls yield with a snapshot of every flow, in no order, until yield returns false.
func (m *Maps) Pairs(yield func(datapath.Pair) bool) error {
	for i := range uint32(tableShards) {
		for _, f := range m.flows.snapshot(i) {
			if p, ok := f.pair(); ok && !yield(p) {
				return nil
			}
		}
	}
	return nil
}

// pair returns the flow as a record of the connection table; false if it has ended.
func (f *Flow) pair() (datapath.Pair, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	state := datapath.FlowState(f.state.Load())
	if state == stateFree {
		return datapath.Pair{}, false
	}
	now := f.question.m.elapsed()
	p := datapath.Pair{
		Index: f.index, Protocol: f.front.Protocol, State: state, Client: f.client,
		VIP:     netip.AddrPortFrom(f.front.VIP, f.front.Port),
		Backend: netip.AddrPortFrom(f.backend.Address, f.backend.Port), BackendZone: f.backend.Zone,
		Active: state == datapath.FlowEstablished, Service: f.service, BackendID: f.backendID, BackendGen: f.backend.Gen,
		Created: max(now-f.created, 0), Idle: f.idle(now),
	}
	for i := range f.traffic {
		p.Packets[i], p.Bytes[i] = f.traffic[i].packets.Load(), f.traffic[i].bytes.Load()
	}
	return p, true
}
