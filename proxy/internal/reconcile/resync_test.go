package reconcile_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/datapath/dptest"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

func TestResyncRepairsWhatOthersChanged(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	s := web("a", "10.96.0.1", 3)
	s.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	n.apply([]lb.Service{s})
	n.ok()
	key := lb.Frontend{VIP: addr("10.96.0.1"), Port: 80, Protocol: lb.TCP}
	id, _ := n.record("198.51.100.2")
	damage := map[string]func(){
		"frontend deleted":  func() { _ = n.maps.DeleteFrontends([]lb.Frontend{key}) },
		"frontend replaced": func() { _ = n.maps.PutFrontends(map[lb.Frontend]datapath.Frontend{key: {Kind: 2}}) },
		"direct deleted": func() {
			_ = n.maps.DeleteFrontends([]lb.Frontend{{VIP: addr("198.51.100.1"), Port: 8080, Protocol: lb.TCP}})
		},
		"foreign frontend": func() {
			_ = n.maps.PutFrontends(map[lb.Frontend]datapath.Frontend{{VIP: addr("10.1.1.1"), Port: 1, Protocol: lb.TCP}: {Service: 77}})
		},
		"backend replaced": func() { _ = n.maps.PutBackends([]uint32{id}, []datapath.Backend{{Gen: 50, Protocol: lb.TCP}}) },
		"foreign backend": func() {
			_ = n.maps.PutBackends([]uint32{99}, []datapath.Backend{{Gen: 5, Protocol: lb.TCP, Live: true}})
		},
		"table":          func() { _ = n.maps.WriteRegion(n.frontend("10.96.0.1").Table, []uint32{1, 1, 1, 1, 1, 1, 1}) },
		"service record": func() { _ = n.maps.PutService(1, datapath.Service{Gen: 1}) },
		"node timeouts":  func() { _ = n.maps.PutService(0, datapath.Service{}) },
		"allow": func() {
			_ = n.maps.DeleteAllow(datapath.AllowKey{Service: 1, Prefix: s.Allow[0]})
			_ = n.maps.PutAllow(datapath.AllowKey{Service: 1, Prefix: netip.MustParsePrefix("0.0.0.0/0")})
		},
	}
	before := dumpWithoutGens(n.maps)
	for name, damage := range damage {
		t.Run(name, func(t *testing.T) {
			damage()
			n.rec.Resync()
			n.ok()
			if diff := cmp.Diff(before, dumpWithoutGens(n.maps)); diff != "" {
				t.Errorf("not repaired (-want +got):\n%s", diff)
			}
			n.maps.Writes()
			n.rec.Resync()
			if w := n.maps.Writes(); w != 0 {
				t.Errorf("a resync of right maps wrote %d entries", w)
			}
		})
	}
}

// dumpWithoutGens leaves out what may rise with a repair.
func dumpWithoutGens(m *dptest.Maps) []string {
	var out []string
	for _, line := range strings.Split(m.Dump(), "\n") {
		if strings.HasSuffix(line, "retired") {
			continue
		}
		words := strings.Fields(line)
		if len(words) > 0 && words[0] == "backend" {
			words[1] = "ID"
		}
		if len(words) > 0 && words[0] == "frontend" && len(words) > 8 {
			for i, w := range words[8:] { // shares by id
				_, words[8+i], _ = strings.Cut(w, ":")
			}
			slices.Sort(words[8:])
		}
		out = append(out, strings.Join(slices.DeleteFunc(words, func(w string) bool { return strings.HasPrefix(w, "gen=") }), " "))
	}
	slices.Sort(out)
	return out
}

func TestResyncBelievesThePluginOnce(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	n.apply([]lb.Service{web("a", "10.96.0.1", 0)}, container("c1", "10.88.0.5", 7, "a"))
	if got, _ := n.maps.RetireEndpoint(7, nil); got != 1 {
		t.Fatalf("retired %d records, want 1", got)
	}
	n.rec.Resync()
	if strings.Contains(n.maps.Dump(), " live") {
		t.Error("what the plugin marked gone was brought back before its endpoint file could go")
	}
	n.rec.Resync()
	if !strings.Contains(n.maps.Dump(), " live") {
		t.Error("the endpoint is still there a minute later, and its backend is not back")
	}
}

