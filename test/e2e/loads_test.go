package e2e

import (
	"fmt"
	"math"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// A new connection goes to who has the least for its weight, also after others have gone.
func TestLeastConnEvensOutWhatIsHeld(t *testing.T) { eachMode(t, testLeastConnEvensOutWhatIsHeld) }

func testLeastConnEvensOutWhatIsHeld(t *testing.T, mode string) {
	p := newPool(t, 3, mode)
	weights := []int{100, 200, 700}
	p.configure("least-conn", weights)
	eachWay(t, func(t *testing.T, family int, proto string) {
		held := make([][]*conn, len(weights))
		loads := make([]int, len(weights))
		open := func(count int) {
			t.Helper()
			for n := range count {
				c, at := p.hold(t, proto, family)
				for i, w := range weights {
					if loads[at]*w > loads[i]*weights[at] {
						t.Fatalf("connection %d goes to server %d, but server %d has less for its weight: %v", n, at, i, loads)
					}
				}
				held[at] = append(held[at], c)
				loads[at]++
			}
		}
		open(30)
		if want := []int{3, 6, 21}; !slices.Equal(loads, want) {
			t.Errorf("held are %v, want %v", loads, want)
		}
		if proto == "udp" {
			return // no one sees the end of datagrams
		}
		for i, closed := range []int{3, 1, 16} {
			for _, c := range held[i][:closed] {
				reset(t, c)
			}
			held[i] = held[i][closed:]
			loads[i] -= closed
		}
		p.waitForActive(t, proto, family, loads)
		open(20)
		if want := []int{3, 6, 21}; !slices.Equal(loads, want) {
			t.Errorf("after some closed, held are %v, want %v", loads, want)
		}
	})
}

// A client whose connections all begin at one server, by affinity, must spill over to the others, none of
// which is to have more than its bound at any time. Each family has loads of its own.
func TestBoundedLoadSpillsOver(t *testing.T) { eachMode(t, testBoundedLoadSpillsOver) }

func testBoundedLoadSpillsOver(t *testing.T, mode string) {
	p := newPool(t, 4, mode)
	for _, c := range []struct {
		name    string
		weights []int
		line    string
		binds   bool
		idle    int // servers that nobody needs, at most
	}{
		{"without affinity", alike(4), "affinity: {mode: none}", false, 0},
		{"with affinity", alike(4), "affinity: {mode: client-ip}", true, 0},
		{"weights and affinity", []int{100, 100, 200, 100}, "affinity: {mode: client-ip}", true, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.configure("bounded-load", c.weights, "boundedLoad: {factor: 1.25}", c.line)
			var held []*conn
			var loads [2][4]int
			var first [2]int
			for n := range 200 {
				family := n % 2
				open, at := p.hold(t, "tcp", family)
				held = append(held, open)
				loads[family][at]++
				if n < 2 {
					first[family] = at
				}
				if most := bound(1.25, n/2+1, c.weights, at); loads[family][at] > most {
					t.Fatalf("%s connection %d: server %d has %d, at most %d allowed: %v", families[family], n/2, at, loads[family][at], most, loads[family])
				}
			}
			for family, l := range loads {
				if idle := len(slices.DeleteFunc(slices.Clone(l[:]), func(n int) bool { return n > 0 })); idle > c.idle {
					t.Errorf("%s: held are %v, %d are idle", families[family], l, idle)
				}
				if own := first[family]; c.binds && l[own] < bound(1.25, 99, c.weights, own) {
					t.Errorf("%s: held are %v, but the client's own server %d is to be full", families[family], l, own)
				}
			}
			for _, open := range held {
				reset(t, open)
			}
			for family := range families {
				p.waitForActive(t, "tcp", family, make([]int, 4))
				open, at := p.hold(t, "tcp", family)
				if c.binds && at != first[family] {
					t.Errorf("%s: with room again the client goes to server %d, before it was %d", families[family], at, first[family])
				}
				reset(t, open)
			}
		})
	}
}

// bound is the most that a server may have of so many connections.
func bound(factor float64, connections int, weights []int, server int) int {
	sum := 0
	for _, w := range weights {
		sum += w
	}
	return int(math.Ceil(factor * float64(connections) * float64(weights[server]) / float64(sum)))
}

// A server that answers late gets what the others have no room for, and its share again when it has become
// quick.
func TestLatencyAvoidsASlowServer(t *testing.T) { eachMode(t, testLatencyAvoidsASlowServer) }

func testLatencyAvoidsASlowServer(t *testing.T, mode string) {
	n := newNode(t, mode)
	n.writeServices("web.yaml", service("web", vip(10), "scheduler: latency"))
	n.start()
	members := n.bridged(conf{"services": []string{"web"}})
	var late atomic.Int64
	late.Store(int64(20 * time.Millisecond))
	if mode == inUserspace { // what is measured has the proxy's own turns in it, on a busy machine
		late.Store(int64(100 * time.Millisecond))
	}
	var slow *container
	for i := range 3 {
		c := n.container(t, fmt.Sprintf("web%d", i), members)
		if i > 0 {
			c.serve(targetPort)
			continue
		}
		slow = c
		slow.handle(targetPort, func(open net.Conn) {
			time.Sleep(time.Duration(late.Load()))
			slow.converse(open)
		})
	}
	client := n.container(t, "client", n.bridged())
	n.waitForBackends("web", 3*4)
	for family, name := range families {
		client.spread(t, "tcp", front(vip(10), family), 10) // it must be measured once
		got := client.spread(t, "tcp", front(vip(10), family), 300)
		for server, count := range got {
			if server != slow.name && (3*got[slow.name] >= count || len(got) < 2) {
				t.Errorf("%s: the slow server %s has too many: %v", name, slow.name, got)
			}
		}
	}
	late.Store(0)
	eventually(t, 15*time.Second, "the server that became quick has its share", func() error {
		time.Sleep(100 * time.Millisecond)
		if got := client.spread(t, "tcp", front(vip(10), v4), 30); got[slow.name] < 5 {
			return fmt.Errorf("of 30 connections: %v", got)
		}
		return nil
	})
}
