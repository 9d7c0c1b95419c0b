package userspace

import (
	"sync/atomic"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// rooms counts flows by state. There is no ring: a flow that does not fit does not begin, unless whoever carries flows has one give way.
type rooms struct {
	capacity [states]uint64
	used     atomic.Int64 // opening and established
	live     [states]atomic.Int64
	created  [states]atomic.Uint64
	expired  [states]atomic.Uint64
	evicted  [states]atomic.Uint64
}

const states = 4 // of datapath.FlowState, 0 being none

// The small rooms, as the kernel's maps have them.
const (
	openingShare = 4
	minOpening   = 64
)

// limit sets how many flows there may be.
func (r *rooms) limit(size uint32) {
	r.capacity[datapath.FlowOpening] = uint64(min(max(size/openingShare, minOpening), size))
	r.capacity[datapath.FlowEstablished] = uint64(size)
	r.capacity[datapath.FlowClosing] = uint64(size)
}

// enter lets a new flow in, uncounted as yet; false if there is no place.
func (r *rooms) enter(s datapath.FlowState) bool {
	if r.used.Add(1) > int64(r.capacity[datapath.FlowEstablished]) {
		r.used.Add(-1)
		return false
	}
	if r.live[s].Add(1) > int64(r.capacity[s]) {
		r.live[s].Add(-1)
		r.used.Add(-1)
		return false
	}
	return true
}

// move counts a change of a flow that is in.
func (r *rooms) move(from, to datapath.FlowState) {
	r.live[from].Add(-1)
	if isLoad(from) && !isLoad(to) {
		r.used.Add(-1)
	}
	if to != stateFree {
		r.live[to].Add(1)
		r.created[to].Add(1)
	}
}

// Rooms returns the occupation of the table. Opening and established flows share what established ones have.
func (m *Maps) Rooms() (map[datapath.Room]datapath.RoomStat, error) {
	stat := func(s datapath.FlowState) datapath.RoomStat {
		return datapath.RoomStat{
			Live: uint64(max(m.rooms.live[s].Load(), 0)), Created: m.rooms.created[s].Load(),
			Expired: m.rooms.expired[s].Load(), Evicted: m.rooms.evicted[s].Load(), Capacity: m.rooms.capacity[s],
		}
	}
	return map[datapath.Room]datapath.RoomStat{
		datapath.RoomOpening:     stat(datapath.FlowOpening),
		datapath.RoomEstablished: stat(datapath.FlowEstablished),
		datapath.RoomClosing:     stat(datapath.FlowClosing),
	}, nil
}
