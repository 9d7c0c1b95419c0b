// Package apitest is a node for tests of what is shown to the outside: a view and maps with
// fixed content, which a test changes before it uses them.
package apitest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// Now is the node's time.
var Now = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

// View is a view.View that shows its fields and records what it is asked to change.
type View struct {
	NodeValue       view.Node
	ModeValue       view.Mode
	PeerValues      []view.Node // besides NodeValue, by name
	TunnelValue     view.Tunnel
	Pongs           []view.Pong // of PingNode node-b, one after the other; then unanswered ones
	ConfigValue     *config.Config
	ServiceValues   []view.Service
	BackendValues   []view.Backend
	EndpointValues  []view.Endpoint
	UnattachedValue []view.Unattached
	FindingValues   []config.Finding
	FileValues      []string
	StatusValue     view.Status
	ApplyErr        error
	BackendsChanged func(v *View)                      // called by SetDrain and SetWeight
	KnowsBackend    func(service, backend string) bool // instead of web-1 of web alone

	mu    sync.Mutex
	calls []string // guarded by mu
}

// Mode implements view.View.
func (v *View) Mode() view.Mode { return v.ModeValue }

// Calls returns what was asked for, one line a call.
func (v *View) Calls() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.calls)
}

func (v *View) called(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.calls = append(v.calls, fmt.Sprintf(format, args...))
}

// NewView returns a node with two services, four backends and two containers.
func NewView() *View {
	web := lb.Service{
		Name: "web", VIPs: []netip.Addr{addr("198.51.100.10"), addr("2001:db8:96::10")},
		Ports:     []lb.Port{{Name: "http", Protocol: lb.TCP, Port: 80, TargetPort: 8080}},
		Scheduler: lb.Maglev,
	}
	dns := lb.Service{
		Name: "dns", VIPs: []netip.Addr{addr("198.51.100.53")},
		Ports:     []lb.Port{{Name: "dns-udp", Protocol: lb.UDP, Port: 53, TargetPort: 53}, {Name: "dns-tcp", Protocol: lb.TCP, Port: 53, TargetPort: 53}},
		Scheduler: lb.Random,
	}
	empty := lb.Service{Name: "empty", VIPs: []netip.Addr{addr("198.51.100.99")}, Ports: []lb.Port{{Protocol: lb.TCP, Port: 9, TargetPort: 9}}}
	return &View{
		ModeValue: view.Mode{Name: config.ModeEBPF}, NodeValue: view.Node{Name: "node-a", Address: addr("192.0.2.11"), Reachable: true},
		PeerValues:  peers(),
		TunnelValue: view.Tunnel{PacketsIn: 300, PacketsOut: 200, BytesIn: 30000, BytesOut: 20000},
		ConfigValue: config.Default(),
		ServiceValues: []view.Service{
			{Service: web, File: "/etc/tclb/services.d/web.yaml", ID: 1, MovedSlots: 17, Probes: view.Probes{Success: 90, Failure: 7, Timeout: 2}, Ejections: view.Ejections{Refused: 5, Unanswered: 3, Ejected: 1}},
			{Service: dns, File: "/etc/tclb/services.d/dns.yaml", ID: 2},
			{Service: empty, File: "/etc/tclb/services.d/dns.yaml", ID: 3},
			{Service: lb.Service{Name: "late"}, ID: 0, Error: "map is full"},
		},
		// Not in the order of the listing.
		BackendValues: []view.Backend{
			{ID: 12, Service: "web", Address: addr("2001:db8::5"), Port: 8080, Protocol: lb.TCP, Node: "node-a", Weight: 100, Local: true, Endpoint: "e1", Since: Now.Add(-time.Hour)},
			{ID: 11, Service: "web", Address: addr("203.0.113.7"), Port: 8080, Protocol: lb.TCP, Weight: 50, State: lb.Draining, Since: Now.Add(-time.Hour)},
			{ID: 10, Service: "web", Address: addr("192.0.2.105"), Port: 8080, Protocol: lb.TCP, Node: "node-a", Weight: 100, Local: true, Endpoint: "e1", Since: Now.Add(-time.Hour)},
			{ID: 13, Service: "dns", Address: addr("192.0.2.106"), Port: 53, Protocol: lb.UDP, Node: "node-a", State: lb.Maintenance, Local: true, Endpoint: "e2", Since: Now.Add(-time.Hour)},
			{ID: 14, Service: "dns", Address: addr("192.0.2.106"), Port: 53, Protocol: lb.TCP, Node: "node-a", State: lb.Maintenance, Local: true, Endpoint: "e2", Since: Now.Add(-time.Hour)},
			{ID: 0, Service: "late", Address: addr("192.0.2.107"), Port: 1, Protocol: lb.TCP},
			{ID: 0, Service: "empty", Address: addr("192.0.2.108"), Port: 9, Protocol: lb.TCP, Node: "node-c", Weight: 100, Lost: true},
		},
		EndpointValues: endpoints(), UnattachedValue: unattached(), FileValues: []string{"/etc/tclb/services.d/dns.yaml", "/etc/tclb/services.d/web.yaml"},
		StatusValue: view.Status{
			Ready: true, Revision: 7, Applied: 7, StartedAt: Now.Add(-90 * time.Minute), LastPass: Now.Add(-time.Minute),
			Errors:    []view.ServiceError{{Service: "late", Err: "map is full", Since: Now.Add(-time.Hour)}},
			Unhealthy: unhealthy(),
			Ways:      []string{"uplink eth9: there is no such device"},
			Passes:    view.Timing{Count: 3, Total: 1500 * time.Millisecond},
			Tables:    view.Timing{Count: 4, Total: 20 * time.Millisecond}, Failures: 2, Repaired: 1,
			Cluster: cluster(),
		},
		FindingValues: []config.Finding{{
			File: "/etc/tclb/services.d/web.yaml", Line: 4, Column: 11,
			Key: "services[0].backends[1].weight", Reason: "1001 is above 1000: want 0 to 1000",
		}},
	}
}

