package reconcile_test

import (
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/datapath/dptest"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

var update = flag.Bool("update", false, "rewrite golden files")

// node is a proxy without its sources: state, reconciler, maps and a clock.
type node struct {
	t     testing.TB
	maps  *dptest.Maps
	dir   string
	now   time.Time
	store *state.Store
	rec   *reconcile.Reconciler
}

var nodeTimeouts = lb.Timeouts{
	TCPEstablished: 135 * time.Minute, TCPSyn: time.Minute, TCPFin: 30 * time.Second,
	UDP: 30 * time.Second, UDPStream: 3 * time.Minute,
}

func newNode(t testing.TB, sizes datapath.Sizes) *node {
	n := &node{t: t, maps: dptest.New(sizes), dir: t.TempDir(), now: time.Unix(1e9, 0)}
	n.start()
	return n
}

// start is a proxy that starts on the maps and the state directory that are there.
func (n *node) start() {
	n.store = state.New("node-a", n.dir, nodeTimeouts, quiet)
	clock := func() time.Time { return n.now }
	n.rec = reconcile.New(reconcile.Options{
		Maps:     n.maps,
		Arena:    datapath.NewArena(n.maps.Sizes().TableSlots, reconcile.Grace, clock),
		TableDir: filepath.Join(n.dir, "tables"),
		Now:      clock,
		Log:      quiet,
	})
}

var quiet = slog.New(slog.DiscardHandler)

// apply makes the maps equal to services and endpoints.
func (n *node) apply(services []lb.Service, endpoints ...registry.Endpoint) {
	n.t.Helper()
	n.store.SetServices(define(services))
	n.store.SetEndpoints(slices.Clone(endpoints))
	n.rec.Apply(n.store.Snapshot())
	n.rec.Save()
}

// ok fails the test if anything is not in the maps as it should be.
func (n *node) ok() {
	n.t.Helper()
	for _, e := range n.rec.Errors() {
		n.t.Errorf("%s: %v", e.Service, e.Err)
	}
}

func define(services []lb.Service) []state.Definition {
	out := make([]state.Definition, len(services))
	for i, s := range services {
		out[i] = state.Definition{Spec: s, File: s.Name + ".yaml"}
	}
	return out
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// web is a service with one port and backends at 198.51.100.1 and so on.
func web(name, vip string, backends int) lb.Service {
	s := lb.Service{
		Name:    name,
		VIPs:    []netip.Addr{addr(vip)},
		Ports:   []lb.Port{{Name: "http", Protocol: lb.TCP, Port: 80, TargetPort: 8080}},
		Members: true,
	}
	for i := range backends {
		s.Backends = append(s.Backends, lb.Backend{Address: addr(fmt.Sprintf("198.51.%d.%d", 100+(i+1)>>8, (i+1)&255)), Weight: 100})
	}
	return s
}

func container(id, address string, ifindex uint32, services ...string) registry.Endpoint {
	return registry.Endpoint{
		ID:          registry.EndpointID(id, "eth0"),
		ContainerID: id,
		Ifname:      "eth0",
		HostIfindex: ifindex,
		MAC:         fmt.Sprintf("02:00:00:00:00:%02x", ifindex),
		Addresses:   []netip.Addr{addr(address)},
		Services:    services,
		Created:     time.Unix(int64(ifindex), 0),
	}
}

// table returns the backend address of each slot of a frontend.
func (n *node) table(vip string) []string {
	n.t.Helper()
	frontends, _ := n.maps.Frontends()
	f, ok := frontends[lb.Frontend{VIP: addr(vip), Port: 80, Protocol: lb.TCP}]
	if !ok {
		n.t.Fatalf("no frontend for %s", vip)
	}
	if f.Table.Len == 0 {
		return nil
	}
	positions, err := n.maps.ReadRegion(f.Table)
	slots := f.Unpack(positions)
	if err != nil {
		n.t.Fatal(err)
	}
	seats, err := n.maps.ReadRegion(f.Members)
	if err != nil {
		n.t.Fatal(err)
	}
	backends, _ := n.maps.Backends()
	out := make([]string, len(slots))
	for i, s := range slots {
		out[i] = backends[seats[s]].Address.String()
	}
	return out
}

// record returns the live record at an address.
func (n *node) record(address string) (uint32, datapath.Backend) {
	n.t.Helper()
	backends, _ := n.maps.Backends()
	for id, b := range backends {
		if b.Live && b.Address == addr(address) {
			return id, b
		}
	}
	n.t.Fatalf("no live backend at %s", address)
	return 0, datapath.Backend{}
}

func (n *node) frontend(vip string) datapath.Frontend {
	frontends, _ := n.maps.Frontends()
	return frontends[lb.Frontend{VIP: addr(vip), Port: 80, Protocol: lb.TCP}]
}

func (n *node) frontends() map[lb.Frontend]datapath.Frontend {
	f, _ := n.maps.Frontends()
	return f
}
