package config

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// named returns services without vips.
func named(names ...string) []lb.Service {
	var out []lb.Service
	for _, n := range names {
		out = append(out, lb.Service{Name: n})
	}
	return out
}

func assign(t *testing.T, services []lb.Service, pool []netip.Prefix, taken map[string][]netip.Addr) map[string][]netip.Addr {
	t.Helper()
	got, err := AssignVIPs(services, pool, taken)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// These values are what nodes agree on, and what a lost state directory brings back: never change them.
func TestAssignedVIPsAreAFunctionOfTheName(t *testing.T) {
	got := assign(t, named("web", "api", "web-1", "web-2"), prefixes("10.96.0.0/16", "fd00:96::/64"), nil)
	want := map[string][]netip.Addr{
		"web":   addrs("10.96.124.202", "fd00:96::23d7:8271:8294:1725"),
		"api":   addrs("10.96.216.29", "fd00:96::789c:5504:fdf2:a851"),
		"web-1": addrs("10.96.85.55", "fd00:96::537a:3405:8926:976e"),
		"web-2": addrs("10.96.23.45", "fd00:96::2dce:f8c:4e96:4a8b"),
	}
	if d := diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestAssignedVIPsAreStable(t *testing.T) {
	pool := prefixes("10.96.0.0/24", "fd00:96::/112")
	var names []string
	for i := range 200 {
		names = append(names, fmt.Sprintf("service-%d", i))
	}
	first := assign(t, named(names...), pool, nil)
	shuffled := append([]string{}, names...)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	if d := diff(first, assign(t, named(shuffled...), pool, nil)); d != "" {
		t.Errorf("the order of services matters:\n%s", d)
	}
	// 40 services come, which sort before and between: nobody moves.
	for i := range 40 {
		names = append(names, fmt.Sprintf("a-%d", i))
	}
	second := assign(t, named(names...), pool, first)
	seen := map[netip.Addr]string{}
	for name, vips := range second {
		if old, ok := first[name]; ok && !cmp.Equal(old, vips, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })) {
			t.Errorf("%s moved from %v to %v", name, old, vips)
		}
		for i, vip := range vips {
			if other, twice := seen[vip]; twice {
				t.Errorf("%s has the VIP of %s", name, other)
			}
			seen[vip] = name
			if !pool[i].Contains(vip) || strings.HasSuffix(vip.String(), ".0") || strings.HasSuffix(vip.String(), ".1") ||
				strings.HasSuffix(vip.String(), ".255") || strings.HasSuffix(vip.String(), "::") || strings.HasSuffix(vip.String(), "::1") {
				t.Errorf("%s has %s", name, vip)
			}
		}
	}
}

func TestExplicitVIPsAreNotAssigned(t *testing.T) {
	pool := prefixes("10.96.0.0/29") // .2 to .6
	services := append(named("a", "b"), lb.Service{Name: "x", VIPs: addrs("10.96.0.2", "10.96.0.4", "10.96.0.6")})
	got := assign(t, services, pool, map[string][]netip.Addr{"a": addrs("10.96.0.2"), "b": addrs("192.0.2.1", "10.96.0.5")})
	want := map[string][]netip.Addr{"a": addrs("10.96.0.3"), "b": addrs("10.96.0.5")}
	if d := diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestFullPoolLeavesTheLastServicesOut(t *testing.T) {
	got, err := AssignVIPs(named("a", "b", "c"), prefixes("10.96.0.0/31", "fd00::/64"), nil)
	if !errors.Is(err, ErrPoolFull) || !strings.Contains(err.Error(), "10.96.0.0/31 to service c") {
		t.Error(err)
	}
	if len(got["a"]) != 2 || len(got["b"]) != 2 || len(got["c"]) != 1 || !got["c"][0].Is6() {
		t.Error(got)
	}
}

func TestEveryAddressOfASmallPoolIsUsed(t *testing.T) {
	for pool, size := range map[string]int{
		"10.96.0.0/32": 1, "10.96.0.0/31": 2, "10.96.0.0/30": 1, "10.96.0.0/29": 5, "fd00::/128": 1, "fd00::/127": 2, "fd00::/126": 2, "fd00::/125": 6,
	} {
		var names []string
		for i := range size + 1 {
			names = append(names, fmt.Sprint("s", i))
		}
		got, err := AssignVIPs(named(names...), prefixes(pool), nil)
		if len(got) != size || !errors.Is(err, ErrPoolFull) {
			t.Errorf("%s: %d of %d, %v", pool, len(got), size, err)
		}
	}
}

func TestVIPsSurviveARestart(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	if vips, err := NewVIPStore(state).Load(); err != nil || len(vips) > 0 {
		t.Fatal(vips, err)
	}
	want := map[string][]netip.Addr{"web": addrs("10.96.0.7", "fd00:96::7")}
	if err := NewVIPStore(state).Save(want); err != nil {
		t.Fatal(err)
	}
	got, err := NewVIPStore(state).Load()
	if d := diff(want, got); d != "" || err != nil {
		t.Error(d, err)
	}
	if err := os.WriteFile(filepath.Join(state, "vips.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewVIPStore(state).Load(); err == nil {
		t.Error("a spoiled file is no error")
	}
}
