// Package view is what a running proxy shows of itself, and what it lets others ask of it: the
// boundary between the daemon and the API, the metrics and the commands behind them.
//
// It holds plain data and one interface. Values are snapshots: nobody else changes them.
package view

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
)

// Errors of requests. The error's text names the object and says what to do.
var (
	ErrNoService = errors.New("no such service")
	ErrNoBackend = errors.New("no such backend")
	ErrForeign   = errors.New("defined in a file that tclb did not write")
	ErrNoNode    = errors.New("no such node")
	ErrNoPing    = errors.New("cannot be pinged")
	ErrAway      = errors.New("nothing was changed")
)

// InvalidError says that applied services were refused. Nothing changed.
type InvalidError struct {
	Findings []config.Finding
}

// Error returns the first finding and how many more there are.
func (e *InvalidError) Error() string {
	if len(e.Findings) == 0 {
		return "invalid services"
	}
	if n := len(e.Findings) - 1; n > 0 {
		return fmt.Sprintf("%s (and %d more)", e.Findings[0], n)
	}
	return e.Findings[0].String()
}

// View is the running proxy. Every method is safe for concurrent use.
type View interface {
	// Node returns this node.
	Node() Node
	// Mode returns who carries packets.
	Mode() Mode
	// Nodes returns all nodes of the cluster by name, this one included.
	Nodes() []Node
	// Tunnel returns what went through the tunnel device, since it was made.
	Tunnel() Tunnel
	// Config returns the settings that are in force. Do not change it.
	Config() *config.Config
	// Services returns the services by name.
	Services() []Service
	// Backends returns the rows of one service, or of all with "", by service, address, port and
	// protocol. Their connections are at datapath.BackendStat(ID).
	Backends(service string) []Backend
	// Endpoints returns the containers attached here, by container id and interface name.
	Endpoints() []Endpoint
	// Unattached returns the containers on networks chained to tclb-cni that are not attached, by
	// network and id. It may take half a second.
	Unattached() []Unattached
	// Findings returns the mistakes of services files and of the last reload of tclb.yaml, in
	// file order.
	Findings() []config.Finding
	// Files returns the names of all services files that were read, so that a metric can be 0.
	Files() []string
	// Status returns how the last passes over the maps went.
	Status() Status

	// Apply validates services (the text of a services file) together with what runs and writes
	// each to etcd, so that every node has it, or without etcd to a file of tclb's own. It returns their names once they are in the maps, or
	// *InvalidError, or ErrForeign if another file defines one of them, or ErrAway if etcd is.
	Apply(ctx context.Context, name string, data []byte) ([]string, error)
	// Delete removes a service that Apply wrote: ErrNoService, ErrForeign, ErrAway.
	Delete(ctx context.Context, service string) error
	// SetDrain drains or undrains a backend by command. The backend is an address, node/address, vlan/address,
	// or a container's id or name: ErrNoService, ErrNoBackend.
	SetDrain(ctx context.Context, service, backend string, drain bool) error
	// SetWeight sets a backend's weight by command; nil gives it back to the file.
	SetWeight(ctx context.Context, service, backend string, weight *int) error
	// PingNode sends one probe to a node and waits for its answer, up to a second: ErrNoNode, ErrNoPing.
	PingNode(ctx context.Context, name string) (Pong, error)
	// Flush forgets the flows and affinities of a service, or of all with "".
	Flush(ctx context.Context, service string) (Flushed, error)
}

// Mode is who carries packets: programs in the kernel (ebpf), or the proxy itself (userspace).
type Mode struct {
	Name   string
	Reason string // why, where it was not asked for
}

// Node is a node as listings show it.
type Node struct {
	Name      string
	Address   netip.Addr // underlay address; not valid if the node has none
	Reachable bool
	ID        uint16 // that flows have as their zone; 0 for this node
	Self      bool
	Plain     bool   // a VXLAN device without tclb, which is not probed
	Version   string // of its proxy; "" where it did not tell
	NoTunnel  bool   // this node carries connections itself, and has no way to it

	// The rest is zero for this node, and for one that was not probed yet.
	Latency         time.Duration
	LossRatio       float64
	MTU             int       // largest IP packet that should fit through the tunnel
	MTUBlackHole    bool      // packets of that size are lost, small ones are not
	OffloadsBroken  bool      // segmented packets are lost, plain ones are not
	Since, LastSeen time.Time // of the verdict; of the last answer
	Probes          NodeProbes
}

