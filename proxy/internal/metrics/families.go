package metrics

import (
	"runtime"
	"strings"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// family is one metric: what it is called, what it means, how it is labelled and what it is now.
type family struct {
	name   string
	help   string // one line, without backslashes
	kind   string // gauge | counter | summary
	labels []string
	write  func(s *scrape, e *emitter)
}

// families are what a scrape shows from the start, with or without samples, by name.
var families = []family{
	{"tclb_active_connections", "Connections whose handshake is complete and that have not ended.", "gauge", []string{"service", "backend"}, writeActive},
	{"tclb_backend_latency_seconds", "Time a backend took lately to answer a SYN and a first request; 0 if never measured.", "gauge", []string{"service", "backend"}, writeLatency},
	{"tclb_backends", "Backends by what they may be given; one per service, address, port and protocol.", "gauge", []string{"service", "state"}, writeBackends},
	{"tclb_build_info", "1, labelled with the version of the running proxy.", "gauge", []string{"version", "goversion"}, writeBuildInfo},
	{"tclb_bytes_total", "Bytes of IP packets of both directions.", "counter", []string{"service", "backend"}, writeBytes},
	{"tclb_config_errors", "Mistakes in a configuration or services file, whose last good content stays in force.", "gauge", []string{"file"}, writeConfigErrors},
	{"tclb_connection_count_drift", "By how much a recount of the connection table differs from what is counted; 0 unless there is a bug.", "gauge", []string{"count"}, writeDrift},
	{"tclb_connections_total", "Connections begun, counted at their first packet.", "counter", []string{"service", "backend"}, writeConnections},
	{"tclb_conntrack_capacity", "Established and UDP pairs that the connection table has room for: conntrack.maxEntries.", "gauge", nil, writeCapacity},
	{"tclb_conntrack_entries", "Established and UDP pairs in the connection table.", "gauge", nil, writeEntries},
	{"tclb_conntrack_evictions_total", "Pairs that gave way to new ones because their room was full.", "counter", []string{"room"}, writeEvictions},
	{"tclb_conntrack_room_entries", "Pairs in the connection table, by room.", "gauge", []string{"room"}, writeRoomEntries},
	{"tclb_datapath_info", "1, labelled with who carries packets: programs in the kernel (ebpf) or the proxy (userspace).", "gauge", []string{"mode"}, writeMode},
	{"tclb_drops_total", "Packets that the datapath refused.", "counter", []string{"reason"}, writeDrops},
	{"tclb_endpoints", "Container interfaces attached on this node.", "gauge", nil, writeEndpoints},
	{"tclb_etcd_connected", "1 while etcd can be used; no sample without etcd.", "gauge", nil, writeEtcd},
	{"tclb_health_checks_total", "Health checks of backends by result.", "counter", []string{"service", "result"}, writeHealthChecks},
	{"tclb_last_backends", "Backends that stay as their service's last ones though their node's lease in etcd has ended.", "gauge", []string{"service"}, writeLast},
	{"tclb_node_latency_seconds", "Smoothed time of a probe of a node and its answer; 0 if never measured.", "gauge", []string{"node"}, writeNodeLatency},
	{"tclb_node_mtu_blackhole", "1 while packets of the size of the node's MTU are lost and small ones are not.", "gauge", []string{"node"}, writeNodeBlackHole},
	{"tclb_node_mtu_bytes", "Largest IP packet that should fit to a node through the tunnel.", "gauge", []string{"node"}, writeNodeMTU},
	{"tclb_node_probes_total", "Probes of nodes by result; an answer that comes late was counted as lost before.", "counter", []string{"node", "result"}, writeNodeProbes},
	{"tclb_nodes", "Nodes of the cluster by whether they can be reached, this one included.", "gauge", []string{"state"}, writeNodes},
	{"tclb_outlier_ejected", "Backends that are ejected now for what their clients met.", "gauge", []string{"service"}, writeEjected},
	{"tclb_outlier_ejections_total", "Ejections of backends by what most of their clients met.", "counter", []string{"service", "reason"}, writeEjections},
	{"tclb_packets_total", "IP packets of both directions.", "counter", []string{"service", "backend"}, writePackets},
	{"tclb_ready", "1 from the first full reconcile on.", "gauge", nil, writeReady},
	{"tclb_reconcile_errors_total", "Errors while the maps were made equal to the desired state.", "counter", nil, writeReconcileErrors},
	{"tclb_reconcile_repairs_total", "Map entries put right that somebody else had changed.", "counter", nil, writeRepairs},
	{"tclb_reconcile_seconds", "Time to make the maps equal to the desired state.", "summary", nil, writeReconciles},
	{"tclb_services", "Services in the maps.", "gauge", nil, writeServices},
	{"tclb_table_build_seconds", "Time to build lookup tables.", "summary", nil, writeTables},
	{"tclb_table_moved_slots_total", "Slots that changed their owner when a lookup table was replaced.", "counter", []string{"service"}, writeMovedSlots},
	{"tclb_tunnel_bytes_total", "Bytes of packets from and to other nodes, without their outer headers.", "counter", []string{"direction"}, writeTunnelBytes},
	{"tclb_tunnel_drops_total", "Tunnelled packets refused.", "counter", []string{"reason"}, writeTunnelDrops},
	{"tclb_tunnel_packets_total", "Packets from and to other nodes.", "counter", []string{"direction"}, writeTunnelPackets},
}

// scrape is what one scrape read, before any of it is written.
type scrape struct {
	version   string
	mode      string
	nodes     []view.Node
	tunnel    view.Tunnel
	status    view.Status
	services  []view.Service // in the maps
	backends  []view.Backend // in the maps
	last      map[string]uint64
	endpoints int
	findings  []fileFindings
	traffic   []labelledTraffic // empty if it could not be read, as are drops and rooms
	drops     map[datapath.DropReason]uint64
	rooms     map[datapath.Room]datapath.RoomStat
}

type fileFindings struct {
	file string
	n    int
}

func writeBuildInfo(s *scrape, e *emitter)       { e.sample(1, s.version, runtime.Version()) }
func writeReady(s *scrape, e *emitter)           { e.sample(number(s.status.Ready)) }
func writeReconciles(s *scrape, e *emitter)      { e.timing(s.status.Passes) }
func writeTables(s *scrape, e *emitter)          { e.timing(s.status.Tables) }
func writeMode(s *scrape, e *emitter)            { e.sample(1, s.mode) }
func writeReconcileErrors(s *scrape, e *emitter) { e.sample(s.status.Failures) }
func writeRepairs(s *scrape, e *emitter)         { e.sample(s.status.Repaired) }
func writeServices(s *scrape, e *emitter)        { e.sample(uint64(len(s.services))) }
func writeEndpoints(s *scrape, e *emitter)       { e.sample(uint64(s.endpoints)) }

func writeEtcd(s *scrape, e *emitter) {
	if c := s.status.Cluster; c != nil {
		e.sample(number(c.Connected))
	}
}

func writeLast(s *scrape, e *emitter) {
	for i := range s.services {
		e.sample(s.last[s.services[i].Name], s.services[i].Name)
	}
}

func writeConfigErrors(s *scrape, e *emitter) {
	for _, f := range s.findings {
		e.sample(uint64(f.n), f.file)
	}
}

// backendStates are the known values of the label state of tclb_backends.
var backendStates = [...]lb.State{lb.Active, lb.Draining, lb.Unhealthy, lb.Maintenance}

func writeBackends(s *scrape, e *emitter) {
	type key struct {
		service string
		state   lb.State
	}
	count := make(map[key]uint64, len(s.services))
	for i := range s.backends {
		count[key{s.backends[i].Service, s.backends[i].State}]++
	}
	for i := range s.services {
		for _, state := range backendStates {
			e.sample(count[key{s.services[i].Name, state}], s.services[i].Name, state.String())
		}
	}
}

func writeMovedSlots(s *scrape, e *emitter) {
	for i := range s.services {
		e.sample(s.services[i].MovedSlots, s.services[i].Name)
	}
}

func writeActive(s *scrape, e *emitter) {
	for _, t := range s.traffic {
		e.sample(t.active, t.service, t.backend)
	}
}

func writeLatency(s *scrape, e *emitter) {
	for _, t := range s.traffic {
		e.seconds(t.latency, t.service, t.backend)
	}
}

func writeConnections(s *scrape, e *emitter) {
	for _, t := range s.traffic {
		e.sample(t.total, t.service, t.backend)
	}
}

func writePackets(s *scrape, e *emitter) {
	for _, t := range s.traffic {
		e.sample(t.packets, t.service, t.backend)
	}
}

func writeBytes(s *scrape, e *emitter) {
	for _, t := range s.traffic {
		e.sample(t.bytes, t.service, t.backend)
	}
}

func writeDrops(s *scrape, e *emitter) {
	if s.drops == nil {
		return
	}
	for _, reason := range datapath.DropReasons() {
		e.sample(s.drops[reason], reason.String())
	}
}

// rooms are the known values of the label room.
var rooms = [...]datapath.Room{datapath.RoomOpening, datapath.RoomEstablished, datapath.RoomClosing}

func writeEvictions(s *scrape, e *emitter) {
	if s.rooms == nil {
		return
	}
	for _, room := range rooms {
		e.sample(s.rooms[room].Evicted, string(room))
	}
}

// writeEntries and writeCapacity speak of what conntrack.maxEntries bounds, so that one divided by the
// other says how full the table is; the small rooms have samples of their own.
func writeEntries(s *scrape, e *emitter) {
	if s.rooms != nil {
		e.sample(s.rooms[datapath.RoomEstablished].Live)
	}
}

func writeCapacity(s *scrape, e *emitter) {
	if s.rooms != nil {
		e.sample(s.rooms[datapath.RoomEstablished].Capacity)
	}
}

func writeRoomEntries(s *scrape, e *emitter) {
	for _, room := range rooms {
		if stat, ok := s.rooms[room]; ok {
			e.sample(stat.Live, string(room))
		}
	}
}

// writeTunnelDrops counts what the datapath refuses of and for tunnels, under the reasons' own words.
func writeTunnelDrops(s *scrape, e *emitter) {
	for _, reason := range datapath.DropReasons() {
		if name := reason.String(); s.drops != nil && strings.HasPrefix(name, "tunnel-") {
			e.sample(s.drops[reason], name)
		}
	}
}

// results are the known values of the label result.
var results = [...]string{"success", "failure", "timeout"}

func writeHealthChecks(s *scrape, e *emitter) {
	for _, svc := range s.services {
		for i, n := range [...]uint64{svc.Probes.Success, svc.Probes.Failure, svc.Probes.Timeout} {
			e.sample(n, svc.Name, results[i])
		}
	}
}

// writeDrift has the known values of the label count.
func writeDrift(s *scrape, e *emitter) {
	e.sample(s.status.Drift.Active, "active")
	e.sample(s.status.Drift.Load, "load")
	e.sample(s.status.Drift.Groups, "group")
}

func writeEjected(s *scrape, e *emitter) {
	for _, svc := range s.services {
		e.sample(uint64(svc.Ejections.Ejected), svc.Name)
	}
}

// writeEjections has the known values of the label reason.
func writeEjections(s *scrape, e *emitter) {
	for _, svc := range s.services {
		e.sample(svc.Ejections.Refused, svc.Name, "refused")
		e.sample(svc.Ejections.Unanswered, svc.Name, "unanswered")
	}
}

func number(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
