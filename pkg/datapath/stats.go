package datapath

import (
	"sync/atomic"
	"time"

	"github.com/tc-loadbalancer/tclb/bpf"
)

// BackendStat returns what the datapath counted for a backend id.
func (d *Datapath) BackendStat(id uint32) BackendStat {
	v, err := record[bpf.MapsBackendStat](d, bpf.MapsMapBackendStats, id)
	if err != nil {
		return BackendStat{}
	}
	return BackendStat{
		Active: uint64(atomic.LoadUint32(&v.Active)), Load: uint64(atomic.LoadUint32(&v.Load)),
		Total: atomic.LoadUint64(&v.Total), Packets: atomic.LoadUint64(&v.Packets), Bytes: atomic.LoadUint64(&v.Bytes),
		SYNs: atomic.LoadUint32(&v.Syns), Answered: atomic.LoadUint32(&v.Answered), Rejected: atomic.LoadUint32(&v.Rejected),
		SYNLatency: time.Duration(atomic.LoadUint32(&v.Syn.Ns)), FirstLatency: time.Duration(atomic.LoadUint32(&v.First.Ns)),
	}
}

// ResetBackendStat clears the counters of an id whose record has a new generation, and takes what
// load it had off its group. Pairs of the generation before count nowhere any more.
func (d *Datapath) ResetBackendStat(id, group uint32) {
	v, err := record[bpf.MapsBackendStat](d, bpf.MapsMapBackendStats, id)
	if err != nil {
		return
	}
	d.addLoad(group, -int64(atomic.SwapUint32(&v.Load, 0)))
	*v = bpf.MapsBackendStat{}
}

// MoveLoad counts the load of a backend, which goes on, in another group from now on.
func (d *Datapath) MoveLoad(id, from, to uint32) {
	load := int64(d.BackendStat(id).Load)
	d.addLoad(from, -load)
	d.addLoad(to, load)
}

func (d *Datapath) addLoad(group uint32, load int64) {
	if v, err := record[bpf.MapsGroup](d, bpf.MapsMapGroups, group); err == nil && load != 0 {
		atomic.AddInt64(&v.Load, load)
	}
}

// Group returns what the datapath counted for a group id.
func (d *Datapath) Group(id uint32) Group {
	v, err := record[bpf.MapsGroup](d, bpf.MapsMapGroups, id)
	if err != nil {
		return Group{}
	}
	return Group{Cursor: atomic.LoadUint64(&v.Cursor), Load: atomic.LoadInt64(&v.Load)}
}

// ResetGroup begins a group that no backend is in, with a cursor of the caller's choice.
func (d *Datapath) ResetGroup(id uint32, cursor uint64) {
	if v, err := record[bpf.MapsGroup](d, bpf.MapsMapGroups, id); err == nil {
		atomic.StoreUint64(&v.Cursor, cursor)
		atomic.StoreInt64(&v.Load, 0)
	}
}
