package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/relay"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
	"github.com/tc-loadbalancer/tclb/proxy/internal/userspace"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// newUserMode makes a mode that listens nowhere, with a service on two ports and a backend on another node.
func newUserMode(t *testing.T) (*userMode, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	p := &proxy{store: state.New("a", t.TempDir(), lb.Timeouts{}, quiet)}
	p.Log = slog.New(slog.NewTextHandler(&log, nil))
	cfg := config.Default()
	cfg.Node.Name, cfg.Nodes = "a", []config.Peer{{Name: "a"}, {Name: "b", Address: netip.MustParseAddr("192.0.2.2")}}
	p.config.Store(cfg)
	p.node.Store(&view.Node{Name: "a", Reachable: true})
	u := &userMode{proxy: p, failed: make(map[string]view.ServiceError), maps: userspace.New(datapath.Sizes{MaxServices: 8, MaxBackends: 8}, time.Now)}
	p.mode = u
	p.store.SetEndpoints(nil)
	p.store.SetServices([]state.Definition{{File: "web.yaml", Spec: lb.Service{
		Name: "web", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports:    []lb.Port{{Protocol: lb.TCP, Port: 80}, {Protocol: lb.TCP, Port: 81}},
		Backends: []lb.Backend{{Address: netip.MustParseAddr("198.51.100.1"), Node: "b", Weight: 1}, {Address: netip.MustParseAddr("198.51.100.2"), Weight: 1}},
	}}})
	return u, &log
}

// A service that cannot be listened for is told of once, as often as it is tried.
func TestUnservedServiceIsToldOnce(t *testing.T) {
	u, log := newUserMode(t)
	front := func(port uint16) lb.Frontend {
		return lb.Frontend{VIP: netip.MustParseAddr("10.96.0.1"), Port: port, Protocol: lb.TCP}
	}
	broken := map[lb.Frontend]error{front(80): errors.New("port 80 is taken"), front(81): errors.New("port 81 is taken")}
	for range 3 {
		u.note(broken)
	}
	now, ever := u.unserved()
	if e := now["web"]; !strings.Contains(e.Err, "port 80 is taken") || !strings.Contains(e.Err, "port 81 is taken") || ever != 1 {
		t.Errorf("unserved %+v, %d times", now, ever)
	}
	if lines := strings.Count(log.String(), "level=ERROR"); lines != 1 {
		t.Errorf("%d lines: %s", lines, log)
	}
	since := now["web"].Since
	u.note(map[lb.Frontend]error{front(80): errors.New("port 80 is taken")})
	if now, ever = u.unserved(); ever != 2 || !now["web"].Since.Equal(since) || strings.Contains(now["web"].Err, "81") {
		t.Errorf("unserved %+v, %d times", now, ever)
	}
	u.note(nil)
	if now, _ = u.unserved(); len(now) != 0 || !strings.Contains(log.String(), `msg="service is served" service=web`) {
		t.Errorf("unserved %+v; log %s", now, log)
	}
}

func TestErrorOfManyPortsIsShort(t *testing.T) {
	var texts []string
	for i := range 10 {
		texts = append(texts, fmt.Sprintf("port %d", i))
	}
	if got := join(texts); got != "port 0\nport 1\nport 2\nand 7 more" {
		t.Errorf("got %q", got)
	}
}

// There is no way to other nodes: their backends get nothing, and the listing of nodes says so.
func TestUserspaceModeHasNoWayToOtherNodes(t *testing.T) {
	u, _ := newUserMode(t)
	b := u.store.Snapshot().Service("web").Backends
	if b[0].Placed() || b[0].Serves() || !b[1].Serves() {
		t.Errorf("backends %+v", b)
	}
	if ways := u.ways(); len(ways) != 1 || !strings.Contains(ways[0], "backend b/198.51.100.1 is on node b, and userspace mode has no way to other nodes") {
		t.Errorf("ways %q", ways)
	}
	nodes := u.Nodes()
	if len(nodes) != 2 || !nodes[0].Self || nodes[1].Name != "b" || nodes[1].Reachable || !nodes[1].NoTunnel {
		t.Errorf("nodes %+v", nodes)
	}
	if _, err := u.PingNode(context.Background(), "b"); !errors.Is(err, view.ErrNoPing) || !strings.Contains(err.Error(), "userspace") {
		t.Errorf("ping: %v", err)
	}
	if _, err := u.PingNode(context.Background(), "nobody"); !errors.Is(err, view.ErrNoNode) {
		t.Errorf("ping: %v", err)
	}
}

// What this node lacks must not take a backend out.
func TestExhaustionBlamesNoBackend(t *testing.T) {
	maps := userspace.New(datapath.Sizes{MaxServices: 8, MaxBackends: 8}, time.Now)
	front := lb.Frontend{VIP: netip.MustParseAddr("10.96.0.1"), Port: 80, Protocol: lb.TCP}
	put := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	put(maps.PutService(1, datapath.Service{Timeouts: datapath.DefaultTimeouts}))
	for id := range uint32(2) {
		put(maps.PutBackend(id+1, datapath.Backend{Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(id)}), Port: 80, Protocol: lb.TCP, Service: 1, Live: true, New: true, Weight: 1}))
	}
	put(maps.WriteRegion(datapath.Region{Offset: 0, Len: 2}, []uint32{0, 1}))
	put(maps.WriteRegion(datapath.Region{Offset: 16, Len: 2}, []uint32{1, 2}))
	put(maps.PutFrontends(map[lb.Frontend]datapath.Frontend{front: {
		Service: 1, Scheduler: lb.RoundRobin, Table: datapath.Region{Offset: 0, Len: 2}, Members: datapath.Region{Offset: 16, Len: 2}, Listed: true, Weight: 2,
	}}))
	f, err := balancer{maps}.Begin(front, netip.MustParseAddrPort("203.0.113.1:1000"), func() {})
	put(err)
	if f.Failed(relay.Exhausted) {
		t.Error("another backend is tried where this node has nothing left")
	}
	if again := f.Failed(relay.Refused); !again {
		t.Error("no other backend is tried after a refusal")
	}
	f.End()
	total := maps.BackendStat(1).Rejected + maps.BackendStat(2).Rejected
	if total != 1 {
		t.Errorf("%d refusals are counted, want 1", total)
	}
}
