package reconcile

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/sched"
)

// built is the table of one family of a service, before it has a place.
type built struct {
	seats []int    // by seat the backend there, an index of want.Backends, or -1
	slots []uint32 // the scheduler's table, packed; empty if nobody serves
	shape shape
	moved int
	took  time.Duration
	err   error
}

// builder builds tables. Each goroutine has one.
type builder struct {
	bases   *baseStore
	shared  Shared
	log     *slog.Logger
	slots   []uint32 // room to build a table in
	serving []uint32 // and a list of who is in it
}

// buildAll builds the tables of changes, on all processors: at start there are thousands, and no table
// depends on another.
func (r *Reconciler) buildAll(changes []*change) {
	var next atomic.Int64
	work := func(b *builder) {
		for i := next.Add(1) - 1; i < int64(len(changes)); i = next.Add(1) - 1 {
			c := changes[i]
			for family := range c.built {
				if _, ok := firstVIP(&c.want.Spec, family); ok {
					c.built[family] = b.build(c, family)
				}
			}
		}
	}
	for len(r.builders) < runtime.GOMAXPROCS(0) {
		r.builders = append(r.builders, &builder{bases: r.bases, shared: r.shared, log: r.log})
	}
	var others sync.WaitGroup
	for _, b := range r.builders[1:min(len(r.builders), max(len(changes), 1))] {
		others.Go(func() { work(b) })
	}
	work(r.builders[0])
	others.Wait()
}

// build brings the base of a family up to date and makes a table of it. It writes to the store of bases,
// offers what this node leads, and changes nothing else.
func (b *builder) build(c *change, family int) (out built) {
	started := time.Now()
	defer func() { out.took = time.Since(started) }()
	members, index := membersOf(c.want, family)
	base, moved, err := b.updateBase(c, family, members)
	if out.moved, out.err = moved, err; err != nil {
		return out
	}
	out.shape, err = b.fill(c.want.Spec.Scheduler, base, base.Excluded(members))
	if errors.Is(err, sched.ErrEmpty) {
		resort := resorts(c.want.Backends)[family]
		for i, m := range members {
			members[i].Excluded = !resort.Takes(&c.want.Backends[index[m.Key]])
		}
		out.shape, err = b.fill(c.want.Spec.Scheduler, base, base.Excluded(members))
	}
	if errors.Is(err, sched.ErrEmpty) {
		out.shape = shape{}
		return out
	}
	if err != nil {
		out.err = fmt.Errorf("build table: %w", err)
		return out
	}
	out.shape.slots = uint32(len(b.slots))
	out.slots, out.shape.narrow = datapath.Pack(b.slots, len(base.Seats))
	out.seats = seatsOf(base, index)
	return out
}

// seatsOf returns the backend in each seat, or -1.
func seatsOf(base *sched.Base, index map[string]int) []int {
	seats := make([]int, len(base.Seats))
	for i := range base.Seats {
		seats[i] = -1
		if b, ok := index[base.Seats[i].Key]; ok && !base.Seats[i].Gone {
			seats[i] = b
		}
	}
	return seats
}

// fill builds the table of a scheduler in b.slots: who serves is who is not excluded, by seat.
func (b *builder) fill(scheduler lb.Scheduler, base *sched.Base, excluded []bool) (out shape, err error) {
	if b.serving, err = base.AppendServing(b.serving[:0], excluded); err != nil {
		return out, err
	}
	for _, seat := range b.serving {
		out.weight += max(base.Seats[seat].Weight, 1)
	}
	switch {
	case scheduler == lb.RoundRobin:
		out.listed = true
		b.slots, err = base.AppendSequence(b.slots[:0], excluded)
	case scheduler == lb.LeastConn && len(b.serving) <= sched.MaxExact:
		out.listed, out.head = true, uint32(len(b.serving))
		b.slots, err = base.AppendSequence(append(b.slots[:0], b.serving...), excluded)
	default:
		b.slots, err = base.AppendTable(b.slots[:0], excluded)
	}
	return out, err
}