// NodeProbes counts the probes of a node by result. A late answer was counted as lost before.
type NodeProbes struct {
	Answered, Lost, Late uint64
}

// Pong is what came of a ping.
type Pong struct {
	Address  netip.Addr
	Size     int // of the IP packet
	Answered bool
	Took     time.Duration
}

// Tunnel counts what other nodes sent and were sent, as inner packets.
type Tunnel struct {
	PacketsIn, PacketsOut, BytesIn, BytesOut uint64
}

// Service is a service and where it stands.
type Service struct {
	lb.Service        // VIPs assigned, Backends those that serve now
	File       string // the services file that defines it
	ID         uint32 // in the maps; 0 = not there yet
	Error      string // why the maps do not hold it as it is here; empty = they do
	MovedSlots uint64 // slots that changed owner by updates of the table, since the start
	Probes     Probes // of its backends, since its health checks began
	Ejections  Ejections
}

// Probes counts the health checks of a service by result.
type Probes struct {
	Success, Failure, Timeout uint64
}

// Ejections counts the backends of a service that failed their clients, since that is watched.
type Ejections struct {
	Refused, Unanswered uint64 // by what most of the clients met
	Ejected             int    // now
}

// Unhealthy is a backend that fails its health checks, is ejected, or is not found in its VLAN.
type Unhealthy struct {
	Service string
	Address netip.Addr
	Node    string // or VLAN, as eth1.100
	Ejected bool
	Away    bool   // it is not found in its VLAN
	Reason  string // what the last failed probe met, or "ejected: " and what clients met
	Since   time.Time
}

// Backend is one row of `backend list`: a backend and one target port.
type Backend struct {
	ID       uint32 // in the maps; 0 = not there
	Service  string
	Address  netip.Addr
	Port     uint16 // target port
	Protocol lb.Protocol
	Node     string // empty for backends that no node owns
	VLAN     lb.VLAN
	Weight   int
	State    lb.State
	Local    bool      // a container attached on this node
	Endpoint string    // registry.Endpoint.ID of it
	Since    time.Time // when it got its state, as far as this process knows
	Lost     bool      // its node's lease has ended; it stays as one of the service's last
}

// Place is lb.Backend.Place.
func (b *Backend) Place() string { return (&lb.Backend{Node: b.Node, VLAN: b.VLAN}).Place() }

// Endpoint is a container attached here.
type Endpoint struct {
	registry.Endpoint
	Joined []string // services it is a member of now, by name
	Notes  []string // what is odd about it, one line each: what, then what to do
}

// Unattached is a container on a network that is chained to tclb-cni, which itself is not attached:
// it was started before. It reaches VIPs, and serves, through the host's stack.
type Unattached struct {
	ContainerID string
	Name        string // what the runtime calls it; "" where it did not tell
	Network     string
	Ifname      string
}

// Timing counts something that takes time, since the start of the proxy.
type Timing struct {
	Count uint64
	Total time.Duration
}

// Status is how the reconciler is doing.
type Status struct {
	Ready     bool   // the first full pass is done
	Revision  uint64 // of the desired state
	Applied   uint64 // revision that the maps were last made equal to
	Errors    []ServiceError
	Unhealthy []Unhealthy // by service, address and node
	LastPass  time.Time
	LastTook  time.Duration
	Passes    Timing
	Tables    Timing // tables built
	Failures  uint64 // errors since the start
	Repaired  uint64 // map entries that somebody else had changed
	StartedAt time.Time
	Ways      []string       // what is wrong with the ways to other nodes and to clients outside, a line each
	Drift     datapath.Drift // of the counters of connections, by the last recount
	Cluster   *Cluster       // nil without etcd
}

// Cluster is how what nodes share through etcd stands.
type Cluster struct {
	Endpoints []string
	Connected bool
	Since     time.Time // of Connected
	Error     string    // why it is not connected
	Nodes     int       // other nodes that are there
	Lost      int       // and those whose lease has ended within a day
	Problems  []string  // what in etcd does not count, a line each
}

// ServiceError is why something is not in the maps. Service is empty for what concerns all.
type ServiceError struct {
	Service string
	Err     string
	Since   time.Time
}

// Flushed counts what Flush removed.
type Flushed struct {
	Pairs      int
	Affinities int
}
