package userspace

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// latencyShare is how many flows there are for one that is measured, unless the scheduler asks for all.
const latencyShare = 8

// Flow is a client's connection, or its datagrams from one port, on its way to a backend. Its methods are
// safe for concurrent use.
type Flow struct {
	question question
	front    lb.Frontend
	client   netip.AddrPort
	gone     func()
	index    uint32 // in the table of flows
	created  time.Duration

	mu        sync.Mutex // guards all until traffic
	backend   *datapath.Backend
	backendID uint32
	service   uint32
	refusals  int
	told      bool // gone was called
	began     time.Duration
	timed     bool // the answer to its SYN is waited for, with a watch

	state    atomic.Uint32 // datapath.FlowState; written under mu
	measured atomic.Uint32 // step of the first response's measurement
	watch    atomic.Int64  // when its first request came
	traffic  [2]traffic    // by datapath's directions
}

// traffic is what went in one direction. Each has a cache line of its own: both are written all the time,
// by two goroutines.
type traffic struct {
	packets atomic.Uint64
	bytes   atomic.Uint64
	seen    atomic.Int64 // since the maps were made
	_       [40]byte
}

func (t *traffic) add(packets, bytes uint64, now time.Duration) {
	t.packets.Add(packets)
	t.bytes.Add(bytes)
	t.seen.Store(int64(now))
}

// Begin chooses the backend of a new flow and counts it. The error is one of ErrNoFrontend, ErrNotAllowed,
// ErrNoBackend and ErrFull. A flow that begins has to be ended with End.
//
// gone is called at most once, by any goroutine and maybe before Begin returns, when the flow has to end: because
// its backend was removed, it was idle for too long, or it was flushed. It must not block. While a TCP flow is
// opening, the removal of its backend is no reason yet: Failed then finds another one, and only if
// the backend answers nevertheless is gone called, by Connected.
//
// The table is full when as many flows are opening or established as Sizes.MaxConntrack says, or a quarter of that
// is opening. Who is idle for too long makes room then; nobody else, for these are sockets with data in them, unless
// whoever carries the flows ends one (GiveWay).
func (m *Maps) Begin(front lb.Frontend, client netip.AddrPort, gone func()) (*Flow, error) {
	client = netip.AddrPortFrom(client.Addr().Unmap().WithZone(""), client.Port())
	f, err := m.begin(front, client, gone)
	if errors.Is(err, ErrFull) && m.hurry() {
		f, err = m.begin(front, client, gone)
	}
	if err != nil {
		m.drop(reasons[err])
		return nil, err
	}
	return f, nil
}

func (m *Maps) begin(front lb.Frontend, client netip.AddrPort, gone func()) (*Flow, error) {
	f := &Flow{front: front, client: client, gone: gone, created: m.elapsed()}
	f.question = question{m: m, client: client.Addr(), tick: ticks(f.created)}
	for i := range f.traffic {
		f.traffic[i].seen.Store(int64(f.created))
	}
	// It stands in the table before it is counted for a backend, so that who takes the backend away finds it.
	f.mu.Lock()
	defer f.mu.Unlock()
	m.flows.add(f)
	if err := f.choose(0); err != nil {
		m.flows.remove(f)
		return nil, err
	}
	f.start(f.created)
	return f, nil
}

// start begins the watch of a flow that is to be measured. f.mu is held.
func (f *Flow) start(now time.Duration) {
	f.began = now
	measured := f.question.front.Scheduler == lb.Latency || rand.Uint32()%latencyShare == 0
	f.timed = measured && f.front.Protocol == lb.TCP
	if measured && f.front.Protocol == lb.UDP {
		f.measured.Store(asks)
	}
}

// firstState is what a flow of a protocol begins in.
func firstState(p lb.Protocol) datapath.FlowState {
	if p == lb.TCP {
		return datapath.FlowOpening
	}
	return datapath.FlowEstablished
}

// sit counts the flow for the backend id; false if that is not live any more. f.mu is held.
func (f *Flow) sit(id uint32) bool {
	m := f.question.m
	s := &m.stats[id]
	s.mu.Lock()
	defer s.mu.Unlock()
	b := m.BackendAt(id)
	if b == nil || !b.Live {
		return false
	}
	f.backend, f.backendID, f.service = b, id, b.Service
	s.total++
	if f.front.Protocol == lb.TCP {
		s.syns++
	} else {
		s.active.Add(1)
	}
	s.load.Add(1)
	m.groupOf(s.group).load.Add(1)
	return true
}

// lockStat returns what is counted for the flow's backend, locked, or nil if its id was given to another one: what
// is counted for an id is counted for its present generation. f.mu is held.
func (f *Flow) lockStat() *stat {
	m := f.question.m
	s := &m.stats[f.backendID]
	s.mu.Lock()
	if b := m.BackendAt(f.backendID); b == nil || b.Gen != f.backend.Gen {
		s.mu.Unlock()
		return nil
	}
	return s
}

// orphaned says whether the flow's backend is gone. f.mu is held.
func (f *Flow) orphaned() bool {
	b := f.question.m.BackendAt(f.backendID)
	return b == nil || b.Gen != f.backend.Gen || !b.Live
}

func isLoad(s datapath.FlowState) bool {
	return s == datapath.FlowOpening || s == datapath.FlowEstablished
}

// moveTo changes the flow's state and counts that. f.mu is held.
func (f *Flow) moveTo(to datapath.FlowState) {
	m := f.question.m
	from := datapath.FlowState(f.state.Load())
	if from == to {
		return
	}
	f.state.Store(uint32(to))
	m.rooms.move(from, to)
	s := f.lockStat()
	if s == nil {
		return
	}
	defer s.mu.Unlock()
	if isLoad(from) && !isLoad(to) {
		s.load.Add(^uint32(0))
		m.groupOf(s.group).load.Add(-1)
	}
	switch datapath.FlowEstablished {
	case from:
		s.active.Add(^uint32(0))
	case to:
		s.active.Add(1)
	}
}

// finish takes the flow off all counts and out of the table; false if it was already. f.mu is held.
func (f *Flow) finish() bool {
	if f.state.Load() == stateFree {
		return false
	}
	f.moveTo(stateFree)
	f.fold()
	f.question.m.flows.remove(f)
	return true
}

// stateFree is that of a flow that has ended.
const stateFree = 0

// fold leaves what the flow carried in its backend's counters. f.mu is held.
func (f *Flow) fold() {
	s := f.lockStat()
	if s == nil {
		return
	}
	defer s.mu.Unlock()
	for i := range f.traffic {
		s.packets += f.traffic[i].packets.Swap(0)
		s.bytes += f.traffic[i].bytes.Swap(0)
	}
}

// tell returns what is to be called, without f.mu, of a flow that has to end; once. f.mu is held.
func (f *Flow) tell() func() {
	if f.told || f.gone == nil {
		return func() {}
	}
	f.told = true
	return f.gone
}

// GiveWay counts that the flow is about to be ended to make room for another one.
func (f *Flow) GiveWay() {
	f.question.m.rooms.evicted[f.state.Load()&(states-1)].Add(1)
}

// Backend returns where to connect; after Failed returned true it is another one.
func (f *Flow) Backend() netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	return netip.AddrPortFrom(f.backend.Address, f.backend.Port)
}
