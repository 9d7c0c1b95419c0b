package sweep

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// table is a connection table that remembers what was asked of it.
type table struct {
	capacity uint64
	looked   uint64
}

func (t *table) Rooms() (map[datapath.Room]datapath.RoomStat, error) {
	return map[datapath.Room]datapath.RoomStat{
		datapath.RoomOpening:     {Capacity: t.capacity / 4},
		datapath.RoomEstablished: {Capacity: t.capacity * 3 / 4},
	}, nil
}

func (t *table) Sweep(r datapath.SweepRequest) (datapath.SweepResult, error) {
	t.looked += uint64(r.Max)
	return datapath.SweepResult{Looked: r.Max}, nil
}

func TestSweepsSeeEveryPairWithinACycle(t *testing.T) {
	for _, capacity := range []uint64{4, 1000, 262144, 1 << 24} {
		m := &table{capacity: capacity}
		for range int(cycle / tick) {
			if err := step(m); err != nil {
				t.Fatal(err)
			}
		}
		if m.looked < capacity {
			t.Errorf("of %d pairs %d were looked at within a cycle", capacity, m.looked)
		}
		if most := capacity + 2*uint64(cycle/tick); m.looked > most {
			t.Errorf("of %d pairs %d were looked at, more than needed", capacity, m.looked)
		}
	}
}

func TestNotesSayWhatKeepsAContainerFromItsVIPs(t *testing.T) {
	subnet := []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16")}
	vips := map[string][]netip.Addr{"web": {netip.MustParseAddr("10.88.0.10")}, "api": {netip.MustParseAddr("10.96.0.1")}}
	tests := []struct {
		name     string
		endpoint registry.Endpoint
		want     string // in the only note; "" = no note
	}{
		{"well", registry.Endpoint{DefaultRoute: true}, "VIP 10.88.0.10 of service web"},
		{"no default route", registry.Endpoint{Network: "inner", Ifname: "eth1"}, "network inner gives no default route"},
		{"no egress hook", registry.Endpoint{DefaultRoute: true, Attach: "ingress", HostInterface: "veth1"}, "qdisc on veth1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			prefixes := subnet
			if !strings.HasPrefix(tt.want, "VIP") {
				prefixes = nil
			}
			got := Notes(tt.endpoint, prefixes, vips)
			if len(got) != 1 || !strings.Contains(got[0], tt.want) {
				t.Errorf("notes %q, want one with %q", got, tt.want)
			}
		})
	}
	if got := Notes(registry.Endpoint{DefaultRoute: true}, subnet, map[string][]netip.Addr{"api": vips["api"]}); len(got) > 0 {
		t.Errorf("notes without a reason: %q", got)
	}
}
