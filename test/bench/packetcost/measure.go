package main

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

const (
	redirect  = 7 // TC_ACT_REDIRECT: delivered
	manyFlows = 1 << 14
	hitRuns   = 1 << 20
	newFlows  = 100_000 // a sample
	// unlucky is one flow of how many may find both buckets of a half full, where the table is full.
	unlucky   = 100_000
	flowSpace = clients << 14
)

// load is one line of the table.
type load struct {
	name      string
	flows     uint32 // established: how many flows take turns
	handshake bool
	perRun    float64   // packets that count as one: a handshake is three
	samples   []float64 // ns, the packet maker's own cost taken off
}

func (n *node) measure(w io.Writer, rounds, churn int) error {
	fresh := []*load{
		{name: "established flow, the same one each time", flows: 1, perRun: 1},
		{name: "established flow, 16384 in turn, fresh table", flows: manyFlows, perRun: 1},
	}
	churned := []*load{
		{name: "established flow, 16384 in turn, after churn", flows: manyFlows, perRun: 1},
		{name: "new flow: SYN, SYN-ACK, ACK, full table", handshake: true, perRun: 3},
	}
	next := uint32(manyFlows) // flows below are the established ones
	for r := range rounds {
		if err := n.sample(fresh, &next, r == 0); err != nil {
			return err
		}
	}
	if _, err := n.shake(next, churn); err != nil {
		return fmt.Errorf("churn: %w", err)
	}
	next += uint32(churn)
	for r := range rounds {
		if err := n.sample(churned, &next, r == 0); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, "\n## Time in from_container, ns (%d rounds; %d services)\n\n| packet | median | least |\n|---|---|---|\n", rounds, otherServices+1)
	for _, l := range slices.Concat(fresh, churned) {
		fmt.Fprintf(w, "| %s | %.0f | %.0f |\n", l.name, l.median(), l.least())
	}
	return n.measureSchedulers(w, rounds, &next)
}

func (l *load) median() float64 { return slices.Sorted(slices.Values(l.samples))[len(l.samples)/2] }

func (l *load) least() float64 { return slices.Min(l.samples) }

// sample measures each load once, and the packet maker just before it.
func (n *node) sample(loads []*load, next *uint32, first bool) error {
	for _, l := range loads {
		var own, all float64
		var err error
		if l.handshake {
			if own, err = n.bare(func() (float64, error) { return n.run(*next, 0, true, newFlows*3) }); err != nil {
				return err
			}
			if all, err = n.shake(*next, newFlows); err != nil {
				return err
			}
			*next = manyFlows + (*next-manyFlows+newFlows)%(flowSpace-2*manyFlows-newFlows)
		} else {
			if own, err = n.bare(func() (float64, error) { return n.run(0, l.flows-1, false, hitRuns) }); err != nil {
				return err
			}
			if first { // later they are there already
				if _, err = n.shake(0, int(l.flows)); err != nil {
					return err
				}
			}
			// Once untimed: the caches know what a busy node's know.
			if _, err = n.run(0, l.flows-1, false, 4*l.flows); err != nil {
				return err
			}
			if all, err = n.run(0, l.flows-1, false, hitRuns); err != nil {
				return err
			}
		}
		l.samples = append(l.samples, (all-own)*l.perRun)
	}
	return nil
}

// bare measures with an empty program in the place of the one under test.
func (n *node) bare(run func() (float64, error)) (float64, error) {
	if err := n.attach(false); err != nil {
		return 0, err
	}
	ns, err := run()
	return ns, errors.Join(err, n.attach(true))
}

var errFewer = errors.New("not every handshake made a flow")

// shake completes handshakes from flow `first` on, and checks that each made a flow (but for the unlucky).
func (n *node) shake(first uint32, flows int) (float64, error) {
	before, err := n.maps.Rooms()
	if err != nil {
		return 0, err
	}
	ns, err := n.run(first, 0, true, uint32(flows)*3)
	if err != nil {
		return 0, err
	}
	after, err := n.maps.Rooms()
	if err != nil {
		return 0, err
	}
	if made := after[datapath.RoomEstablished].Created - before[datapath.RoomEstablished].Created; made+uint64(flows/unlucky) < uint64(flows) {
		return ns, fmt.Errorf("%w: %d of %d", errFewer, made, flows)
	}
	return ns, nil
}

// run gives `packets` packets to the program and returns what one took with the packet maker's work.
func (n *node) run(first, mask uint32, handshake bool, packets uint32) (float64, error) {
	shake := uint32(0)
	if handshake {
		shake = 1
	}
	dropped, _, err := n.dropped()
	if err != nil {
		return 0, err
	}
	err = errors.Join(n.loader.Cursor.Set(uint32(0)), n.loader.FlowBase.Set(first), n.loader.FlowMask.Set(mask), n.loader.Handshake.Set(shake))
	if err != nil {
		return 0, err
	}
	verdict, took, err := n.loader.NextPacket.Benchmark(frame(), int(packets), nil)
	if err != nil {
		return 0, fmt.Errorf("run: %w", err)
	}
	now, reasons, err := n.dropped()
	if err != nil {
		return 0, err
	}
	if verdict != redirect || now-dropped > uint64(packets)/unlucky {
		return 0, fmt.Errorf("verdict %d, %d packets dropped (ever:%s): nothing was measured", int32(verdict), now-dropped, reasons)
	}
	return float64(took.Nanoseconds()), nil
}

// dropped returns how many packets were refused up to now, and for what.
func (n *node) dropped() (sum uint64, reasons string, err error) {
	drops, err := n.maps.Drops()
	for reason, count := range drops {
		if count > 0 {
			sum += count
			reasons += fmt.Sprintf(" %v %d", reason, count)
		}
	}
	return sum, reasons, err
}
