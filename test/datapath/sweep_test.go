package datapath

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// TestSweepLooksAtAShareATick sweeps as the proxy does: a tenth of the table a second.
func TestSweepLooksAtAShareATick(t *testing.T) {
	capacity := uint32(1 << 20)
	if testing.Short() {
		capacity = 1 << 14
	}
	w := newSizedWorld(t, 3, datapath.Sizes{MaxServices: 1024, MaxBackends: 256, TableSlots: 16384, MaxConntrack: capacity})
	long := datapath.DefaultTimeouts
	long.UDP = time.Hour
	w.check(w.d.PutService(serviceID, datapath.Service{Gen: 1, BaseGen: 1, Timeouts: long}))
	w.fill(capacity)
	rooms, err := w.d.Rooms()
	w.check(err)
	if r := rooms[datapath.RoomEstablished]; r.Live != uint64(capacity) || r.Evicted != 0 {
		t.Fatalf("%+v, want a full room", r)
	}
	var pairs uint64
	for _, r := range rooms {
		pairs += r.Capacity
	}
	share := uint32(pairs/10 + 1)
	if removed := w.cycle("nothing to remove", share); removed != 0 {
		t.Errorf("%d young flows were ended", removed)
	}
	long.UDP = time.Millisecond
	w.check(w.d.PutService(serviceID, datapath.Service{Gen: 1, BaseGen: 1, Timeouts: long}))
	w.nextTick()
	w.nextTick()
	w.nextTick()
	if removed := w.cycle("all to remove", share); removed != capacity {
		t.Errorf("%d of %d idle flows were ended in a cycle", removed, capacity)
	}
	rooms, err = w.d.Rooms()
	w.check(err)
	if r := rooms[datapath.RoomEstablished]; r.Live != 0 || r.Expired != uint64(capacity) || w.active() != 0 {
		t.Errorf("%+v, %d active", r, w.active())
	}
}

// fill begins n flows, from so many addresses of the client's that the ports to one backend suffice.
func (w *world) fill(n uint32) {
	w.t.Helper()
	const sources = 16
	for family := range families {
		w.openPorts(family, lb.UDP)
	}
	w.parallel(len(families), func(family int) {
		source := w.client.addr[family]
		for range sources {
			if err := w.d.PutEndpoint(datapath.EndpointKey{Address: source, Ifindex: w.client.ifindex}, datapath.Endpoint{}); err != nil {
				w.t.Error(err)
				return
			}
			w.newFlood(source, lb.UDP).send(0, n/sources/2)
			for range 32 { // past the addresses of the other containers
				source = source.Next()
			}
		}
	})
}

// cycle sweeps ten shares and returns how many pairs were removed.
func (w *world) cycle(what string, share uint32) uint32 {
	w.t.Helper()
	var removed uint32
	var longest, all time.Duration
	for range 10 {
		before := w.cpuTime()
		r, err := w.d.Sweep(datapath.SweepRequest{Max: share})
		w.check(err)
		if r.Looked > share {
			w.t.Fatalf("looked at %d pairs, asked for %d", r.Looked, share)
		}
		spent := w.cpuTime() - before
		removed += r.Removed
		longest, all = max(longest, spent), all+spent
	}
	w.t.Logf("%s: ten shares of %d pairs took %v of CPU, at most %v a share", what, share, all, longest)
	return removed
}

// cpuTime is what this thread has used.
func (w *world) cpuTime() time.Duration {
	w.t.Helper()
	var u unix.Rusage
	w.check(unix.Getrusage(unix.RUSAGE_THREAD, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// nextTick waits for the programs' clock to go on.
func (w *world) nextTick() {
	w.t.Helper()
	for now := w.tick(); w.tick() == now; {
		time.Sleep(time.Millisecond)
	}
}

// TestAFlowThatRevivesIsNotSweptAway: while the sweep goes over flows that are all idle for too long,
// each of them sends again. What was seen before the sweep's look stays; what ended begins anew, at the
// same backend.
func TestAFlowThatRevivesIsNotSweptAway(t *testing.T) {
	const flows = 4000
	w := newWorld(t, 3)
	w.openPorts(0, lb.UDP)
	client := w.newFlood(w.client.addr[0], lb.UDP)
	client.send(0, flows)
	before := pairOf(w.pairs())
	for _, p := range w.pairs() {
		w.age(p.Index, time.Hour)
	}
	w.sideBySide(client, flows)
	revived, anew := 0, 0
	for key, byProto := range pairOf(w.pairs()) {
		if byProto[lb.UDP].Packets[0] == 2 {
			revived++
		} else {
			anew++
		}
		if is, was := byProto[lb.UDP], before[key][lb.UDP]; is.BackendID != was.BackendID {
			t.Errorf("%v went to %v, before to %v", key, is.Backend, was.Backend)
		}
	}
	t.Logf("%d flows revived, %d ended before and began anew", revived, anew)
	if revived < flows/8 || anew < flows/8 {
		t.Error("the sweep and the packets did not meet")
	}
	// A packet may come between the sweep's look and its removal, which are nanoseconds apart.
	if lost := flows - revived - anew; lost > flows/100 {
		t.Errorf("%d flows were swept away behind their packets", lost)
	}
	if n := w.drops("no-pair"); n > flows/100 {
		t.Errorf("%d packets were dropped because their flow was swept away under them", n)
	}
	client.send(0, flows) // whatever happened before, this passes
	w.assertWhole()
}

// sideBySide sends a packet of each flow and sweeps each pair. Every eight flows the rule changes: the
// packet comes first, they race, the sweep comes first, they race; so each has to overtake the other again
// and again, however the machine shares its time out.
func (w *world) sideBySide(client *flood, flows int32) {
	w.t.Helper()
	var done [2]atomic.Int32
	first := [4]int{0, -1, 1, -1}
	w.parallel(2, func(worker int) {
		other := &done[1-worker]
		for i := range flows {
			lead := int32(4)
			if first[i/8%4] == 1-worker {
				lead = -1
			}
			for i > other.Load()+lead && !w.t.Failed() {
				runtime.Gosched()
			}
			var err error
			if worker == 0 {
				_, err = client.one(uint32(i))
			} else {
				_, err = w.d.Sweep(datapath.SweepRequest{Max: 1})
			}
			done[worker].Add(1)
			if err != nil {
				w.t.Error(err)
			}
		}
	})
}
