package reconcile

import (
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/tc-loadbalancer/tclb/pkg/sched"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// Shared is how nodes agree on base tables: of each, one node leads the history, and the others follow.
// Files tells tables of a service apart that its definitions on different nodes would make different;
// it is empty for definitions that all nodes share. Its methods are safe for concurrent use.
type Shared interface {
	// Follow returns the base that the nodes share, not to be changed, or nil if this node goes on from
	// its own, which it may not have. follow says that another node leads.
	Follow(service, family, files string, have bool) (base *sched.Base, follow bool)
	// Lead offers a base, in its stored form, that no other node leads.
	Lead(service, family, files string, data []byte)
	// Drop says that the service is gone from this node.
	Drop(service string)
}

// alone is a node that shares nothing.
type alone struct{}

// Follow says that there is nobody to follow.
func (alone) Follow(_, _, _ string, _ bool) (*sched.Base, bool) { return nil, false }

// Lead tells nobody.
func (alone) Lead(_, _, _ string, _ []byte) {}

// Drop tells nobody.
func (alone) Drop(string) {}

// Refresh plans services again, since what they share with other nodes changed.
func (r *Reconciler) Refresh(services []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range services {
		if svc := r.services[name]; svc != nil {
			svc.dirty = true
		}
	}
	if r.snapshot != nil {
		r.pass()
	}
}

// updateBase brings the base of a family up to a new member list, and says how many slots moved.
//
// Who follows takes the leader's base as it is. A backend that is not in it yet is seated as the leader
// is going to do it; one that is in it and not here keeps its seat and gets nothing. So a node that learns
// of a change sooner or later than others differs from them in nothing but this change.
func (b *builder) updateBase(c *change, family int, members []sched.Member) (base *sched.Base, moved int, err error) {
	name, files := baseName(c.svc.name, family), filesOf(c.want, family)
	base, stored, found, err := b.bases.load(name)
	if err != nil {
		b.log.Error("the table is built anew and flows may move", "service", c.svc.name, "err", err)
	}
	shared, follow := b.shared.Follow(c.svc.name, familyNames[family], files, found)
	goesOn := found
	if shared != nil {
		goesOn = found && continues(base, shared)
		base = shared.Clone()
	}
	if follow {
		members = withUnseen(base, members)
	}
	if !goesOn && c.svc.tables[family].slots.region.Len > 0 {
		c.baseMade = true
	}
	if moved, err = base.Update(members); err != nil {
		return nil, 0, err
	}
	data, err := b.bases.save(name, base, stored)
	if err != nil {
		return nil, 0, err
	}
	if !follow && len(base.Seats) > 0 {
		b.shared.Lead(c.svc.name, familyNames[family], files, data)
	}
	return base, moved, nil
}

// continues says whether seats mean the same in both bases, as far as both have them.
func continues(a, b *sched.Base) bool {
	n := min(len(a.Seats), len(b.Seats))
	return slices.EqualFunc(a.Seats[:n], b.Seats[:n], func(x, y sched.Seat) bool { return x.Seed == y.Seed })
}

// withUnseen adds the members of a base that are not in the list.
func withUnseen(base *sched.Base, members []sched.Member) []sched.Member {
	seen := make(map[string]bool, len(members))
	for _, m := range members {
		seen[m.Key] = true
	}
	out := slices.Clone(members)
	for i := range base.Seats {
		s := &base.Seats[i]
		if s.Gone || seen[s.Key] {
			continue
		}
		m := sched.Member{Key: s.Key, Weight: s.Weight, Excluded: true}
		if s.Idle {
			m.Weight = 0
		}
		out = append(out, m)
	}
	return out
}

// filesOf stands for what this node's files alone say about who is in a table.
func filesOf(want *state.Service, family int) string {
	if want.File == state.FileEtcd {
		return ""
	}
	var lines []string
	for _, b := range want.Spec.Backends {
		if familyOf(b.Address) == family {
			lines = append(lines, fmt.Sprintf("%s/%s %d", b.Node, b.Address, b.Weight))
		}
	}
	slices.Sort(lines)
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%q %t %q", lines, want.Spec.Members, want.Spec.Networks)
	return hex.EncodeToString(h.Sum(nil))
}