var errInjected = errors.New("injected")

func TestFaultsAreRetriedAndHealed(t *testing.T) {
	for _, op := range []string{"PutFrontends", "DeleteFrontends", "PutService", "PutBackends", "WriteRegion", "PutAllow", "DeleteAllow"} {
		t.Run(op, func(t *testing.T) {
			n := newNode(t, datapath.Sizes{})
			first := []lb.Service{web("a", "10.96.0.1", 3), web("b", "10.96.0.2", 2)}
			first[0].Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
			second := []lb.Service{web("b", "10.96.0.2", 1), web("c", "10.96.0.3", 4)}
			second[1].Allow = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
			n.apply(first)
			n.ok()

			failed := 0
			n.maps.Fail = func(o string, _ any) error {
				if o == op {
					failed++
					return errInjected
				}
				return nil
			}
			n.apply(second)
			if failed == 0 || len(n.rec.Errors()) == 0 {
				t.Fatalf("%d operations failed, %d errors reported", failed, len(n.rec.Errors()))
			}
			since := n.now
			for range 20 {
				at, ok := n.rec.NextRetry()
				if !ok || !at.After(n.now) {
					t.Fatalf("next retry in %v, %t", at.Sub(n.now), ok)
				}
				n.now = at
				n.rec.Retry()
			}
			if waited := n.now.Sub(since); waited < 2*time.Minute {
				t.Errorf("20 tries within %v: they should become rarer", waited)
			}
			n.maps.Fail = nil
			n.now = n.now.Add(time.Hour)
			n.rec.Retry()
			n.ok()

			clean := newNode(t, datapath.Sizes{})
			clean.apply(first)
			clean.apply(second)
			if diff := cmp.Diff(live(clean.maps), live(n.maps)); diff != "" {
				t.Errorf("after the fault is gone the maps differ from those without a fault:\n%s", diff)
			}
		})
	}
}

func TestLateDeletionSparesWhoGotTheVIP(t *testing.T) {
	key := lb.Frontend{VIP: addr("10.96.0.1"), Port: 80, Protocol: lb.TCP}
	tests := map[string][]lb.Service{ // what runs when the deletion of a's keys fails
		"its service is gone":         {web("other", "10.96.0.9", 1)},
		"its service has another one": {web("a", "10.96.0.2", 2), web("other", "10.96.0.9", 1)},
	}
	for name, services := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, datapath.Sizes{})
			n.apply([]lb.Service{web("a", "10.96.0.1", 2), web("other", "10.96.0.9", 1)})
			n.ok()
			failed := 0
			n.maps.Fail = func(op string, _ any) error {
				if op == "DeleteFrontends" {
					failed++
					return errInjected
				}
				return nil
			}
			n.apply(services)
			if _, there := n.frontends()[key]; failed == 0 || !there {
				t.Fatalf("%d deletions failed, key there: %t", failed, there)
			}
			n.maps.Fail = nil
			heir := webOf("b", "10.96.0.1", "203.0.113.1")
			n.apply(append(slices.Clone(services), heir))
			n.now = n.now.Add(time.Hour)
			n.rec.Retry()
			n.ok()
			if got := n.frontend("10.96.0.1"); got.Service != n.rec.Service("b").ID {
				t.Fatalf("the VIP is service %d's, want %d's: the late deletion took it away", got.Service, n.rec.Service("b").ID)
			}
			if got := n.table("10.96.0.1"); len(got) == 0 || got[0] != "203.0.113.1" {
				t.Errorf("its table leads to %v", got)
			}
		})
	}
}

// live returns what packets can look up, without ids.
func live(m *dptest.Maps) []string {
	var out []string
	for _, line := range dumpWithoutGens(m) {
		if strings.HasPrefix(line, "service") || strings.TrimSpace(line) == "" {
			continue
		}
		words := strings.Fields(line)
		out = append(out, strings.Join(slices.DeleteFunc(words, func(w string) bool { return strings.HasPrefix(w, "service=") }), " "))
	}
	return out
}
