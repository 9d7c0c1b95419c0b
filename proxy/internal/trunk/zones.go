package trunk

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

func compareVLANs(a, b lb.VLAN) int {
	return cmp.Or(cmp.Compare(a.Device, b.Device), cmp.Compare(a.ID, b.ID))
}

// zones numbers VLANs, as package nodes numbers nodes and for the same reasons.
type zones struct {
	used    map[uint16]lb.VLAN
	resting map[uint16]int // that were given back, by when
	returns int
}

func newZones() zones {
	return zones{used: make(map[uint16]lb.VLAN), resting: make(map[uint16]int)}
}

// take notes a zone that the maps hold.
func (z *zones) take(v lb.VLAN, zone uint16) { z.used[zone] = v }

// get returns a zone that nobody has, if possible one that nobody had, else the one that rests longest.
func (z *zones) get(v lb.VLAN) (uint16, error) {
	start := stableStart(v)
	var longest uint16
	for i := range uint32(datapath.MaxVLANs) {
		zone := uint16(datapath.VLANZones + (start+i)%datapath.MaxVLANs)
		if _, used := z.used[zone]; used {
			continue
		}
		since, rests := z.resting[zone]
		if !rests {
			longest = zone
			break
		}
		if longest == 0 || since < z.resting[longest] {
			longest = zone
		}
	}
	if longest == 0 {
		return 0, fmt.Errorf("make VLAN %s known: all %d zones are in use: %w", v.Name(), datapath.MaxVLANs, datapath.ErrFull)
	}
	delete(z.resting, longest)
	z.used[longest] = v
	return longest, nil
}

// giveBack lets a zone rest.
func (z *zones) giveBack(zone uint16) {
	delete(z.used, zone)
	z.returns++
	z.resting[zone] = z.returns
}

// stableStart is where the search for a VLAN's zone begins.
func stableStart(v lb.VLAN) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(v.Name()))
	return h.Sum32()
}

// Surplus says whether there is anything for Prune to forget.
func (t *Table) Surplus(wanted []Host) bool {
	keep := t.kept(wanted)
	for name := range t.links {
		if !keep.links[name] {
			return true
		}
	}
	for k := range t.hosts {
		if !keep.hosts[k] {
			return true
		}
	}
	for k := range t.sources {
		if !keep.zones[k.Zone] {
			return true
		}
	}
	return false
}

// kept is what hosts need.
type kept struct {
	links map[lb.VLAN]bool
	zones map[uint16]bool
	hosts map[datapath.NeighbourKey]bool
}

func (t *Table) kept(wanted []Host) kept {
	k := kept{make(map[lb.VLAN]bool), make(map[uint16]bool), make(map[datapath.NeighbourKey]bool)}
	for _, h := range wanted {
		name := h.VLAN.Link()
		if l := t.links[name]; l != nil {
			k.links[name], k.zones[l.zone] = true, true
			k.hosts[datapath.NeighbourKey{Zone: l.zone, Address: h.Address}] = true
		}
	}
	return k
}

// Prune forgets whatever the wanted hosts do not need. Backends that use it must have gone before.
func (t *Table) Prune(wanted []Host) error {
	keep := t.kept(wanted)
	var first error
	note := func(err error) bool {
		first = cmp.Or(first, err)
		return err == nil
	}
	maps.DeleteFunc(t.hosts, func(k datapath.NeighbourKey, _ *host) bool {
		return !keep.hosts[k] && note(t.Maps.DeleteNeighbour(k))
	})
	maps.DeleteFunc(t.sources, func(k datapath.SourceKey, _ netip.Addr) bool {
		return !keep.zones[k.Zone] && note(t.Maps.DeleteSource(k))
	})
	maps.DeleteFunc(t.links, func(name lb.VLAN, l *link) bool {
		if keep.links[name] || !note(t.Maps.DeleteVLAN(l.zone)) {
			return false
		}
		t.zones.giveBack(l.zone)
		return true
	})
	if first != nil {
		return fmt.Errorf("forget VLANs: %w", first)
	}
	return nil
}
