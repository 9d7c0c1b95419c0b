// Package userspace is the datapath of a proxy that carries connections by itself: what the reconciler
// writes to, and what flows are counted in, in memory instead of pinned maps.
//
// Maps has the methods of datapath.Datapath that reconciler, API, metrics, outlier judge and sweep use, with
// the same records. Who carries bytes asks Begin for a flow's backend and reports to the Flow how it fares;
// it knows no services. Who is chosen is decided by sched.Rule, over tables that the reconciler built:
// nothing of that is written here.
//
// What is counted of a backend, and of its group, changes under that backend's lock together with its
// record. So a new generation begins at zero with no flow of the one before left in it, and a recount,
// which walks the flows, never differs.
package userspace

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/datapath/memory"
	"github.com/tc-loadbalancer/tclb/pkg/sched"
)

// Maps are the tables, the flows and what is counted of them. Create them with New. They are safe for
// concurrent use.
type Maps struct {
	*memory.Maps

	now   func() time.Time
	start time.Time

	stats  []stat
	groups []group
	flows  table
	rooms  rooms
	bound  affinities
	drops  [dropReasons]atomic.Uint64

	settings atomic.Pointer[datapath.Settings]
}

// dropReasons is more than there are reasons.
const dropReasons = 64

// stat is what is counted for a backend id. What choosing reads is atomic; everything is written under mu,
// which also guards the id's record.
type stat struct {
	mu       sync.Mutex
	group    uint32 // that load counts in; guarded by mu
	active   atomic.Uint32
	load     atomic.Uint32
	answered atomic.Uint32
	refused  atomic.Uint32 // tick of the last refusal; 0: none since an answer
	syn      atomic.Uint64 // packed sched.Latency
	first    atomic.Uint64
	total    uint64 // guarded by mu, as all below
	packets  uint64
	bytes    uint64
	syns     uint32
	rejected uint32
}

// group is what the backends of one table have in common.
type group struct {
	cursor atomic.Uint64
	load   atomic.Int64
}

// New returns empty maps of the given sizes. now tells the time; nothing is measured by another clock.
func New(sizes datapath.Sizes, now func() time.Time) *Maps {
	tables := memory.New(sizes)
	sizes = tables.Sizes()
	m := &Maps{
		Maps: tables, now: now, start: now(),
		stats:  make([]stat, sizes.MaxBackends+1),
		groups: make([]group, sizes.MaxGroups()+1),
	}
	m.rooms.limit(sizes.MaxConntrack)
	m.bound.seed = maphash.MakeSeed()
	m.settings.Store(&datapath.Settings{})
	_ = m.PutService(0, datapath.Service{Timeouts: datapath.DefaultTimeouts}) // id 0 is always there
	return m
}

// elapsed is the time since the maps were made.
func (m *Maps) elapsed() time.Duration { return m.now().Sub(m.start) }

// ticks is a time as latencies and refusals have it; never 0, which stands for never.
func ticks(elapsed time.Duration) uint32 {
	return max(uint32(elapsed/(time.Second/sched.LatencyTicks)), 1)
}

// PutBackend is PutBackends of one.
func (m *Maps) PutBackend(id uint32, b datapath.Backend) error {
	return m.PutBackends([]uint32{id}, []datapath.Backend{b})
}

// PutBackends replaces the records at ids. With a new generation the id's counters begin anew, and its load is
// taken off its group; with another group the load moves there. Flows whose backend is not live any more,
// or of another generation, end.
func (m *Maps) PutBackends(ids []uint32, backends []datapath.Backend) error {
	for _, id := range ids {
		if err := m.CheckBackend(id); err != nil {
			return err
		}
	}
	gone := false
	for i, id := range ids {
		ended, err := m.putBackend(id, backends[i])
		if err != nil {
			return err
		}
		gone = gone || ended
	}
	if gone {
		m.endOrphans()
	}
	return nil
}

// putBackend returns whether flows of the record before have to end.
func (m *Maps) putBackend(id uint32, b datapath.Backend) (ended bool, err error) {
	s := &m.stats[id]
	s.mu.Lock()
	defer s.mu.Unlock()
	before := m.BackendAt(id)
	if err := m.Maps.PutBackend(id, b); err != nil {
		return false, err
	}
	anew := before == nil || before.Gen != b.Gen
	if anew {
		m.groupOf(s.group).load.Add(-int64(s.load.Load()))
		s.reset()
	} else if s.group != b.Group {
		load := int64(s.load.Load())
		m.groupOf(s.group).load.Add(-load)
		m.groupOf(b.Group).load.Add(load)
	}
	s.group = b.Group
	return before != nil && before.Live && (anew || !b.Live), nil
}