// addr is an address of the documentation.
var addr = netip.MustParseAddr

func endpoints() []view.Endpoint {
	return []view.Endpoint{
		{
			Endpoint: registry.Endpoint{
				ID: "e2", ContainerID: "f00dfeed0123456789", Ifname: "eth0", HostInterface: "veth2",
				Network: "backend", Addresses: []netip.Addr{addr("192.0.2.106")}, Attach: "clsact",
			},
			Notes: []string{"no default route: VIPs cannot be reached, add one to the network"},
		},
		{
			Endpoint: registry.Endpoint{
				ID: "e1", ContainerID: "c0ffee0123456789ab", Ifname: "eth0", HostInterface: "veth1", Network: "frontend",
				Container: "web-1", Addresses: []netip.Addr{addr("192.0.2.105"), addr("2001:db8::5")}, Attach: "tcx",
			},
			Joined: []string{"web"},
		},
	}
}

func unhealthy() []view.Unhealthy {
	return []view.Unhealthy{
		{Service: "web", Address: addr("203.0.113.7"), Reason: "connection refused", Since: Now.Add(-10 * time.Minute)},
		{
			Service: "web", Address: addr("2001:db8::5"), Node: "node-a", Ejected: true,
			Reason: "ejected: port 8080/tcp: 4 of 4 connections refused in 1s", Since: Now.Add(-2 * time.Second),
		},
	}
}

func cluster() *view.Cluster {
	return &view.Cluster{
		Endpoints: []string{"https://192.0.2.20:2379"}, Connected: true, Since: Now.Add(-time.Hour), Nodes: 2, Lost: 1,
		Problems: []string{"key /tclb/v1/nodes/x in etcd is ignored: not tclb's"},
	}
}

func unattached() []view.Unattached {
	return []view.Unattached{
		{ContainerID: "0ddba11", Name: "web-0", Network: "frontend", Ifname: "eth0"},
		{ContainerID: "5ca1ab1e0123456789", Network: "frontend", Ifname: "eth0"},
	}
}

func peers() []view.Node {
	return []view.Node{
		{
			Name: "node-b", ID: 7, Address: addr("192.0.2.12"), Reachable: true, Version: "v1.2.2", Latency: 412 * time.Microsecond,
			MTU: 1450, Since: Now.Add(-time.Hour), LastSeen: Now.Add(-200 * time.Millisecond),
			Probes: view.NodeProbes{Answered: 14400, Lost: 2, Late: 1}, LossRatio: 0.015625,
		},
		{
			Name: "node-c", ID: 8, Address: addr("2001:db8::13"), Latency: 12 * time.Millisecond, LossRatio: 1, MTU: 1430, MTUBlackHole: true,
			Since: Now.Add(-time.Minute), LastSeen: Now.Add(-time.Minute), Probes: view.NodeProbes{Answered: 100, Lost: 240},
		},
		{Name: "switch", ID: 3, Address: addr("192.0.2.14"), Reachable: true, Plain: true, MTU: 1450},
	}
}

