package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/sched"
)

// Where the measured service's tables are: those of two sizes fit, the larger one written last.
const (
	seatsOffset = 1024
	tableOffset = 4096
	manySeats   = 1000
	group       = 1
)

func backendAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{203, 0, byte(113 + (10+i)>>8), byte(10 + i)})
}

// spread writes backends and the table of a scheduler, the way the proxy does, and returns the record
// of a frontend for them.
func (n *node) spread(scheduler lb.Scheduler, count int) (datapath.Frontend, error) {
	members := make([]sched.Member, count)
	seats, records := make([]uint32, count), make([]datapath.Backend, count)
	for i := range members {
		address := backendAddress(i)
		members[i] = sched.Member{Key: fmt.Sprintf("%06d", i), Weight: 100}
		seats[i] = uint32(i + 1)
		records[i] = datapath.Backend{
			Address: address, Port: 8080, Protocol: lb.TCP, Gen: 1, Service: serviceID, Ifindex: loopback, Group: group,
			MAC: [6]byte{2, 0, 0, 0, byte(1 + i>>8), byte(i)}, Live: true, New: true, Local: true, Weight: 100,
		}
	}
	f := datapath.Frontend{Service: serviceID, Scheduler: scheduler, Group: group, Weight: uint32(100 * count)}
	table, err := tableOf(&f, scheduler, members)
	if err != nil {
		return f, err
	}
	f.Slots = uint32(len(table))
	table, f.Narrow = datapath.Pack(table, count)
	f.Table = datapath.Region{Offset: tableOffset, Len: uint32(len(table))}
	f.Members = datapath.Region{Offset: seatsOffset, Len: uint32(count)}
	return f, errors.Join(n.maps.PutBackends(seats, records), n.maps.WriteRegion(f.Table, table), n.maps.WriteRegion(f.Members, seats))
}

func tableOf(f *datapath.Frontend, scheduler lb.Scheduler, members []sched.Member) ([]uint32, error) {
	base, err := sched.New(members)
	if err != nil {
		return nil, err
	}
	switch {
	case scheduler == lb.RoundRobin:
		f.Listed = true
		return base.AppendSequence(nil, nil)
	case scheduler == lb.LeastConn && len(members) <= sched.MaxExact:
		f.Listed, f.Head = true, uint32(len(members))
		head, err := base.AppendServing(nil, nil)
		if err != nil {
			return nil, err
		}
		return base.AppendSequence(head, nil)
	}
	return base.Table(nil)
}

// choice is a way to choose, and what a new flow costs with it.
type choice struct {
	scheduler lb.Scheduler
	affinity  bool
	count     int
	cost      load
}

func (c *choice) String() string {
	if c.affinity {
		return c.scheduler.String() + ", client-ip"
	}
	return c.scheduler.String()
}

// measureSchedulers prints what a new flow costs with each scheduler. Rounds are interleaved, so that what
// disturbs the machine disturbs all.
func (n *node) measureSchedulers(w io.Writer, rounds int, next *uint32) error {
	var all []*choice
	for _, count := range []int{backends, sched.MaxExact, manySeats} {
		for s := lb.Maglev; s <= lb.Latency; s++ {
			all = append(all, &choice{scheduler: s, count: count})
		}
		all = append(all, &choice{scheduler: lb.Maglev, affinity: true, count: count})
	}
	for range rounds {
		for _, c := range all {
			f, err := n.spread(c.scheduler, c.count)
			if err != nil {
				return err
			}
			f.Affinity = c.affinity
			if err := n.maps.PutFrontends(map[lb.Frontend]datapath.Frontend{measured: f}); err != nil {
				return err
			}
			c.cost.handshake, c.cost.perRun = true, 3
			if err := n.sample([]*load{&c.cost}, next, false); err != nil {
				return fmt.Errorf("%s over %d: %w", c, c.count, err)
			}
		}
	}
	fmt.Fprintf(w, "\n## A new flow (SYN, SYN-ACK, ACK) by scheduler, ns (%d rounds, full table)\n\n| scheduler | backends | median | least | against maglev |\n|---|---|---|---|---|\n", rounds)
	for _, c := range all {
		fmt.Fprintf(w, "| %s | %d | %.0f | %.0f | %+.0f |\n", c, c.count, c.cost.median(), c.cost.least(), c.cost.median()-maglevOf(all, c.count))
	}
	return nil
}

func maglevOf(all []*choice, count int) float64 {
	i := slices.IndexFunc(all, func(c *choice) bool { return c.count == count && c.scheduler == lb.Maglev && !c.affinity })
	return all[i].cost.median()
}
