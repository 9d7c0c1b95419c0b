package datapath

import (
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
	"github.com/tc-loadbalancer/tclb/pkg/sched"
)

// A packet that meets a backend just gone must go where the table of the next moment sends its flow,
// or a repeated SYN changes its backend and a mid-flow packet meets a stranger.
func TestAPacketTakesTheStepOfTheNextTable(t *testing.T) {
	for family := range families {
		w := newWorld(t, 5)
		members := make([]sched.Member, len(w.containers))
		for i, c := range w.containers {
			members[i] = sched.Member{Key: c.addr[0].String(), Weight: 100}
		}
		base, err := sched.New(members)
		w.check(err)
		before, err := base.Table(nil)
		w.check(err)
		gone := w.containers[2]
		members[2].Excluded = true
		after, err := base.Table(base.Excluded(members))
		w.check(err)
		w.change(gone, func(b *datapath.Backend) { b.New = false })

		moved := 0
		for port := uint16(41000); port < 41500; port++ {
			f := w.flow(vips[family], family, lb.TCP, port)
			f.out(packet.SYN, 1, 0)
			slot := sched.Slot(sched.TupleHash(f.client, f.vip, lb.TCP), base.Size)
			if base.Seats[before[slot]].Key == gone.addr[0].String() {
				moved++
			}
			if want := base.Seats[after[slot]].Key; want != f.backend.addr[0].String() {
				t.Fatalf("%s, port %d: slot %d is lent to %s, the packet went to %s", families[family], port, slot, want, f.backend.addr[0])
			}
		}
		if moved < 50 {
			t.Errorf("only %d of 500 flows met the backend that is gone", moved)
		}
	}
}
