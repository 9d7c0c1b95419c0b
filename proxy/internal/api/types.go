package api

import (
	"net/netip"
	"time"

	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
)

// Service is one row of `tclb service list`, with the backends it has in the maps.
type Service struct {
	Name      string       `json:"name"`
	VIPs      []netip.Addr `json:"vips"`
	Ports     []Port       `json:"ports"`
	Scheduler string       `json:"scheduler"`
	Backends  []Backend    `json:"backends"`
	File      string       `json:"file"` // that defines it
}

// Port is one port of a service, on every one of its VIPs.
type Port struct {
	Name       string `json:"name"`
	Protocol   string `json:"protocol"`
	Port       uint16 `json:"port"`
	TargetPort uint16 `json:"targetPort"`
}

// Backend is one backend of one service port.
type Backend struct {
	Service           string     `json:"service"`
	Address           netip.Addr `json:"address"`
	Port              uint16     `json:"port"` // where the backend listens
	Protocol          string     `json:"protocol"`
	Node              string     `json:"node"`           // "" for a backend that no node owns
	VLAN              *VLAN      `json:"vlan,omitempty"` // that it is reached by; not there for one without
	Weight            int        `json:"weight"`
	State             string     `json:"state"` // active | draining | unhealthy | maintenance
	ActiveConnections uint64     `json:"activeConnections"`
	TotalConnections  uint64     `json:"totalConnections"`
	Local             bool       `json:"local"` // a container attached on this node

	// Share is the part of new connections that the table gives it; of `service get` only.
	Share *float64 `json:"share,omitempty"`
	// Latency is what the datapath saw it take to answer, lately; null if it was not measured yet.
	Latency *float64 `json:"latencySeconds"`
	// Since is when it got its state, as far as the proxy knows: what it found when it started has that
	// time, but an unhealthy backend the time of its report, which outlives the proxy.
	Since time.Time `json:"since"`

	id uint32 // in the maps
}

// VLAN is the tag that a backend is reached with.
type VLAN struct {
	Device string `json:"device"`
	ID     uint16 `json:"id"`
	MAC    string `json:"mac,omitempty"` // as configured
}

// Endpoint is one attached container interface of this node.
type Endpoint struct {
	ContainerID   string       `json:"containerID"`
	Ifname        string       `json:"ifname"`
	HostInterface string       `json:"hostInterface"`
	Addresses     []netip.Addr `json:"addresses"`
	Services      []string     `json:"services"` // it is a member of now
	Network       string       `json:"network"`
	Container     string       `json:"container"` // the container's name where the runtime told it
	Attach        string       `json:"attach"`    // tcx | clsact | ingress
	Notes         []string     `json:"notes"`     // what is odd about it, and what to do
}

// Unattached is a container on a network that is chained to tclb-cni, which itself is not attached:
// it was started before. Restarting it attaches it.
type Unattached struct {
	ContainerID string `json:"containerID"`
	Name        string `json:"name"` // "" where the runtime did not tell
	Network     string `json:"network"`
	Ifname      string `json:"ifname"`
}

// Node is one node of the cluster, this one included.
type Node struct {
	Name      string     `json:"name"`
	Address   netip.Addr `json:"address"`
	Reachable bool       `json:"reachable"`
	Self      bool       `json:"self"`           // this node
	Plain     bool       `json:"plain"`          // a VXLAN device without tclb, not probed
	Latency   *float64   `json:"latencySeconds"` // smoothed; null if it was not measured yet
	LossRatio *float64   `json:"lossRatio"`      // of the last 64 probes; null without any
	MTU       int        `json:"mtu"`            // largest IP packet that should fit to it; 0 = not known
	Version   string     `json:"version"`        // of its proxy; "" if it did not tell
	Since     *time.Time `json:"since"`          // when it became reachable or unreachable
	LastSeen  *time.Time `json:"lastSeen"`       // its last answer; null before the first one
	Notes     []string   `json:"notes"`          // what is odd about it, and what to do
}

// Pong is what came of one ping of a node.
type Pong struct {
	Node     string     `json:"node"`
	Address  netip.Addr `json:"address"`
	Sequence int        `json:"sequence"` // from 1 on; the client's
	Size     int        `json:"size"`     // of the IP packet in the tunnel
	Answered bool       `json:"answered"` // within a second
	Seconds  float64    `json:"seconds"`  // until the answer; 0 without one
}

