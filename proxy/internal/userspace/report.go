package userspace

import (
	"sync/atomic"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Failure is how a backend failed a flow.
type Failure uint8

// The failures.
const (
	Refused    Failure = iota // it, or who is on the way, said no
	Unanswered                // it said nothing for as long as one waits
)

// maxRefusals is how many backends may fail a flow and it still gets another one.
const maxRefusals = 2

// Steps of measuring the first response.
const (
	unmeasured = iota
	asks       // its first request comes next
	asked      // and then the first response
)

// Connected says that the backend accepted the connection. It is nothing new for UDP. If the backend was taken away
// meanwhile, gone is called before it returns.
func (f *Flow) Connected() {
	f.connected()()
}

func (f *Flow) connected() func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if datapath.FlowState(f.state.Load()) != datapath.FlowOpening {
		return func() {}
	}
	if f.orphaned() {
		f.moveTo(datapath.FlowClosing)
		f.question.m.drop(datapath.DropBackendGone)
		return f.tell()
	}
	if s := f.lockStat(); s != nil {
		s.answered.Add(1)
		s.refused.Store(0)
		if f.timed {
			f.learn(&s.syn, f.began)
			f.measured.Store(asks)
		}
		s.mu.Unlock()
	}
	f.timed = false
	f.moveTo(datapath.FlowEstablished)
	return func() {}
}

// learn takes in what passed since then; the lock of the backend's counters is held.
func (f *Flow) learn(into *atomic.Uint64, since time.Duration) {
	now := f.question.m.elapsed()
	into.Store(pack(unpack(into.Load()).Learn(uint64(max(now-since, 0)), ticks(now))))
}

// Failed says that the backend failed the flow. While a TCP flow is opening, the backend is passed over for some seconds
// and the flow gets another one, two times at most: it returns true, and Backend says which. Else the
// flow is not active any more, and is to be ended. A refusal of a UDP flow is counted; the flow stays.
func (f *Flow) Failed(x Failure) (again bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.question.m
	now := m.elapsed()
	opening := datapath.FlowState(f.state.Load()) == datapath.FlowOpening
	if f.state.Load() == stateFree {
		return false
	}
	f.blame(x, opening, now)
	if !opening {
		return false
	}
	f.question.tick = ticks(now)
	if f.refusals >= maxRefusals || !f.another() {
		f.moveTo(datapath.FlowClosing)
		return false
	}
	f.refusals++
	m.drop(datapath.DropSecondChance)
	f.moveTo(stateFree)
	f.fold()
	if err := f.choose(f.backendID); err != nil {
		m.drop(reasons[err])
		m.flows.remove(f)
		return false
	}
	f.start(now)
	return true
}

// blame counts a failure of the flow's backend. f.mu is held.
func (f *Flow) blame(x Failure, opening bool, now time.Duration) {
	s := f.lockStat()
	if s == nil {
		return
	}
	defer s.mu.Unlock()
	if x == Refused && (opening || f.front.Protocol == lb.UDP) {
		s.rejected++
	}
	if !opening {
		return
	}
	s.refused.Store(ticks(now))
	if x == Unanswered && f.timed { // it took so long at least
		f.learn(&s.syn, f.began)
	}
}

// Sent accounts what the client sent to the backend.
func (f *Flow) Sent(packets, bytes uint64) {
	now := f.question.m.elapsed()
	f.traffic[0].add(packets, bytes, now)
	switch f.measured.Load() {
	case asks:
		f.watch.Store(int64(now))
		f.measured.CompareAndSwap(asks, asked)
	case asked:
		if f.front.Protocol == lb.UDP { // which of its datagrams will be answered nobody knows
			f.measured.Store(unmeasured)
		}
	}
}

// Answered accounts what the backend sent to the client.
func (f *Flow) Answered(packets, bytes uint64) {
	f.traffic[1].add(packets, bytes, f.question.m.elapsed())
	step := f.measured.Load()
	if step == unmeasured || !f.measured.CompareAndSwap(step, unmeasured) || step != asked {
		return // nothing is learnt where the backend speaks first
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.lockStat(); s != nil {
		f.learn(&s.first, time.Duration(f.watch.Load()))
		s.mu.Unlock()
	}
}

// Closing says that both sides have sent their last, or one a reset: the flow is not active any more.
func (f *Flow) Closing() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.measured.Store(unmeasured)
	if isLoad(datapath.FlowState(f.state.Load())) {
		f.moveTo(datapath.FlowClosing)
	}
}

// End takes the flow off all counts. Further calls do nothing.
func (f *Flow) End() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.finish()
}

// Idle returns the idle time that ends the flow in its present state: the service's own or the node's.
func (f *Flow) Idle() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.timeout()
}

// timeout is Idle. f.mu is held.
func (f *Flow) timeout() time.Duration {
	s := f.question.m.ServiceAt(f.service)
	if s == nil {
		s = f.question.m.ServiceAt(0)
	}
	t := &s.Timeouts
	switch state := datapath.FlowState(f.state.Load()); {
	case f.front.Protocol == lb.UDP && f.traffic[1].packets.Load() > 0:
		return t.UDPStream
	case f.front.Protocol == lb.UDP:
		return t.UDP
	case state == datapath.FlowOpening:
		return t.TCPSyn
	case state == datapath.FlowClosing:
		return t.TCPFin
	}
	return t.TCPEstablished
}