// Nodes returns NodeValue and PeerValues.
func (v *View) Nodes() []view.Node {
	self := v.NodeValue
	self.Self = true
	return append([]view.Node{self}, v.PeerValues...)
}

// Tunnel returns TunnelValue.
func (v *View) Tunnel() view.Tunnel { return v.TunnelValue }

// PingNode knows node-b alone, and switch as a plain peer.
func (v *View) PingNode(_ context.Context, name string) (view.Pong, error) {
	v.called("ping %s", name)
	switch name {
	case "switch":
		return view.Pong{}, fmt.Errorf("node %q %w: it is plain", name, view.ErrNoPing)
	case "node-b":
	default:
		return view.Pong{}, fmt.Errorf("node %q: %w", name, view.ErrNoNode)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	pong := view.Pong{Address: addr("192.0.2.12"), Size: 92}
	if len(v.Pongs) > 0 {
		pong, v.Pongs = v.Pongs[0], v.Pongs[1:]
	}
	return pong, nil
}

// Node implements view.View, as all methods below.
func (v *View) Node() view.Node { return v.NodeValue }

// Config returns ConfigValue.
func (v *View) Config() *config.Config { return v.ConfigValue }

// Services returns ServiceValues.
func (v *View) Services() []view.Service { return slices.Clone(v.ServiceValues) }

// Backends returns BackendValues, of one service or all.
func (v *View) Backends(service string) []view.Backend {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(v.BackendValues), func(b view.Backend) bool {
		return service != "" && b.Service != service
	})
}

// Endpoints returns EndpointValues.
func (v *View) Endpoints() []view.Endpoint { return slices.Clone(v.EndpointValues) }

// Unattached returns UnattachedValue.
func (v *View) Unattached() []view.Unattached { return v.UnattachedValue }

// Findings returns FindingValues.
func (v *View) Findings() []config.Finding { return v.FindingValues }

// Files returns FileValues.
func (v *View) Files() []string { return v.FileValues }

// Status returns StatusValue.
func (v *View) Status() view.Status { return v.StatusValue }

// Apply fails with ApplyErr, if it is set.
func (v *View) Apply(_ context.Context, name string, data []byte) ([]string, error) {
	v.called("apply %s %q", name, data)
	return []string{"web"}, v.ApplyErr
}

// Delete knows the services of ServiceValues; those with a file are foreign.
func (v *View) Delete(_ context.Context, service string) error {
	v.called("delete %s", service)
	for _, s := range v.ServiceValues {
		if s.Name == service && s.File != "" {
			return fmt.Errorf("service %q: %w: change %s", service, view.ErrForeign, s.File)
		}
		if s.Name == service {
			return nil
		}
	}
	return fmt.Errorf("service %q: %w", service, view.ErrNoService)
}

// SetDrain knows the backend web-1 of web alone, or those of KnowsBackend.
func (v *View) SetDrain(_ context.Context, service, backend string, drain bool) error {
	v.called("drain %s %s %t", service, backend, drain)
	return v.changed(service, backend)
}

// SetWeight knows the same backends.
func (v *View) SetWeight(_ context.Context, service, backend string, weight *int) error {
	if weight == nil {
		v.called("weight %s %s default", service, backend)
	} else {
		v.called("weight %s %s %d", service, backend, *weight)
	}
	return v.changed(service, backend)
}

func (v *View) changed(service, backend string) error {
	known := service == "web" && backend == "web-1"
	if v.KnowsBackend != nil {
		known = v.KnowsBackend(service, backend)
	}
	if !known {
		return fmt.Errorf("backend %q of service %q: %w", backend, service, view.ErrNoBackend)
	}
	if v.BackendsChanged != nil {
		v.BackendsChanged(v)
	}
	return nil
}

// Flush counts three pairs and one affinity.
func (v *View) Flush(_ context.Context, service string) (view.Flushed, error) {
	v.called("flush %q", service)
	return view.Flushed{Pairs: 3, Affinities: 1}, nil
}
