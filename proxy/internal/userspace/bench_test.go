package userspace

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// benchWorld is a world with the real clock.
func benchWorld(b *testing.B, p plan) *world {
	w := newWorld(b, p)
	w.m.now = time.Now
	w.m.start = time.Now()
	return w
}

// BenchmarkBegin is a flow's choice and its end, on one processor.
func BenchmarkBegin(b *testing.B) {
	for _, s := range schedulers {
		b.Run(s.String(), func(b *testing.B) {
			w := benchWorld(b, plan{scheduler: s, factor: 1.25, backends: 20})
			for i := 0; b.Loop(); i++ {
				f, err := w.m.Begin(tcpFront, clientAt(i), nil)
				if err != nil {
					b.Fatal(err)
				}
				f.End()
			}
		})
	}
	b.Run("affinity", func(b *testing.B) {
		w := benchWorld(b, plan{backends: 20, affinity: time.Hour})
		for i := 0; b.Loop(); i++ {
			addr := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
			f, err := w.m.Begin(tcpFront, netip.AddrPortFrom(addr, 40000), nil)
			if err != nil {
				b.Fatal(err)
			}
			f.End()
		}
	})
}

// BenchmarkLives is a connection's whole life, on all processors, with many others there.
func BenchmarkLives(b *testing.B) {
	w := benchWorld(b, plan{scheduler: lb.Maglev, backends: 20})
	for i := range 10000 {
		w.begin(udpFront, i)
	}
	var port atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			f, err := w.m.Begin(tcpFront, clientAt(int(port.Add(1))), nil)
			if err != nil {
				b.Error(err)
				return
			}
			f.Connected()
			f.Sent(1, 100)
			f.Answered(1, 100)
			f.Closing()
			f.End()
		}
	})
}

// BenchmarkTraffic is what each read of a connection's bytes costs, from both sides at once.
func BenchmarkTraffic(b *testing.B) {
	w := benchWorld(b, plan{backends: 1})
	f := w.begin(tcpFront, 40000)
	f.Connected()
	var side atomic.Int32
	b.RunParallel(func(pb *testing.PB) {
		report := f.Sent
		if side.Add(1)%2 == 0 {
			report = f.Answered
		}
		for pb.Next() {
			report(1, 1000)
		}
	})
}

// BenchmarkRetire is a backend's removal and return among many flows that are not its own: the longest that
// the reconciler holds anything up.
func BenchmarkRetire(b *testing.B) {
	w := benchWorld(b, plan{backends: 20})
	for i := range 50000 {
		w.begin(udpFront, i)
	}
	for b.Loop() {
		w.change(3, func(b *datapath.Backend) { b.Live = false })
		w.change(3, func(b *datapath.Backend) { b.Live = true })
	}
}
