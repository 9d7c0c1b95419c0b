package reconcile

import (
	"fmt"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/sched"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// planTables writes the table of one family and its seat lists, as far as they differ, to new
// regions. If there is no room, what the frontends have stays: backends that are gone are marked in
// their records, and packets walk past them.
func (r *Reconciler) planTables(c *change, family int, built *built, ids map[backendKey]uint32) {
	if _, ok := firstVIP(&c.want.Spec, family); !ok {
		c.tables[family] = tables{}
		return
	}
	r.stats.Tables.Count++
	r.stats.Tables.Total += built.took
	c.svc.moved += uint64(built.moved)
	if built.err != nil {
		c.fail(built.err)
		c.unplaced[family] = true
		return
	}
	if len(built.slots) == 0 {
		c.tables[family] = tables{}
		return
	}
	before := &c.svc.tables[family]
	next := tables{shape: built.shape, members: make([]held, len(c.want.Spec.Ports))}
	var err error
	next.slots, err = r.place(c.svc, before.slots, built.slots)
	for i := range next.members {
		if err != nil {
			break
		}
		list := seatList(c.want, built.seats, i, ids)
		next.members[i], err = r.placeMembers(c.svc, before, &next, i, list)
	}
	if err != nil {
		c.fail(fmt.Errorf("place table: %w", err))
		c.unplaced[family] = true
		return
	}
	c.tables[family] = next
}

// membersOf returns the backends of a family as members, and the backend behind each key.
func membersOf(want *state.Service, family int) ([]sched.Member, map[string]int) {
	members := make([]sched.Member, 0, len(want.Backends))
	index := make(map[string]int, len(want.Backends))
	for i := range want.Backends {
		b := &want.Backends[i]
		if familyOf(b.Address) != family {
			continue
		}
		key := b.Key()
		if _, twice := index[key]; twice {
			continue
		}
		index[key] = i
		members = append(members, sched.Member{Key: key, Weight: uint32(b.Weight), Excluded: !b.Serves()})
	}
	return members, index
}

// seatList returns the backend ids by seat for one port of the service.
func seatList(want *state.Service, seats []int, port int, ids map[backendKey]uint32) []uint32 {
	list := make([]uint32, len(seats))
	p := want.Spec.Ports[port]
	for seat, i := range seats {
		if i < 0 {
			continue
		}
		b := &want.Backends[i]
		list[seat] = ids[backendKey{address: b.Address, port: targetOf(want, p, b), protocol: p.Protocol, zone: b.Zone}]
		if !b.Placed() {
			list[seat] = 0
		}
	}
	return list
}

func targetOf(want *state.Service, p lb.Port, b *state.Backend) uint16 {
	return want.Spec.TargetPort(p, b.Backend)
}

// placeMembers places the seat list of port i, or shares the region of an earlier port with the same.
func (r *Reconciler) placeMembers(svc *service, before, next *tables, i int, list []uint32) (held, error) {
	hash := hashValues(list)
	for _, m := range next.members[:i] {
		if m.hash == hash && int(m.region.Len) == len(list) {
			return m, nil
		}
	}
	for _, m := range before.members {
		if m.hash == hash && int(m.region.Len) == len(list) {
			return m, nil
		}
	}
	return r.place(svc, held{}, list)
}

// place returns a region that holds values: the one of before, or a new one.
func (r *Reconciler) place(svc *service, before held, values []uint32) (held, error) {
	hash := hashValues(values)
	if int(before.region.Len) == len(values) && before.hash == hash {
		return before, nil
	}
	region, err := r.arena.Alloc(uint32(len(values)))
	if err != nil {
		return held{}, err
	}
	svc.regions = append(svc.regions, region)
	if err := r.maps.WriteRegion(region, values); err != nil {
		return held{}, err
	}
	return held{region, hash}, nil
}

// hashValues stands for the content of a region, so that the content need not be kept.
func hashValues(values []uint32) uint64 {
	h := uint64(len(values)) ^ 0x9E3779B97F4A7C15
	for _, v := range values {
		h = (h ^ uint64(v)) * 0xFF51AFD7ED558CCD
		h ^= h >> 32
	}
	return h
}

// release frees the regions of a service that no frontend in the maps and no table of it names.
func (r *Reconciler) release(svc *service) {
	named := make(map[datapath.Region]bool, 8)
	for _, key := range svc.keys {
		f := r.frontends[key]
		named[f.Table], named[f.Members] = true, true
	}
	kept := svc.regions[:0]
	for _, region := range svc.regions {
		if named[region] || svc.tables[0].holds(region) || svc.tables[1].holds(region) {
			kept = append(kept, region)
			continue
		}
		r.arena.Free(region)
	}
	svc.regions = kept
}