// reset clears the counters. s.mu is held.
func (s *stat) reset() {
	s.active.Store(0)
	s.load.Store(0)
	s.answered.Store(0)
	s.refused.Store(0)
	s.syn.Store(0)
	s.first.Store(0)
	s.total, s.packets, s.bytes, s.syns, s.rejected = 0, 0, 0, 0, 0
}

// groupOf returns what is counted for a group; of ids that do not exist, as of 0, which is no group.
func (m *Maps) groupOf(id uint32) *group {
	if int(id) >= len(m.groups) {
		id = 0
	}
	return &m.groups[id]
}

// ResetBackendStat has nothing left to do: PutBackends begins a generation's counters anew in one step
// with its record.
func (m *Maps) ResetBackendStat(_, _ uint32) {}

// MoveLoad has nothing left to do: PutBackends moves the load in one step with the record.
func (m *Maps) MoveLoad(_, _, _ uint32) {}

// ResetGroup begins a group that no backend is in, with a cursor of the caller's choice.
func (m *Maps) ResetGroup(id uint32, cursor uint64) { m.groupOf(id).cursor.Store(cursor) }

// Group returns what is counted for a group.
func (m *Maps) Group(id uint32) datapath.Group {
	g := m.groupOf(id)
	return datapath.Group{Cursor: g.cursor.Load(), Load: g.load.Load()}
}

// BackendStat returns what is counted for a backend id.
func (m *Maps) BackendStat(id uint32) datapath.BackendStat {
	if int(id) >= len(m.stats) {
		return datapath.BackendStat{}
	}
	s := &m.stats[id]
	s.mu.Lock()
	defer s.mu.Unlock()
	return datapath.BackendStat{
		Active: uint64(s.active.Load()), Load: uint64(s.load.Load()),
		Total: s.total, Packets: s.packets, Bytes: s.bytes,
		SYNs: s.syns, Answered: s.answered.Load(), Rejected: s.rejected,
		SYNLatency:   time.Duration(unpack(s.syn.Load()).NS),
		FirstLatency: time.Duration(unpack(s.first.Load()).NS),
	}
}

// RetireEndpoint marks the backends gone that are behind an interface, at one of addrs or, without any, at
// all addresses. It returns how many.
func (m *Maps) RetireEndpoint(ifindex uint32, addrs []netip.Addr) (int, error) {
	ids, records := m.Behind(ifindex, addrs)
	for i := range records {
		records[i].Live, records[i].New, records[i].Local = false, false, false
	}
	return len(ids), m.PutBackends(ids, records)
}

// Endpoints returns none: no program asks who is attached here.
func (m *Maps) Endpoints() (map[datapath.EndpointKey]datapath.Endpoint, error) {
	return map[datapath.EndpointKey]datapath.Endpoint{}, nil
}

// DeleteEndpoint is no error: there are none.
func (m *Maps) DeleteEndpoint(datapath.EndpointKey) error { return nil }

// Settings returns what PutSettings wrote.
func (m *Maps) Settings() (datapath.Settings, error) { return *m.settings.Load(), nil }

// PutSettings keeps settings. They are about packets, and nothing here follows them.
func (m *Maps) PutSettings(s datapath.Settings) error {
	m.settings.Store(&s)
	return nil
}

// Quiesce returns at once: who chooses looks afterwards whether its frontend's record is still the one
// that named the table, so a region that is freed may be given out again at once.
func (m *Maps) Quiesce() error { return nil }

// Drops returns how often flows were refused, by reason.
func (m *Maps) Drops() (map[datapath.DropReason]uint64, error) {
	out := make(map[datapath.DropReason]uint64)
	for _, r := range datapath.DropReasons() {
		if int(r) >= len(m.drops) {
			return nil, fmt.Errorf("count refusals: no place for reason %s", r)
		}
		out[r] = m.drops[r].Load()
	}
	return out, nil
}

func (m *Maps) drop(r datapath.DropReason) { m.drops[r].Add(1) }

// pack puts a latency into one word, so that it is read and written whole.
func pack(l sched.Latency) uint64 { return uint64(l.NS)<<32 | uint64(l.Tick) }

func unpack(word uint64) sched.Latency {
	return sched.Latency{NS: uint32(word >> 32), Tick: uint32(word)}
}
