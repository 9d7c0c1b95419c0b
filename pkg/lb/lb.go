// Package lb names the things that tclb balances: services, frontends, backends and their states.
//
// It depends on the standard library only, so the plugin, the proxy and the tests can share it.
// Values are plain data: copy them, compare them, never lock them.
package lb

import (
	"fmt"
	"net/netip"
	"time"
)

// Protocol is a transport protocol by its IP number.
type Protocol uint8

// The protocols that tclb balances. Others pass untouched.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// String returns the configuration's word for p.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("protocol-%d", uint8(p))
}

// ParseProtocol is the inverse of Protocol.String.
func ParseProtocol(s string) (Protocol, error) {
	switch s {
	case "tcp":
		return TCP, nil
	case "udp":
		return UDP, nil
	}
	return 0, fmt.Errorf("unknown protocol %q: want tcp or udp", s)
}

// State is what a backend may be given.
type State uint8

// Active backends take new flows; the others keep the flows they have and take no new ones,
// except as the last resort of a service that has no active backend.
const (
	Active      State = iota
	Draining          // leaving: keeps old flows only
	Unhealthy         // failed its health checks
	Maintenance       // weight 0
)

// String returns the configuration's and the listings' word for s.
func (s State) String() string {
	switch s {
	case Active:
		return "active"
	case Draining:
		return "draining"
	case Unhealthy:
		return "unhealthy"
	case Maintenance:
		return "maintenance"
	}
	return fmt.Sprintf("state-%d", uint8(s))
}

// Scheduler says how a slot of a service's lookup table is picked for a new flow.
type Scheduler uint8

// The numbers are part of the map ABI: never renumber them.
const (
	Maglev Scheduler = iota
	Random
	RoundRobin
	LeastConn
	BoundedLoad
	Latency
)

var schedulerNames = [...]string{"maglev", "random", "round-robin", "least-conn", "bounded-load", "latency"}

// String returns the configuration's word for s.
func (s Scheduler) String() string {
	if int(s) < len(schedulerNames) {
		return schedulerNames[s]
	}
	return fmt.Sprintf("scheduler-%d", uint8(s))
}

// ParseScheduler is the inverse of Scheduler.String.
func ParseScheduler(s string) (Scheduler, error) {
	for i, n := range schedulerNames {
		if n == s {
			return Scheduler(i), nil
		}
	}
	return 0, fmt.Errorf("unknown scheduler %q", s)
}

// DefaultWeight is the weight of a backend that names none.
const DefaultWeight = 100

// MaxWeight is the largest weight a backend can have.
const MaxWeight = 1000

// Frontend is what a client connects to: the datapath's lookup key.
type Frontend struct {
	VIP      netip.Addr
	Port     uint16
	Protocol Protocol
}

// String returns "tcp 10.96.0.10:80"; of an address as such, port 0, the address.
func (f Frontend) String() string {
	if f.Port == 0 {
		return f.VIP.String()
	}
	return f.Protocol.String() + " " + netip.AddrPortFrom(f.VIP, f.Port).String()
}

// Port is one port of a service, on every one of its VIPs.
type Port struct {
	Name       string
	Protocol   Protocol
	Port       uint16
	TargetPort uint16 // where backends listen; never 0
}

// AffinityMode says what binds a client to a backend beyond one flow.
type AffinityMode uint8

// The affinity modes.
const (
	AffinityNone     AffinityMode = iota
	AffinityClientIP              // all flows of a client address, over all ports and VIPs of the service
)

// String returns the configuration's word for m.
func (m AffinityMode) String() string {
	if m == AffinityClientIP {
		return "client-ip"
	}
	return "none"
}

// Affinity is a service's session affinity.
type Affinity struct {
	Mode    AffinityMode
	Timeout time.Duration // since the client's last new flow
}

// VLAN says that a backend is reached with an 802.1Q tag. The zero value means it is not.
type VLAN struct {
	Device string // that carries it
	ID     uint16 // of the tag
	MAC    string // of the backend, or who leads to it; "" = found out
}

// Name returns "eth1.100", or "" for none.
func (v VLAN) Name() string {
	if v.Device == "" {
		return ""
	}
	return fmt.Sprintf("%s.%d", v.Device, v.ID)
}

// Link returns the VLAN as such, whoever is in it.
func (v VLAN) Link() VLAN { return VLAN{Device: v.Device, ID: v.ID} }

// Backend is a (node, address) that serves a service.
type Backend struct {
	Address netip.Addr
	Node    string // "" or this node's name: reached directly
	Weight  int    // 0..MaxWeight; 0 = maintenance
	State   State  // as configured or learned; Maintenance is derived from Weight
	Port    uint16 // its own target port for the service's primary target port; 0 = the service's
	VLAN    VLAN

	// Endpoint is the ID of the container attachment behind Address on this node
	// (registry.Endpoint.ID); empty for backends that are no attached container.
	Endpoint string
}

// Place is where Address is unique: a node's name, a VLAN's, or "" for what is reached as it is.
func (b *Backend) Place() string {
	if b.Node != "" {
		return b.Node
	}
	return b.VLAN.Name()
}

// HealthCheck says how a service's backends are probed. Type "none" switches probing off.
type HealthCheck struct {
	Type     string // none | tcp | http
	Port     uint16 // 0 = target of the service's first TCP port
	Path     string
	Expect   int // HTTP status; 0 = any 2xx or 3xx
	Interval time.Duration
	Timeout  time.Duration
	Rise     int
	Fall     int
}

// Outlier says whether backends are ejected by what the datapath sees of them.
type Outlier struct {
	Enabled bool
}

// Timeouts are idle times after which a flow is forgotten. Zero means the node-wide value.
type Timeouts struct {
	TCPEstablished time.Duration
	TCPSyn         time.Duration
	TCPFin         time.Duration
	UDP            time.Duration // a datagram without an answer
	UDPStream      time.Duration // answered at least once
}

// Service is frontends (VIPs x ports) and the backends behind them under one name.
type Service struct {
	Name        string
	VIPs        []netip.Addr
	Ports       []Port
	Scheduler   Scheduler
	BoundedLoad float64 // factor; used by the bounded-load scheduler only
	Affinity    Affinity
	Backends    []Backend
	Members     bool     // containers that name this service join by themselves
	Networks    []string // limits whose containers join by name; empty = all
	HealthCheck HealthCheck
	Outlier     Outlier
	Timeouts    Timeouts
	DSR         bool
	Accelerate  bool
	Allow       []netip.Prefix // source prefixes; empty = everyone
}

// Frontends returns the service's lookup keys, VIP by VIP.
func (s *Service) Frontends() []Frontend {
	out := make([]Frontend, 0, len(s.VIPs)*len(s.Ports))
	for _, v := range s.VIPs {
		for _, p := range s.Ports {
			out = append(out, Frontend{VIP: v, Port: p.Port, Protocol: p.Protocol})
		}
	}
	return out
}

// TargetPort returns where backend b listens for port p of the service.
//
// A backend's own port stands for the service's primary target port, the first port's, and
// for every other port with the same target; the rest of the ports keep their targets.
func (s *Service) TargetPort(p Port, b Backend) uint16 {
	if b.Port != 0 && p.TargetPort == s.Ports[0].TargetPort {
		return b.Port
	}
	return p.TargetPort
}
