package datapath

import (
	"net/netip"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

var schedulers = []lb.Scheduler{lb.Maglev, lb.Random, lb.RoundRobin, lb.LeastConn, lb.BoundedLoad, lb.Latency}

// visit begins a flow from an address, closes it, and returns where it went.
func (w *world) visit(from netip.Addr, port uint16) int {
	w.t.Helper()
	f := w.flow(vips[0], 0, lb.TCP, port)
	f.client = netip.AddrPortFrom(from, port)
	f.establish()
	f.close()
	return w.indexOf(f.backend)
}

func TestAffinityBindsAClient(t *testing.T) {
	for _, s := range schedulers {
		t.Run(s.String(), func(t *testing.T) {
			w := scheduledWorld(t, 8, schedule{scheduler: s, factor: 1.25, affinity: time.Hour})
			seen := make(map[int]bool)
			for n := range byte(12) {
				from := w.source(100 + n)
				home := w.visit(from, 40000)
				seen[home] = true
				for port := uint16(40001); port < 40006; port++ {
					if at := w.visit(from, port); at != home {
						t.Fatalf("%s went to %d, before to %d", from, at, home)
					}
				}
			}
			if len(seen) < 3 {
				t.Errorf("12 clients are bound to %d of 8 backends", len(seen))
			}
		})
	}
}

func TestAffinityEndsWithItsTimeout(t *testing.T) {
	w := scheduledWorld(t, 8, schedule{scheduler: lb.RoundRobin, affinity: 100 * time.Millisecond})
	from := w.source(100)
	home := w.visit(from, 40000)
	for port := uint16(40001); port < 40006; port++ {
		time.Sleep(40 * time.Millisecond) // each new flow binds for longer
		if at := w.visit(from, port); at != home {
			t.Fatalf("after %d flows it went to %d, before to %d", port-40000, at, home)
		}
	}
	time.Sleep(250 * time.Millisecond)
	w.visit(w.client.addr[0], 50000) // or the turn might come to the same one by chance
	if at := w.visit(from, 41000); at == home {
		t.Error("it is bound still")
	}
}

func TestAffinityIsNotKeptToWhoMayNotTakeNew(t *testing.T) {
	for _, s := range schedulers {
		t.Run(s.String(), func(t *testing.T) {
			w := scheduledWorld(t, 4, schedule{scheduler: s, factor: 1.25, affinity: time.Hour})
			from := w.source(100)
			home := w.visit(from, 40000)
			w.change(w.containers[home], func(b *datapath.Backend) { b.New = false })
			next := w.visit(from, 40001)
			if next == home {
				t.Fatal("it went to a backend that takes nothing new")
			}
			w.change(w.containers[home], func(b *datapath.Backend) { b.New = true })
			for port := uint16(40002); port < 40006; port++ {
				if at := w.visit(from, port); at != next {
					t.Errorf("it went to %d, but is bound to %d now", at, next)
				}
			}
		})
	}
}

// Who is bound stays when the table changes, and is free when seats mean something else.
func TestAffinityOutlivesTablesButNotBases(t *testing.T) {
	s := schedule{scheduler: lb.Maglev, affinity: time.Hour}
	w := scheduledWorld(t, 8, s)
	from := w.source(100)
	home := w.visit(from, 40000)
	s.weights = []uint32{1, 1, 1, 1, 1, 1, 1, 1}
	for i := range s.weights {
		if i != home {
			s.weights[i] = 1000
		}
	}
	w.scheduled(s)
	if at := w.visit(from, 40001); at != home {
		t.Errorf("with another table it went to %d, before to %d", at, home)
	}
	s.baseGen = 1
	w.scheduled(s)
	if at := w.visit(from, 40002); at == home {
		t.Errorf("with another base it is still bound to %d, which has one slot in 7001", at)
	}
}

// A backend that refuses a bound client's flow is no reason to wait: the next SYN goes elsewhere.
func TestAffinityGivesARefusedFlowAnotherBackend(t *testing.T) {
	w := scheduledWorld(t, 4, schedule{scheduler: lb.Random, affinity: time.Hour})
	home := w.bound()
	f, at := w.begin(40000)
	if at != home {
		t.Fatalf("the client is bound to %d, its flow went to %d", home, at)
	}
	answer := reply(f.target)
	answer.Flags, answer.Seq, answer.Ack = packet.RST|packet.ACK, 0, f.seq+8
	if verdict, _ := w.fromContainer(f.backend, answer); verdict != drop {
		t.Fatalf("verdict %d for the refusal", verdict)
	}
	f.out(packet.SYN, f.seq, 0)
	if again := w.indexOf(f.backend); again == home {
		t.Error("the repeated SYN went to who refused it")
	}
}
