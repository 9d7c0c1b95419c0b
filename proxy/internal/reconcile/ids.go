package reconcile

import (
	"fmt"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// idPool gives out array positions from 1 on.
//
// Ids that were never used come first and then those that rest longest, so that a flow which still
// names an old id has most time to notice that its generation moved on.
type idPool struct {
	max  uint32 // ids are below it
	next uint32 // ids from here on were never used
	used map[uint32]bool
	free []freed // by time
}

type freed struct {
	id uint32
	at time.Time
}

func newIDPool(size uint32) *idPool {
	return &idPool{max: size, next: 1, used: make(map[uint32]bool)}
}

// take marks an id as used; false if it is already.
func (p *idPool) take(id uint32) bool {
	if id == 0 || id >= p.max || p.used[id] {
		return false
	}
	p.used[id] = true
	return true
}

// skip makes the pool count ids below and including id as used before, at the given time.
func (p *idPool) skip(id uint32, at time.Time) {
	for ; p.next <= id && p.next < p.max; p.next++ {
		if !p.used[p.next] {
			p.free = append(p.free, freed{p.next, at})
		}
	}
}

// get returns an id that rested for the grace time, or datapath.ErrFull.
func (p *idPool) get(now time.Time) (uint32, error) {
	for ; p.next < p.max; p.next++ {
		if p.take(p.next) {
			p.next++
			return p.next - 1, nil
		}
	}
	if len(p.free) > 0 && now.Sub(p.free[0].at) >= Grace {
		id := p.free[0].id
		p.free = p.free[1:]
		p.used[id] = true
		return id, nil
	}
	return 0, fmt.Errorf("all %d ids are in use: %w", p.max-1, datapath.ErrFull)
}

// put gives an id back.
func (p *idPool) put(id uint32, now time.Time) {
	if p.used[id] {
		delete(p.used, id)
		p.free = append(p.free, freed{id, now})
	}
}
