package reconcile

import (
	"fmt"
	"math/rand/v2"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// groupKey is what a group id stands for inside a service: the backends that one table spreads over.
type groupKey struct {
	family   int
	port     uint16 // the service's target port; a backend may have one of its own
	protocol lb.Protocol

	turns lb.Frontend // whose turns alone it is for; zero: it has the load of the backends as well
}

func groupOf(family int, p lb.Port) groupKey {
	return groupKey{family: family, port: p.TargetPort, protocol: p.Protocol}
}

// turnTakers says by which groups the frontends of a service take turns. With one cursor for all that lead
// to the same backends, a client that goes to and fro between two of them would meet half of the
// backends at each. So where it is turns that a group is for, and not its load, only the first frontend
// has the backends' group, and each other one a group of its own.
type turnTakers struct {
	scheduler lb.Scheduler
	first     map[groupKey]bool
}

// next returns the group of a frontend. They must be asked for in the order of VIPs, then ports.
func (t *turnTakers) next(front lb.Frontend, p lb.Port) groupKey {
	key := groupOf(familyOf(front.VIP), p)
	if t.scheduler != lb.RoundRobin && t.scheduler != lb.LeastConn {
		return key
	}
	if t.first == nil {
		t.first = make(map[groupKey]bool)
	}
	if t.first[key] {
		key.turns = front
		return key
	}
	t.first[key] = true
	return key
}

// planTurns returns the id of a frontend's group; 0 if there are no backends. Where there is no id left it
// is the backends' group, by which turns are taken as well.
func (r *Reconciler) planTurns(c *change, key groupKey) uint32 {
	backends := key
	backends.turns = lb.Frontend{}
	shared := c.groups[backends]
	if key == backends || shared == 0 {
		return shared
	}
	id, err := r.numberGroup(c, key)
	if err != nil {
		return shared
	}
	return id
}

// planGroup returns the id of the group of backends. Without one its flows are not counted together, so
// that bounded-load has no bound and turns are not taken.
func (r *Reconciler) planGroup(c *change, key groupKey) uint32 {
	id, err := r.numberGroup(c, key)
	if err != nil {
		c.fail(fmt.Errorf("number group of port %d: %w", key.port, err))
		c.groups[key] = 0
	}
	return id
}

// numberGroup returns the id of a group, making it if it is new.
func (r *Reconciler) numberGroup(c *change, key groupKey) (uint32, error) {
	if id, done := c.groups[key]; done {
		return id, nil
	}
	id, old := c.svc.groups[key]
	if !old {
		var err error
		if id, err = r.groupIDs.get(r.now()); err != nil {
			return 0, err
		}
		// Nodes, and services, must not all begin with the same backend.
		r.maps.ResetGroup(id, rand.Uint64())
	}
	c.groups[key] = id
	return id, nil
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

// claimGroups makes the groups that a service's frontends have in the maps its own.
func (r *Reconciler) claimGroups(svc *service, spec *lb.Service) {
	takers := turnTakers{scheduler: spec.Scheduler}
	for _, vip := range spec.VIPs {
		for _, p := range spec.Ports {
			front := lb.Frontend{VIP: vip, Port: p.Port, Protocol: p.Protocol}
			key := takers.next(front, p)
			if f, ok := r.frontends[front]; ok && f.Kind == datapath.KindService && f.Service == svc.id {
				r.claimGroup(svc, key, f.Group)
			}
		}
	}
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
