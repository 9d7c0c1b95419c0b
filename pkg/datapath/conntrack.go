package datapath

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"github.com/tc-loadbalancer/tclb/bpf"
)

// now returns the present tick as programs read it.
func (d *Datapath) now() (uint32, error) {
	ctx, err := d.runSweep(bpf.MapsSweep{})
	return ctx.Now, err
}

// runSweep runs ct_sweep once, over at most sweepStep pairs.
func (d *Datapath) runSweep(ctx bpf.MapsSweep) (bpf.MapsSweep, error) {
	if _, err := d.progs[ctSweep].Run(&ebpf.RunOptions{Context: &ctx, ContextOut: &ctx}); err != nil {
		return ctx, fmt.Errorf("run %s: %w", ctSweep, err)
	}
	return ctx, nil
}

// highWater returns how many pairs have been used at least once.
func (d *Datapath) highWater() (uint32, error) {
	var rooms bpf.MapsCtRooms
	err := d.maps[bpf.MapsMapCtShared].Lookup(uint32(0), &rooms)
	return min(rooms.HighWater, d.maps[bpf.MapsMapCtPairs].MaxEntries()), mapError("read", bpf.MapsMapCtShared, err)
}

// Pairs calls yield with a snapshot of every flow, in no order, until yield returns false. Each
// pair is consistent in itself; the whole is not frozen.
func (d *Datapath) Pairs(yield func(Pair) bool) error {
	present, err := d.now()
	if err != nil {
		return err
	}
	end, err := d.highWater()
	if err != nil {
		return err
	}
	return each(d, bpf.MapsMapCtPairs, 0, end, func(i uint32, v *bpf.MapsCtPair) bool {
		life := atomic.LoadUint32(&v.Life)
		if life&1 == 0 || v.State == 0 {
			return true
		}
		snapshot := *v
		if atomic.LoadUint32(&v.Life) != life || snapshot.State == 0 {
			return true
		}
		return yield(pairFrom(i, &snapshot, present))
	})
}

// Rooms returns the occupation of the connection table.
func (d *Datapath) Rooms() (map[Room]RoomStat, error) {
	var r bpf.MapsCtRooms
	if err := d.maps[bpf.MapsMapCtShared].Lookup(uint32(0), &r); err != nil {
		return nil, mapError("read", bpf.MapsMapCtShared, err)
	}
	stat := func(s bpf.MapsCtState, capacity uint32) RoomStat {
		return RoomStat{
			Live: uint64(max(r.Live[s], 0)), Created: r.Created[s], Evicted: r.Evicted[s], Expired: r.Expired[s],
			Capacity: uint64(capacity),
		}
	}
	return map[Room]RoomStat{
		RoomOpening:     stat(bpf.MapsCtStateCT_OPENING, d.maps[bpf.MapsMapCtOpening].MaxEntries()),
		RoomEstablished: stat(bpf.MapsCtStateCT_ESTABLISHED, d.Sizes().MaxConntrack),
		RoomClosing:     stat(bpf.MapsCtStateCT_CLOSING, d.maps[bpf.MapsMapCtClosing].MaxEntries()),
	}, nil
}

// SweepRequest says what Sweep looks at and ends.
type SweepRequest struct {
	Flush   bool   // end pairs however young they are
	Service uint32 // with Flush: only this service's; 0 = all
	Max     uint32 // pairs to look at; 0 = all
}

// SweepResult says what a Sweep did.
type SweepResult struct {
	Looked  uint32
	Removed uint32
}

// sweepCursor is where the next bounded sweep goes on.
type sweepCursor struct {
	mu   sync.Mutex
	next uint32
}

// sweepStep bounds one run of the program, so that the kernel can schedule between runs.
const sweepStep = 16384

// Sweep runs ct_sweep in the kernel over Max pairs, from where the last bounded call ended.
func (d *Datapath) Sweep(r SweepRequest) (SweepResult, error) {
	d.sweep.mu.Lock()
	defer d.sweep.mu.Unlock()
	end, err := d.highWater()
	if err != nil || end == 0 {
		return SweepResult{}, err
	}
	todo := r.Max
	if todo == 0 || todo >= end {
		todo, d.sweep.next = end, 0
	}
	var done SweepResult
	for done.Looked < todo {
		if d.sweep.next >= end {
			d.sweep.next = 0
		}
		step := min(todo-done.Looked, sweepStep, end-d.sweep.next)
		ctx := bpf.MapsSweep{From: d.sweep.next, Count: step, Service: r.Service}
		if r.Flush {
			ctx.Flush = 1
		}
		ctx, err := d.runSweep(ctx)
		if err != nil {
			return done, err
		}
		d.sweep.next += step
		done.Looked += step
		done.Removed += ctx.Removed
	}
	return done, nil
}
