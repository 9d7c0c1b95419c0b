package api_test

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
	"github.com/tc-loadbalancer/tclb/proxy/internal/api/apitest"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// Which node a flow's backend is on follows from the flow itself: the service need not be known here.
func TestFlowsNameTheNodeOfTheirBackend(t *testing.T) {
	at := netip.MustParseAddrPort
	for want, p := range map[string]datapath.Pair{
		"node-b": {BackendZone: 7},                               // by tunnel, whatever became of the backend
		"node-a": {Return: true, Zone: 7},                        // came by tunnel, to this node
		"":       {BackendZone: 9},                               // a node that is gone
		"node-c": {BackendZone: 8, BackendID: 12, BackendGen: 1}, // the zone's word counts
	} {
		v, m := apitest.NewView(), apitest.NewMaps()
		p.Protocol, p.Client, p.VIP, p.Backend = lb.TCP, at("192.0.2.200:40000"), at("198.51.100.10:80"), at("192.0.2.7:80")
		m.PairValues = []datapath.Pair{p}
		status, body := ask(newServer(v, m).Handler(), http.MethodGet, "/api/v1/conntrack", "")
		var rows []api.Flow
		if err := json.Unmarshal([]byte(body), &rows); err != nil || status != http.StatusOK || len(rows) != 1 {
			t.Fatalf("status %d, %s", status, body)
		}
		if rows[0].Node != want {
			t.Errorf("%+v: node %q, want %q", p, rows[0].Node, want)
		}
	}
}

// A flow of which one half is seen is kept by other times, and says so.
func TestFlowsThatAreAnsweredDirectly(t *testing.T) {
	at := netip.MustParseAddrPort
	seen := datapath.Pair{Protocol: lb.UDP, State: datapath.FlowEstablished, DSR: true, BackendZone: 7, Packets: [2]uint64{2, 0}}
	kept := seen
	kept.Return = true // the backend's node sees both
	once := seen
	once.Packets[0] = 1
	leaving := datapath.Pair{Protocol: lb.TCP, State: datapath.FlowEstablished, DSR: true, Leaving: true, BackendZone: 7}
	times := datapath.DefaultTimeouts
	for _, c := range []struct {
		pair datapath.Pair
		want time.Duration
	}{{seen, times.UDPStream}, {kept, times.UDP}, {once, times.UDP}, {leaving, times.TCPFin}} {
		v, m := apitest.NewView(), apitest.NewMaps()
		p := c.pair
		p.Client, p.VIP, p.Backend = at("192.0.2.200:40000"), at("198.51.100.10:80"), at("192.0.2.7:80")
		m.PairValues = []datapath.Pair{p}
		status, body := ask(newServer(v, m).Handler(), http.MethodGet, "/api/v1/conntrack", "")
		var rows []api.Flow
		if err := json.Unmarshal([]byte(body), &rows); err != nil || status != http.StatusOK || len(rows) != 1 {
			t.Fatalf("status %d, %s", status, body)
		}
		if got := time.Duration(rows[0].ExpiresSeconds) * time.Second; !rows[0].DSR || got != c.want {
			t.Errorf("%+v: %+v, want %v", c.pair, rows[0], c.want)
		}
	}
}

// The status says which mode it came to and why; other nodes that it cannot reach are one line each, without advice about tunnels.
func TestStatusOfUserspaceMode(t *testing.T) {
	v := apitest.NewView()
	v.ModeValue = view.Mode{Name: "userspace", Reason: "BPF is not permitted:\nno"}
	v.ConfigValue.Datapath.HostStack = true
	v.PeerValues = []view.Node{{Name: "node-b", Address: netip.MustParseAddr("192.0.2.12"), NoTunnel: true}}
	status, body := ask(newServer(v, apitest.NewMaps()).Handler(), http.MethodGet, "/api/v1/status", "")
	var got api.Status
	if err := json.Unmarshal([]byte(body), &got); err != nil || status != http.StatusOK {
		t.Fatalf("status %d, %s", status, body)
	}
	if got.Mode != "userspace" || !strings.HasPrefix(got.ModeReason, "BPF is not permitted:") || strings.Contains(got.ModeReason, "\n") || got.HostStack {
		t.Errorf("mode %q, reason %q, host stack %v", got.Mode, got.ModeReason, got.HostStack)
	}
	text := strings.Join(got.Problems, "\n")
	for _, want := range []string{"node node-b: not reached: this node is in userspace mode", "datapath.hostStack has no effect in userspace mode"} {
		if strings.Count(text, want) != 1 {
			t.Errorf("problems %q, want %q once", got.Problems, want)
		}
	}
	if strings.Contains(text, "tunnel port") {
		t.Errorf("problems %q", got.Problems)
	}
}

// Who has to go when the connection table is full depends on who carries connections.
func TestStatusSaysWhatAFullTableMeans(t *testing.T) {
	for mode, says := range map[string]string{"ebpf": "idle flows give way", "userspace": "new connections are refused"} {
		v, m := apitest.NewView(), apitest.NewMaps()
		v.ModeValue = view.Mode{Name: mode}
		m.RoomValues = map[datapath.Room]datapath.RoomStat{datapath.RoomEstablished: {Live: 64, Capacity: 64}}
		status, body := ask(newServer(v, m).Handler(), http.MethodGet, "/api/v1/status", "")
		var got api.Status
		if err := json.Unmarshal([]byte(body), &got); err != nil || status != http.StatusOK {
			t.Fatalf("status %d, %s", status, body)
		}
		if text := strings.Join(got.Problems, "\n"); !strings.Contains(text, "connection table is full (64 of 64), "+says) {
			t.Errorf("%s: problems %q", mode, text)
		}
	}
}
