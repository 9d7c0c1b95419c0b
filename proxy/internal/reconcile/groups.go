package reconcile

import (
	"fmt"
	"math/rand/v2"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// groupKey is what a group id stands for inside a service: the backends that one table spreads over.
type groupKey struct {
	family   int
	port     uint16 // the service's target port; a backend may have one of its own
	protocol lb.Protocol
}

func groupOf(family int, p lb.Port) groupKey {
	return groupKey{family: family, port: p.TargetPort, protocol: p.Protocol}
}

// planGroup returns the id of a group, making it if it is new. Without one its flows are not counted
// together, so that bounded-load has no bound and turns are not taken.
func (r *Reconciler) planGroup(c *change, key groupKey) uint32 {
	if id, done := c.groups[key]; done {
		return id
	}
	id, old := c.svc.groups[key]
	if !old {
		var err error
		if id, err = r.groupIDs.get(r.now()); err != nil {
			c.fail(fmt.Errorf("number group of port %d: %w", key.port, err))
		} else {
			// Nodes, and services, must not all begin with the same backend.
			r.maps.ResetGroup(id, rand.Uint64())
		}
	}
	c.groups[key] = id
	return id
}

// regroup takes over what a change planned, and gives back what is not used any more.
func (r *Reconciler) regroup(svc *service, next map[groupKey]uint32) {
	for key, id := range svc.groups {
		if _, kept := next[key]; !kept && id != 0 {
			r.groupIDs.put(id, r.now())
		}
	}
	svc.groups = next
}

// ungroup gives back what a change that failed has numbered.
func (r *Reconciler) ungroup(c *change) {
	for key, id := range c.groups {
		if _, old := c.svc.groups[key]; !old && id != 0 {
			r.groupIDs.put(id, r.now())
		}
	}
}

// recoverGroups marks the ids in the maps as used; services claim theirs by their frontends.
func (r *Reconciler) recoverGroups() {
	var last uint32
	take := func(id uint32) {
		last = max(last, id)
		if r.groupIDs.take(id) {
			r.found.groups[id] = true
		}
	}
	for _, f := range r.frontends {
		take(f.Group)
	}
	for i := range r.backends {
		if inUse(&r.backends[i]) {
			take(r.backends[i].Group)
		}
	}
	r.groupIDs.skip(last, r.now())
}

// claimGroup makes a group that the maps hold a service's own, if nobody else's.
func (r *Reconciler) claimGroup(svc *service, key groupKey, id uint32) {
	if !r.found.groups[id] {
		return
	}
	delete(r.found.groups, id)
	if svc.groups == nil {
		svc.groups = make(map[groupKey]uint32)
	}
	if _, has := svc.groups[key]; has {
		r.groupIDs.put(id, r.now())
		return
	}
	svc.groups[key] = id
}
