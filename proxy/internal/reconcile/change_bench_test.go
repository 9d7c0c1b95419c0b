package reconcile_test

import (
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
)

// BenchmarkOneChange is what a drain costs in a service of 1,000 backends: merge, table, maps in memory.
func BenchmarkOneChange(b *testing.B) {
	for _, scheduler := range []lb.Scheduler{lb.Maglev, lb.RoundRobin} {
		b.Run(scheduler.String(), func(b *testing.B) {
			n := newNode(b, datapath.Sizes{MaxServices: 64, MaxBackends: 2048})
			s := web("a", "10.96.0.1", 1000)
			s.Scheduler = scheduler
			n.apply([]lb.Service{s})
			n.ok()
			n.rec.Save()
			address := s.Backends[7].Address.String()
			b.ResetTimer()
			for i := range b.N {
				if err := n.store.SetDrain("a", address, i%2 == 0); err != nil {
					b.Fatal(err)
				}
				n.now = n.now.Add(reconcile.Grace) // for the arena
				n.rec.Apply(n.store.Snapshot())
			}
			n.ok()
		})
	}
}
