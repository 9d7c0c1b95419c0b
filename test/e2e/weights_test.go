package e2e

import (
	"math"
	"net/netip"
	"slices"
	"testing"
)

// connections are how many it takes to see a share to the point.
const connections = 20000

// tellFront is the port of the first VIP that tells who took a connection.
var tellFront = netip.AddrPortFrom(poolVIPs[0][v4], tellPort)

func TestWeightsShowAsShares(t *testing.T) { eachMode(t, testWeightsShowAsShares) }

func testWeightsShowAsShares(t *testing.T, mode string) {
	p := newPool(t, 3, mode)
	many, near := connections, 1.0
	if mode == inUserspace {
		many, near = connections/5, 3 // one of them is dozens of system calls
	}
	weights := []int{100, 200, 700}
	for _, scheduler := range []string{"maglev", "random", "round-robin", "bounded-load"} {
		t.Run(scheduler, func(t *testing.T) {
			p.configure(scheduler, weights)
			took := p.client.draw(t, tellFront, 10000, many)
			got := tally(3, took)
			for i, w := range weights {
				if share := 100 * float64(got[i]) / float64(many); math.Abs(share-float64(w)/10) > near {
					t.Errorf("weight %d of 1000 has %.2f %% of the connections", w, share)
				}
			}
			if scheduler == "round-robin" {
				expectExactRounds(t, took, []int{1, 2, 7})
				return
			}
			if chance := chanceOf(got, weights); chance < oneInAMillion {
				t.Errorf("%v of %d connections: chance makes such shares of %v once in %.0f runs", got, many, weights, 1/chance)
			}
			if exact := countExact(took, []int{1, 2, 7}); exact > many/10/2 {
				t.Errorf("%d of %d rounds are exact: that is not %s", exact, many/10, scheduler)
			}
		})
	}
}

// expectExactRounds checks that each round has the same, from the first connection on.
func expectExactRounds(t *testing.T, took, want []int) {
	t.Helper()
	length := 0
	for _, n := range want {
		length += n
	}
	for at := 0; at+length <= len(took); at += length {
		if got := tally(len(want), took[at:at+length]); !slices.Equal(got, want) {
			t.Fatalf("connections %d to %d: %v, want %v of each %d", at, at+length-1, got, want, length)
		}
	}
}

// countExact returns how many rounds are as those of turns.
func countExact(took, want []int) (exact int) {
	for round := range slices.Chunk(took, 10) {
		if slices.Equal(tally(len(want), round), want) {
			exact++
		}
	}
	return exact
}

// Turns are taken at each port by itself: a client that goes to and fro between two of them must not meet
// the same server on one of them each time.
func TestEachPortHasItsOwnTurns(t *testing.T) { eachMode(t, testEachPortHasItsOwnTurns) }

func testEachPortHasItsOwnTurns(t *testing.T, mode string) {
	p := newPool(t, 2, mode)
	p.configure("round-robin", alike(2))
	first, second := poolVIPs[0][v4], poolVIPs[1][v4]
	for _, pair := range []struct {
		name string
		at   [2]netip.AddrPort
	}{
		{"two targets", [2]netip.AddrPort{netip.AddrPortFrom(first, servicePort), netip.AddrPortFrom(first, secondPort)}},
		{"one target", [2]netip.AddrPort{netip.AddrPortFrom(first, servicePort), netip.AddrPortFrom(first, sharedPort)}},
		{"two VIPs", [2]netip.AddrPort{netip.AddrPortFrom(first, servicePort), netip.AddrPortFrom(second, servicePort)}},
	} {
		t.Run(pair.name, func(t *testing.T) {
			var took [2][]int
			for range 10 {
				for i, at := range pair.at {
					took[i] = append(took[i], p.index(t, p.client.mustAsk(t, "tcp", at)))
				}
			}
			for i := range took {
				expectExactRounds(t, took[i], []int{1, 1})
			}
		})
	}
}

// oneInAMillion is how seldom a test of chance may fail without cause.
const oneInAMillion = 1e-6

// chanceOf is the chi-square test: how likely it is that shares as given by weights come out at least as
// far from them as got. The number of weights must be odd, for which there is a sum instead of an
// integral.
func chanceOf(got, weights []int) float64 {
	var total, sum, square float64
	for i := range got {
		total += float64(got[i])
		sum += float64(weights[i])
	}
	for i := range got {
		want := total * float64(weights[i]) / sum
		square += (float64(got[i]) - want) * (float64(got[i]) - want) / want
	}
	chance, term := 0.0, math.Exp(-square/2)
	for i := 1; i <= (len(got)-1)/2; i++ {
		chance += term
		term *= square / 2 / float64(i)
	}
	return chance
}

func TestChanceOfKnownSquares(t *testing.T) {
	for _, c := range []struct {
		got, weights []int
		least, most  float64 // of tables of the chi-square distribution
	}{
		{[]int{100, 200, 700}, []int{1, 2, 7}, 1, 1},
		{[]int{30, 30, 60}, []int{1, 1, 1}, 0.00055, 0.00056},             // 15 at 2 degrees of freedom
		{[]int{10, 20, 30, 20, 20}, []int{1, 1, 1, 1, 1}, 0.0403, 0.0405}, // 10 at 4
		{[]int{2150, 4000, 13850}, []int{1, 2, 7}, 0.0014, 0.0017},        // 12.86 at 2
	} {
		if got := chanceOf(c.got, c.weights); got < c.least || got > c.most {
			t.Errorf("%v for %v: %g, want %g to %g", c.got, c.weights, got, c.least, c.most)
		}
	}
}