// Flow is one pair of the connection table.
type Flow struct {
	Protocol       string         `json:"protocol"`
	Client         netip.AddrPort `json:"client"`
	VIP            netip.AddrPort `json:"vip"`
	Backend        netip.AddrPort `json:"backend"`
	State          string         `json:"state"` // opening | established | closing
	Node           string         `json:"node"`  // of the backend
	AgeSeconds     int64          `json:"ageSeconds"`
	ExpiresSeconds int64          `json:"expiresSeconds"`
	Packets        uint64         `json:"packets"` // both directions
	Bytes          uint64         `json:"bytes"`
	Service        string         `json:"service"`       // "" for a direct flow to a backend
	DSR            bool           `json:"dsr,omitempty"` // chosen here, answered by the backend's node; or answered from here
}

// Status is what `tclb status` shows.
type Status struct {
	Name          string           `json:"name"`
	Address       netip.Addr       `json:"address"`
	Version       string           `json:"version"`
	Mode          string           `json:"mode"`                 // ebpf | userspace
	ModeReason    string           `json:"modeReason,omitempty"` // why, where datapath.mode left the choice
	HostStack     bool             `json:"hostStack"`
	Ready         bool             `json:"ready"`
	UptimeSeconds int64            `json:"uptimeSeconds"`
	Revision      uint64           `json:"revision"`      // of the desired state
	Applied       uint64           `json:"applied"`       // the revision that is in the maps
	LastReconcile time.Time        `json:"lastReconcile"` // zero before the first
	Counts        Counts           `json:"counts"`
	Conntrack     ConntrackStatus  `json:"conntrack"`
	Maps          []MapStatus      `json:"maps"`
	Findings      []config.Finding `json:"findings"`  // mistakes in tclb.yaml and services files
	Errors        []ReconcileError `json:"errors"`    // what could not be written into the maps
	Unhealthy     []Unhealthy      `json:"unhealthy"` // backends that fail their health checks or are ejected
	Unattached    []Unattached     `json:"unattached"`
	Etcd          *Etcd            `json:"etcd"`     // null without etcd
	Problems      []string         `json:"problems"` // whatever somebody should look at, a line each
}

// Etcd is how what nodes share through it stands.
type Etcd struct {
	Endpoints []string  `json:"endpoints"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"` // it is connected, or not
	Error     string    `json:"error"` // why it is not connected
	Nodes     int       `json:"nodes"` // other nodes that are there
	Lost      int       `json:"lost"`  // and those whose lease has ended within a day
}

// MapStatus is how full a part of the datapath is.
type MapStatus struct {
	Name     string `json:"name"` // frontends | backends | tableSlots
	Entries  uint64 `json:"entries"`
	Capacity uint64 `json:"capacity"`
	Key      string `json:"key"` // of tclb.yaml, that makes it larger
}

// ReconcileError is why something is not in the maps.
type ReconcileError struct {
	Service string    `json:"service"` // "" for what concerns all
	Error   string    `json:"error"`
	Since   time.Time `json:"since"`
}

// Unhealthy is a backend that fails its health checks, is ejected for what its clients met, or is not found in its VLAN.
type Unhealthy struct {
	Service string     `json:"service"`
	Address netip.Addr `json:"address"`
	Node    string     `json:"node"` // or VLAN, as eth1.100
	Ejected bool       `json:"ejected"`
	Away    bool       `json:"away,omitempty"` // it is not found in its VLAN
	Reason  string     `json:"reason"`         // what the last failed probe met, or "ejected: " and what clients met
	Since   time.Time  `json:"since"`
}

// Counts are how many objects of each kind the node knows.
type Counts struct {
	Services  int `json:"services"`
	Backends  int `json:"backends"`
	Endpoints int `json:"endpoints"`
	Nodes     int `json:"nodes"`
}

// ConntrackStatus is the occupation of the connection table.
type ConntrackStatus struct {
	Entries  uint64 `json:"entries"`
	Capacity uint64 `json:"capacity"`
	Rooms    []Room `json:"rooms"`
}

// Room is the occupation of one part of the connection table.
type Room struct {
	Name      string `json:"name"` // opening | established | closing
	Entries   uint64 `json:"entries"`
	Capacity  uint64 `json:"capacity"`
	Evictions uint64 `json:"evictions"`
}

// Override is what a command sets over a backend's configuration. It survives reloads and
// restarts and ends with its inverse or with the backend's removal.
type Override struct {
	Address string `json:"address"`         // ADDRESS, NODE/ADDRESS, or a container's id or name
	Drain   *bool  `json:"drain,omitempty"` // nil leaves it as it is
	// Weight is a number or "default", which gives it back to the configuration; "" leaves it.
	Weight string `json:"weight,omitempty"`
}

// Overridden names the backends that an Override was applied to: all addresses of a container.
type Overridden struct {
	Addresses []netip.Addr `json:"addresses"`
}

// Applied names the services that an apply wrote.
type Applied struct {
	Services []string `json:"services"`
}

// Flushed counts what a conntrack flush removed.
type Flushed struct {
	Pairs      int `json:"pairs"`
	Affinities int `json:"affinities"`
}
