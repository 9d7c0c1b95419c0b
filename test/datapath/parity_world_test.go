package datapath

import (
	"math/rand/v2"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/sched"
)

// records lets the rules in Go choose from the maps that the programs read. They change nothing: a turn that is
// taken and a client that is bound are the program's, which runs next.
type records struct {
	w       *world
	f       datapath.Frontend
	client  netip.Addr
	rng     *rand.Rand
	slots   []uint32
	members []uint32
	backend []datapath.Backend
	stat    []bpf.MapsBackendStat
	now     uint32 // in the kernel's ticks
	second  uint32
	load    int64 // of the group
	turns   uint64
}

// records reads all that a choice depends on.
func (w *world) records(client netip.Addr, rng *rand.Rand) *records {
	w.t.Helper()
	r := &records{w: w, client: client, rng: rng}
	all, err := w.d.Frontends()
	w.check(err)
	r.f = all[scheduledKey()]
	table, err := w.d.ReadRegion(r.f.Table)
	w.check(err)
	r.slots = r.f.Unpack(table)
	r.members, err = w.d.ReadRegion(r.f.Members)
	w.check(err)
	stats := w.openMap(bpf.MapsMapBackendStats)
	r.backend, r.stat = make([]datapath.Backend, len(r.members)), make([]bpf.MapsBackendStat, len(r.members))
	for seat, id := range r.members {
		if r.backend[seat], err = w.d.Backend(id); err == nil {
			err = stats.Lookup(id, &r.stat[seat])
		}
		w.check(err)
	}
	r.now, r.second = w.clock()
	r.load = w.d.Group(scheduledGroup).Load
	return r
}

// without takes a flow off a backend, as the program does before it looks for another one.
func (r *records) without(id uint32) {
	for seat, of := range r.members {
		if of == id {
			r.stat[seat].Load--
			r.load--
		}
	}
}

// clock returns the programs' clock, and how many of its ticks are a second.
func (w *world) clock() (now, second uint32) {
	w.t.Helper()
	var settings bpf.MapsNodeSettings
	w.check(w.openMap(bpf.MapsMapSettings).Lookup(uint32(0), &settings))
	var ctx bpf.MapsSweep
	_, err := w.d.Program(bpf.CtSweepProgCtSweep).Run(&ebpf.RunOptions{Context: &ctx, ContextOut: &ctx})
	w.check(err)
	return ctx.Now, settings.Second
}

// at turns a tick of the kernel's into one of sched's, both counted up to now.
func (r *records) at(tick uint32) uint32 {
	return r.rule().Tick - uint32(uint64(r.now-tick)*sched.LatencyTicks/uint64(r.second))
}

func (r *records) rule() *sched.Rule {
	service, err := r.w.d.Service(serviceID)
	r.w.check(err)
	return &sched.Rule{
		Scheduler: r.f.Scheduler, Affinity: r.f.Affinity, Listed: r.f.Listed, Slots: r.f.TableSlots(), Head: r.f.Head, Weight: r.f.Weight,
		Factor: uint32(service.LoadFactor * sched.LoadFactorUnit), Tick: 1 << 30,
	}
}

// Seat returns who owns a slot.
func (r *records) Seat(slot uint32) uint32 { return r.slots[slot] }

// Look returns who sits in a seat.
func (r *records) Look(seat uint32) (sched.Candidate, bool) {
	if seat >= uint32(len(r.members)) || r.members[seat] == 0 {
		return sched.Candidate{}, false
	}
	b, s := &r.backend[seat], &r.stat[seat]
	if !b.Live || !b.New {
		return sched.Candidate{}, false
	}
	refused := uint32(0)
	if s.Refused != 0 {
		refused = r.at(s.Refused)
	}
	return sched.Candidate{
		Seat: seat, ID: r.members[seat], Load: s.Load, Weight: b.Weight, Proven: s.Answered != 0,
		Spared: sched.Spared(refused, r.rule().Tick, b.Trial, s.Load, s.Active),
	}, true
}

// Latencies returns how fast a backend answers.
func (r *records) Latencies(id uint32) (syn, first sched.Latency) {
	for seat, of := range r.members {
		if of == id {
			s := &r.stat[seat]
			return sched.Latency{NS: s.Syn.Ns, Tick: r.at(s.Syn.Tick)}, sched.Latency{NS: s.First.Ns, Tick: r.at(s.First.Tick)}
		}
	}
	return syn, first
}

// Turn takes a turn of its own.
func (r *records) Turn() uint64 {
	r.turns++
	return r.w.d.Group(scheduledGroup).Cursor + r.turns - 1
}

// Random draws a number.
func (r *records) Random() uint32 { return r.rng.Uint32() }

// GroupLoad returns the load of all backends.
func (r *records) GroupLoad() (int64, bool) { return r.load, true }

// Bound returns the seat that the client is bound to.
func (r *records) Bound() (uint32, bool) {
	key := bpf.MapsAffinityKey{Client: r.client.As16(), Service: serviceID}
	var bound bpf.MapsAffinity
	if r.w.openMap(bpf.MapsMapAffinities).Lookup(&key, &bound) != nil {
		return 0, false
	}
	service, err := r.w.d.Service(serviceID)
	r.w.check(err)
	return bound.Seat, bound.BaseGen == service.BaseGen
}

// Bind is what the program will do.
func (r *records) Bind(uint32) {}

// pick returns whom the rule in Go gives a flow to.
func (r *records) pick(client, vip netip.AddrPort, avoid uint32) (sched.Candidate, bool) {
	hash := sched.TupleHash(client, vip, lb.TCP)
	if r.f.Affinity {
		hash = sched.ClientHash(client.Addr())
	}
	return r.rule().Pick(r, hash, avoid)
}
