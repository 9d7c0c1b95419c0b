package datapath

import (
	"net/netip"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Region is a part of the arena: Len positions from Offset on. The zero value is no region.
type Region struct {
	Offset uint32
	Len    uint32
}

// FrontendKind says what an entry of the frontends map stands for.
type FrontendKind uint8

// The kinds of frontends.
const (
	KindService FrontendKind = iota // a VIP's port: balanced
	KindVIP                         // a VIP as such, key with port and protocol 0: other ports are refused
	KindBackend                     // a backend's own address: direct flows to it are tracked
)

// Frontend is the record behind an lb.Frontend. Service, tables and policy change in one update.
type Frontend struct {
	Kind      FrontendKind
	Service   uint32 // service id
	Scheduler lb.Scheduler
	Affinity  bool
	Allow     bool   // sources are checked against the allow map
	Table     Region // slot -> seat, as Pack made it; Len 0 = no backends
	Slots     uint32 // of Table; 0 = as many as it has positions
	Narrow    uint8  // a position of Table holds 1 << Narrow slots
	Listed    bool   // Table is a list that is walked in order; else Len is a power of two
	Own       bool   // of a VIP: an address of this node too; what its processes use is theirs
	Announce  bool   // of a VIP: this node answers ARP and ND for it on its uplinks
	DSR       bool   // backends' nodes may answer clients outside by themselves
	Head      uint32 // least-conn: that many slots in front list who serves, a sequence follows
	Members   Region // seat -> backend id, 0 = none
	Epoch     uint32 // which build of the table
	Group     uint32 // group id, 0 = none
	Weight    uint32 // sum over the backends in the table
}

// Service is the record of a service, by id. Id 0 holds the node-wide timeouts.
type Service struct {
	Gen        uint32
	Timeouts   lb.Timeouts   // every field set
	Affinity   time.Duration // 0 = none
	LoadFactor float64       // bounded-load
	BaseGen    uint32        // rises when seats change meaning
}

// Backend is the record of one (service, node, address, port, protocol), by backend id.
type Backend struct {
	Address  netip.Addr
	Port     uint16
	Protocol lb.Protocol
	Zone     uint16 // node id, or zone of a VLAN; 0 = reached from here as it is
	Gen      uint32 // rises whenever the id or the address is given to something else
	Service  uint32
	Ifindex  uint32  // host side of the container's veth; 0 = not attached here
	MAC      [6]byte // the container's
	Live     bool    // flows may go on
	New      bool    // may take new flows
	Local    bool    // attached here: delivered by Ifindex and MAC
	Trial    bool    // a new flow only while no other one is opening
	Weight   uint32
	Owner    uint32 // with Local: the container, as in Endpoint
	Group    uint32 // the group that its load counts in
}

// Group is what the datapath counts for the backends that one table spreads over, by group id.
type Group struct {
	Cursor uint64 // turns taken
	Load   int64  // connections that are opening or established
}

// BackendStat is what the datapath counts for a backend id.
type BackendStat struct {
	Active  uint64 // connections established now
	Load    uint64 // these and those that are opening
	Total   uint64 // connections begun
	Packets uint64 // of connections that ended
	Bytes   uint64

	SYNs     uint32 // TCP connections begun by a SYN; wraps, as the next two
	Answered uint32 // of these: by a SYN-ACK
	Rejected uint32 // by a RST, or for any connection an ICMP unreachable

	SYNLatency   time.Duration // SYN to SYN-ACK; 0 = never measured
	FirstLatency time.Duration // first request to first response
}

// EndpointKey is one address of one attached container.
type EndpointKey struct {
	Address netip.Addr
	Ifindex uint32 // host side of the veth
}

// Endpoint is the record behind an EndpointKey.
type Endpoint struct {
	UpIfindex uint32 // bridge that the veth is a port of; 0 = routed
	UpMAC     [6]byte
	Owner     uint32  // registry.Owner of the container: the same at all its interfaces
	MAC       [6]byte // the container's
}

// AllowKey admits sources in Prefix to a service.
type AllowKey struct {
	Service uint32
	Prefix  netip.Prefix
}

// Settings are what an operator can change while programs run.
type Settings struct {
	HostStack   bool
	AntiSpoof   bool
	HostIfindex uint32 // tclb0; 0 = no host path
	HostMAC     [6]byte
	Hairpin4    netip.Addr
	Hairpin6    netip.Addr
	Tunnel      TunnelSettings
}

// TunnelSettings are what programs have to know to send to other nodes.
type TunnelSettings struct {
	Ifindex uint32 // the VXLAN device; 0 = no overlay
	VNI     uint32
	VTEP    [2]netip.Addr // this node's underlay address by family, 0 = IPv4: the outer source
	SNAT    [2]netip.Addr // the source, by family, of flows whose client's address may be there too
	SNATMin uint16        // first and last of the source ports of these flows; 0 = any from 1024 on
	SNATMax uint16
}

// SNATMode says which flows go to a node under the address of this one.
type SNATMode uint8

// The modes of translation.
const (
	SNATNever  SNATMode = iota
	SNATAlways          // all
	SNATCheck           // those whose client's address is in a Subnet of that node
	SNATInside          // all but those of clients outside
)

// MaxNodes is how many node ids there are; 0 is this node.
const MaxNodes = 4096 // NODES of bpf/lib/types.h

// Node is another node of the cluster, by node id, which is the zone of what comes from it.
type Node struct {
	VTEP netip.Addr // its underlay address
	MAC  [6]byte    // of its tunnel device
	MTU  uint32     // the largest IP packet that fits through the tunnel
	SNAT SNATMode
	DSR  bool // it runs tclb, so that it may be told what a client asked
}

// SubnetKey says that containers of a node have their addresses in Prefix.
type SubnetKey struct {
	Node   uint16
	Prefix netip.Prefix
}

// VLANZones is the first zone of a VLAN; nodes have those below it.
const VLANZones = 4096 // VLAN_ZONES of bpf/lib/types.h

// MaxVLANs is how many zones of VLANs there are.
const MaxVLANs = 4096 // VLANS of bpf/lib/types.h

// VLAN is one that backends are in, by its zone.
type VLAN struct {
	Ifindex uint32 // the device that carries it
	ID      uint16
	MAC     [6]byte // of the device
	MTU     uint32
}

// SourceKey is a prefix in a VLAN in which this node has an address of its own.
type SourceKey struct {
	Zone   uint16
	Prefix netip.Prefix
}

// NeighbourKey is a backend's address in a VLAN.
type NeighbourKey struct {
	Zone    uint16
	Address netip.Addr
}

// Neighbour is the host that has it. What it says of itself is written by the datapath.
type Neighbour struct {
	MAC     [6]byte // zero = not known
	Fixed   bool    // configured, and not learned
	Answers uint32  // how often it said who it is; wraps
}

// FlowState is the room that a pair is in.
type FlowState uint8

// The states of a pair; Established holds UDP flows too.
const (
	FlowOpening     FlowState = 1
	FlowEstablished FlowState = 2
	FlowClosing     FlowState = 3
)

// String returns the listing's word for s.
func (s FlowState) String() string {
	switch s {
	case FlowOpening:
		return "opening"
	case FlowEstablished:
		return "established"
	case FlowClosing:
		return "closing"
	}
	return "free"
}

// Pair is a snapshot of one flow, both directions.
type Pair struct {
	Index       uint32
	Protocol    lb.Protocol
	Client      netip.AddrPort
	VIP         netip.AddrPort // what the client addressed
	Backend     netip.AddrPort // where its packets go
	Zone        uint16         // node id that the client's packets come from by tunnel; 0 = from here
	BackendZone uint16         // node id that they go to by tunnel, or zone of their VLAN; 0 = neither
	State       FlowState
	Direct      bool // to a backend's own address, not balanced
	Return      bool // came by tunnel: another node chose
	DSR         bool // chosen here: its answers may leave elsewhere; with Return: they leave from here
	Leaving     bool // a DSR flow chosen here whose client has sent its FIN: the other one may never be seen
	Active      bool // counted in its backend's active connections
	Service     uint32
	BackendID   uint32
	BackendGen  uint32
	Created     time.Duration // age
	Idle        time.Duration // since the last packet of either direction
	Packets     [2]uint64     // original, reply
	Bytes       [2]uint64
}

// Room names a part of the connection table in metrics.
type Room string

// The rooms.
const (
	RoomOpening     Room = "opening"
	RoomEstablished Room = "established"
	RoomClosing     Room = "closing"
)

// RoomStat is the occupation of one room.
type RoomStat struct {
	Live, Created, Evicted, Expired uint64
	Capacity                        uint64
}

// DropReason is why the datapath refused a packet.
type DropReason uint8
