package userspace

import (
	"errors"
	"math"
	"math/rand/v2"
	"net/netip"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/sched"
)

// Why a flow does not begin. Each is counted as the drop reason of the same meaning.
var (
	ErrNoFrontend = errors.New("no service listens there")
	ErrNoBackend  = errors.New("no backend to send to")
	ErrNotAllowed = errors.New("source is not allowed")
	ErrFull       = errors.New("connection table is full")
)

// reasons are the drop reasons by error.
var reasons = map[error]datapath.DropReason{
	ErrNoFrontend: datapath.DropNoFrontend, ErrNoBackend: datapath.DropNoBackend,
	ErrNotAllowed: datapath.DropNotAllowed, ErrFull: datapath.DropFull,
}

// chooseTries is how many records may change under a new flow before it gives up.
const chooseTries = 8

// question is what one choice reads: a frontend's record and the client. It implements sched.Records.
type question struct {
	m      *Maps
	front  *datapath.Frontend
	client netip.Addr
	tick   uint32
}

// rule returns how the frontend's table is indexed.
func (q *question) rule() sched.Rule {
	f := q.front
	r := sched.Rule{
		Scheduler: f.Scheduler, Affinity: f.Affinity, Listed: f.Listed, Slots: f.TableSlots(), Head: f.Head,
		Weight: f.Weight, Tick: q.tick,
	}
	if f.Scheduler == lb.BoundedLoad {
		if s := q.m.ServiceAt(f.Service); s != nil {
			r.Factor = uint32(math.Round(s.LoadFactor * sched.LoadFactorUnit))
		}
	}
	return r
}

// hash returns what the client's place in the table is made from.
func (q *question) hash(front lb.Frontend, client netip.AddrPort) uint32 {
	if q.front.Affinity {
		return sched.ClientHash(client.Addr())
	}
	return sched.TupleHash(client, netip.AddrPortFrom(front.VIP, front.Port), front.Protocol)
}

// Seat returns who owns a slot.
func (q *question) Seat(slot uint32) uint32 {
	return q.front.Seat(slot, q.m.At(q.front.Position(slot)))
}

// Look returns who sits in a seat.
func (q *question) Look(seat uint32) (sched.Candidate, bool) {
	if seat >= q.front.Members.Len {
		return sched.Candidate{}, false
	}
	id := q.m.At(q.front.Members.Offset + seat)
	b := q.m.BackendAt(id)
	if id == 0 || b == nil || !b.Live || !b.New {
		return sched.Candidate{}, false
	}
	s := &q.m.stats[id]
	load := s.load.Load()
	return sched.Candidate{
		Seat: seat, ID: id, Weight: b.Weight, Load: load, Proven: s.answered.Load() != 0,
		Spared: sched.Spared(s.refused.Load(), q.tick, b.Trial, load, s.active.Load()),
	}, true
}

// Latencies returns how fast a backend answers.
func (q *question) Latencies(id uint32) (syn, first sched.Latency) {
	s := &q.m.stats[id]
	return unpack(s.syn.Load()), unpack(s.first.Load())
}

// Turn takes the group's next turn.
func (q *question) Turn() uint64 { return q.m.groupOf(q.front.Group).cursor.Add(1) - 1 }

// Random draws a number.
func (q *question) Random() uint32 { return rand.Uint32() }

// GroupLoad returns the load of the frontend's group.
func (q *question) GroupLoad() (int64, bool) {
	return q.m.groupOf(q.front.Group).load.Load(), q.front.Group != 0
}

// Bound returns the seat that the client is bound to.
func (q *question) Bound() (uint32, bool) {
	s := q.m.ServiceAt(q.front.Service)
	if s == nil {
		return 0, false
	}
	return q.m.bound.find(affinityKey{q.client, q.front.Service}, s, q.m.elapsed())
}

// Bind binds the client to a seat.
func (q *question) Bind(seat uint32) {
	if s := q.m.ServiceAt(q.front.Service); s != nil {
		q.m.bound.bind(affinityKey{q.client, q.front.Service}, affinity{seat: seat, baseGen: s.BaseGen, seen: q.m.elapsed()})
	}
}

// choose gives the flow a backend that is not the one to avoid, and counts it there. f.mu is held. A frontend that
// was replaced meanwhile may have named a table that is another one's by now: then all is read again.
func (f *Flow) choose(avoid uint32) error {
	q := &f.question
	for range chooseTries {
		q.front = q.m.Frontend(f.front)
		if q.front == nil || q.front.Kind != datapath.KindService {
			return ErrNoFrontend
		}
		if q.front.Allow && !q.m.Admits(q.front.Service, q.client) {
			return ErrNotAllowed
		}
		rule := q.rule()
		c, ok := rule.Pick(q, q.hash(f.front, f.client), avoid)
		if q.m.Frontend(f.front) != q.front {
			continue
		}
		if !ok {
			return ErrNoBackend
		}
		if taken, err := f.take(c.ID); taken || err != nil {
			return err
		}
	}
	return ErrNoBackend
}

// take lets the flow into the table's room and counts it for a backend; false if that was taken away since it
// was chosen. f.mu is held.
func (f *Flow) take(id uint32) (bool, error) {
	state := firstState(f.front.Protocol)
	if !f.question.m.rooms.enter(state) {
		return false, ErrFull
	}
	if !f.sit(id) {
		f.question.m.rooms.move(state, stateFree)
		return false, nil
	}
	f.question.m.rooms.created[state].Add(1)
	f.state.Store(uint32(state))
	return true, nil
}

// another says whether somebody who refuses nobody could take the flow.
func (f *Flow) another() bool {
	q := &f.question
	q.front = q.m.Frontend(f.front)
	if q.front == nil || q.front.Kind != datapath.KindService {
		return false
	}
	rule := q.rule()
	return rule.Another(q, f.backendID)
}
