// Package config reads tclb.yaml and the services files: text in, typed values and findings out.
//
// Every mistake is reported, with the place to change, and nothing is coerced. A file with a
// mistake has no effect; Merge decides which version of each file counts then. The package
// keeps no clock, log or watcher: it returns values, and its callers act.
package config

import (
	"net/netip"
	"os"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// DefaultPath is where tclb.yaml is looked for.
const DefaultPath = "/etc/tclb/tclb.yaml"

// Config is tclb.yaml. It is read-only once loaded; a reload yields another one.
type Config struct {
	// Node says who this node is (key node).
	Node Node

	// ServicesDir is the directory of the services files (key servicesDir). An absolute path.
	// Default: /etc/tclb/services.d. A change needs a restart.
	ServicesDir string

	// Datapath sizes and switches what runs in the kernel (key datapath).
	Datapath Datapath

	// Listen is where HTTP is served: /metrics, /healthz, /readyz, /api/v1/... and the status
	// page (key listen). There is no authentication: anything but loopback shows services and
	// clients to whoever can connect. Default: 127.0.0.1:9464; "" turns it off. A change
	// needs a restart. Example: "[::1]:9464".
	Listen string

	// VIPPool are the prefixes, one per family, from which a service without vips gets one VIP
	// each (key vipPool). A larger prefix makes it likelier that nodes without etcd choose the same
	// VIP for a name. Must not overlap a network in use. Default: none. Example: [10.96.0.0/16].
	VIPPool []netip.Prefix

	// Uplinks are the devices on which VIPs also answer clients from outside (key uplinks).
	// Default: none. Example: [eth0].
	Uplinks []string

	// Announce answers ARP and neighbour discovery for VIPs on the uplinks (key announce), so
	// that hosts of that link need no route. Of the nodes on one link a single one answers for a VIP, so
	// all of them must have the same value here. Default: false.
	Announce bool

	// Tunnel is how packets travel to backends on other nodes (key tunnel).
	Tunnel Tunnel

	// Nodes are the static peers (key nodes), not needed with etcd. This node may be among them, so
	// that all nodes can share one list. Default: none.
	Nodes []Peer

	// Etcd is the store through which nodes share services and containers (key etcd).
	Etcd Etcd

	// Conntrack bounds how many flows are remembered, and for how long (key conntrack).
	Conntrack Conntrack

	// Runtimes is where container runtimes are asked for what CNI does not tell (key runtimes).
	Runtimes Runtimes

	file string                    // where it was read from
	at   map[netip.Prefix]position // where the prefixes of VIPPool stand
	etcd map[string]spot           // where etcd's files are named, by key
}

// Node says who this node is.
type Node struct {
	// Name is the node's name for its peers and in listings (key node.name). Unique in a
	// cluster. Default: the host name. A change needs a restart. Example: node-a.
	Name string

	// Address is the underlay address that peers tunnel to (key node.address). The zero value,
	// which is the default, stands for the source address of the default route.
	// Example: 192.0.2.11.
	Address netip.Addr
}

// The values of datapath.mode.
const (
	ModeAuto      = "auto"
	ModeEBPF      = "ebpf"
	ModeUserspace = "userspace"
)

// Datapath sizes and switches what runs in the kernel.
type Datapath struct {
	// Mode is auto, ebpf or userspace (key datapath.mode): by programs in the kernel, or by the proxy
	// itself. auto is ebpf, or userspace where this process may not use BPF. Default: auto. A change
	// needs a restart.
	Mode string

	// HostStack keeps balanced packets on the host's routing and firewall path (key
	// datapath.hostStack): slower, but every firewall rule sees them. Default: false.
	HostStack bool

	// SocketLB translates when a local process connects instead of packet by packet (key
	// datapath.socketLB). Default: false.
	SocketLB bool

	// AntiSpoof lets a container send into services from its own addresses only (key
	// datapath.antiSpoof). Default: true.
	AntiSpoof bool

	// HairpinAddress is the source that a container sees when it reaches itself through a VIP,
	// one per family (key datapath.hairpinAddress). A family that is left out keeps its default.
	// Default: [169.254.77.1, "fd00:7c1b::1"].
	HairpinAddress []netip.Addr

	// MaxServices is the room for frontends: VIP, port and protocol (key datapath.maxServices).
	// More costs memory only. Default: 65536. A change needs a restart.
	MaxServices int

	// MaxBackends is the room for backends (key datapath.maxBackends). Default: 262144. A change
	// needs a restart.
	MaxBackends int

	// TableSlots is the room for all services' lookup tables together, in slots of 4 bytes (key
	// datapath.tableSlots). A service takes about 100 slots a backend. Default: 4194304. A
	// change needs a restart.
	TableSlots int
}

// Tunnel is how packets travel to backends on other nodes.
type Tunnel struct {
	// Protocol of the tunnel (key tunnel.protocol): vxlan. Default: vxlan.
	Protocol string

	// Port is the UDP port on every node (key tunnel.port). The kernel does not let our device share it
	// with others: where the host has a VXLAN device already, choose another one. Default: 4789.
	Port uint16

	// VNI is the tunnel network's number (key tunnel.vni), the same on all nodes of a cluster and
	// different from other clusters'. 1 to 16777215. Default: 7654.
	VNI uint32

	// SNAT says when the client's address is replaced by the node's on the way to a peer (key
	// tunnel.snat): auto where the client's subnet also exists there, always or never.
	// Default: auto.
	SNAT string

	// MTU is the largest packet that goes through the tunnel, without its headers (key tunnel.mtu).
	// At least 1280, which IPv6 needs. Default: 0, for each node what the way to it lets through.
	MTU int
}

// Peer is another node, known without etcd.
type Peer struct {
	// Name is the peer's node.name (key nodes[].name). Required. Example: node-b.
	Name string

	// Address is the peer's underlay address (key nodes[].address). Required. Example: 192.0.2.12.
	Address netip.Addr

	// Subnets are the peer's container subnets (key nodes[].subnets). Default: none.
	// Example: [10.89.0.0/16].
	Subnets []netip.Prefix

	// MAC is the Ethernet address of the peer's VXLAN device (key nodes[].mac), for peers that
	// have a plain one instead of tclb. Default: "", worked out from the peer's address.
	MAC string
}

// Etcd is the store through which nodes share services and containers.
type Etcd struct {
	// Endpoints are the servers (key etcd.endpoints). Default: none, etcd is not used.
	// Example: [https://192.0.2.20:2379]. A change of any etcd key needs a restart.
	Endpoints []string

	// Prefix of all keys (key etcd.prefix); clusters that share an etcd need different ones.
	// Default: /tclb.
	Prefix string

	// LeaseTTL is after how long a silent node counts as dead (key etcd.leaseTTL): shorter
	// notices it sooner, longer tolerates slower networks. Default: 10s.
	LeaseTTL time.Duration

	// RestartGrace is how long a node that was stopped on purpose keeps its place (key
	// etcd.restartGrace). Default: 5m.
	RestartGrace time.Duration

	// User to log in as (key etcd.user). Default: "", no login.
	User string

	// PasswordFile holds the user's password, on its first line (key etcd.passwordFile). Default: "".
	PasswordFile string

	// TLS files (key etcd.tls).
	TLS TLS
}

// TLS names PEM files. They are read when a connection is made, so they can be renewed in place.
type TLS struct {
	// CA certificates that the server's is checked with (key etcd.tls.ca). Default: "", the system's.
	CA string

	// Cert and Key are the client's certificate and its key (keys etcd.tls.cert and .key), both
	// or none. Default: "".
	Cert, Key string
}

// Conntrack bounds how many flows are remembered, and for how long.
type Conntrack struct {
	// MaxEntries is the room for pairs of established and UDP flows (key conntrack.maxEntries);
	// half-open flows have a quarter as much beside it. When full, the least recently used
	// goes. Default: 262144. A change needs a restart, which keeps the flows.
	MaxEntries int

	// Timeouts are the idle times after which flows are forgotten (keys conntrack.tcpEstablished,
	// tcpSyn, tcpFin, udp and udpStream); a service can have its own. Default: 2h15m, 60s, 30s, 30s
	// and 180s. All of them count here, so none is zero.
	lb.Timeouts
}

// Runtimes is where container runtimes are asked for what CNI does not tell. Nothing of it need be
// there. A change of any key needs a restart.
type Runtimes struct {
	// Podman is the socket of podman's API, for labels (key runtimes.podman). Default: "",
	// /run/podman/podman.sock if it is there, else the podman command; "off" asks neither.
	Podman string

	// Containerd is containerd's socket, for labels (key runtimes.containerd). Default: "",
	// /run/containerd/containerd.sock; "off" does not ask.
	Containerd string

	// CNIConfig are the directories of the runtimes' conflists (key runtimes.cniConfig): they say
	// which networks tclb-cni is chained to. Default: [/etc/cni/net.d, /opt/cni/config].
	CNIConfig []string

	// CNICache is libcni's cache directory (key runtimes.cniCache), which says which containers
	// are on those networks. Default: /var/lib/cni.
	CNICache string
}

// Default returns what holds where tclb.yaml says nothing.
func Default() *Config {
	name, err := os.Hostname()
	if err != nil {
		name = "localhost"
	}
	return &Config{
		Node:        Node{Name: name},
		ServicesDir: "/etc/tclb/services.d",
		Datapath: Datapath{
			Mode:      ModeAuto,
			AntiSpoof: true,
			HairpinAddress: []netip.Addr{
				netip.MustParseAddr("169.254.77.1"),
				netip.MustParseAddr("fd00:7c1b::1"),
			},
			MaxServices: 65536,
			MaxBackends: 262144,
			TableSlots:  4194304,
		},
		Listen: "127.0.0.1:9464",
		Tunnel: Tunnel{Protocol: "vxlan", Port: 4789, VNI: 7654, SNAT: "auto"},
		Etcd:   Etcd{Prefix: "/tclb", LeaseTTL: 10 * time.Second, RestartGrace: 5 * time.Minute},
		Conntrack: Conntrack{
			MaxEntries: 262144,
			Timeouts: lb.Timeouts{
				TCPEstablished: 2*time.Hour + 15*time.Minute,
				TCPSyn:         60 * time.Second,
				TCPFin:         30 * time.Second,
				UDP:            30 * time.Second,
				UDPStream:      180 * time.Second,
			},
		},
		Runtimes: Runtimes{CNIConfig: []string{"/etc/cni/net.d", "/opt/cni/config"}, CNICache: "/var/lib/cni"},
	}
}
