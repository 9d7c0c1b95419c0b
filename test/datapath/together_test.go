package datapath

import (
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// TestOneFlowOnTwoCPUsIsOnePair sends each flow's first packet on two CPUs at the same moment: one makes
// the pair and the other takes it. (A table that is looked up and then inserted into keeps both.)
func TestOneFlowOnTwoCPUsIsOnePair(t *testing.T) {
	for family := range families {
		w := newWorld(t, 3)
		w.openPorts(family, lb.UDP)
		flows := w.d.Sizes().MaxConntrack
		var at [2]atomic.Uint32
		w.parallel(2, func(worker int) {
			f := w.newFlood(w.client.addr[family], lb.UDP)
			for i := range flows {
				at[worker].Store(i + 1)
				for spins := 0; at[1-worker].Load() <= i && !t.Failed(); spins++ {
					if spins > 100_000 {
						runtime.Gosched()
					}
				}
				f.send(i, 1)
			}
			at[worker].Store(flows + 1)
		})
		if n := len(w.pairs()); n != int(flows) {
			t.Errorf("%s: %d pairs for %d flows", families[family], n, flows)
		}
		if n := w.active(); n != uint64(flows) {
			t.Errorf("%s: %d active", families[family], n)
		}
		w.assertWhole()
		w.assertEmptyAfterFlush()
	}
}
