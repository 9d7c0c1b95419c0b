package api

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// arenaLine is the granularity of the arena: a table occupies whole lines of 16 slots.
const arenaLine = 16

// nodeStatus puts together what the daemon says and what the maps hold.
func (s *Server) nodeStatus() (Status, error) {
	node, status := s.view.Node(), s.view.Status()
	out := Status{
		Name: node.Name, Address: node.Address, Version: s.version,
		Mode: s.view.Mode().Name, ModeReason: oneLine(s.view.Mode().Reason),
		HostStack: s.view.Config().Datapath.HostStack && s.view.Mode().Name == config.ModeEBPF,
		Ready:     status.Ready, Revision: status.Revision, Applied: status.Applied,
		UptimeSeconds: int64(s.now().Sub(status.StartedAt) / time.Second),
		LastReconcile: status.LastPass,
		Findings:      orEmpty(slices.Clone(s.view.Findings())),
		Errors:        []ReconcileError{},
	}
	for _, e := range status.Errors {
		out.Errors = append(out.Errors, ReconcileError{Service: e.Service, Error: oneLine(e.Err), Since: e.Since})
	}
	out.Unhealthy = make([]Unhealthy, 0, len(status.Unhealthy))
	for _, u := range status.Unhealthy {
		out.Unhealthy = append(out.Unhealthy, Unhealthy(u))
	}
	if err := s.countMaps(&out); err != nil {
		return Status{}, err
	}
	out.Counts.Endpoints = len(s.view.Endpoints())
	nodes := s.nodeRows()
	out.Counts.Nodes = len(nodes)
	out.Unattached = []Unattached{}
	for _, u := range s.view.Unattached() {
		out.Unattached = append(out.Unattached, Unattached(u))
	}
	out.Problems = append(problems(out, s.view.Endpoints()), nodeProblems(nodes)...)
	for _, text := range status.Ways {
		out.Problems = append(out.Problems, oneLine(text))
	}
	out.Problems = append(out.Problems, s.pending()...)
	if c := status.Cluster; c != nil {
		out.Etcd = &Etcd{Endpoints: orEmpty(c.Endpoints), Connected: c.Connected, Since: c.Since, Error: oneLine(c.Error), Nodes: c.Nodes, Lost: c.Lost}
		out.Problems = append(out.Problems, clusterProblems(c, s.view.Backends(""))...)
	}
	return out, nil
}

// pending returns what the configuration asks for and this release does not do.
func (s *Server) pending() []string {
	mode := s.view.Mode().Name
	out := s.view.Config().Pending(mode)
	for _, svc := range s.view.Services() {
		for _, text := range config.PendingIn(&svc.Service, mode) {
			out = append(out, "service "+svc.Name+": "+text)
		}
	}
	return out
}

// countMaps fills in what is read from the datapath.
func (s *Server) countMaps(out *Status) error {
	frontends, err := s.datapath.Frontends()
	if err != nil {
		return fmt.Errorf("read frontends: %w", err)
	}
	backends, err := s.datapath.Backends()
	if err != nil {
		return fmt.Errorf("read backends: %w", err)
	}
	rooms, err := s.datapath.Rooms()
	if err != nil {
		return fmt.Errorf("read connection table: %w", err)
	}
	for _, svc := range s.view.Services() {
		if svc.ID != 0 {
			out.Counts.Services++
		}
	}
	for _, b := range s.view.Backends("") {
		if b.ID != 0 {
			out.Counts.Backends++
		}
	}
	// What is left of a backend that went is only its generation: its room is free.
	maps.DeleteFunc(backends, func(_ uint32, b datapath.Backend) bool { return !b.Live && b.Service == 0 })
	sizes := s.datapath.Sizes()
	out.Maps = []MapStatus{
		{"frontends", uint64(len(frontends)), uint64(sizes.MaxServices), "datapath.maxServices"},
		{"backends", uint64(len(backends)), uint64(sizes.MaxBackends), "datapath.maxBackends"},
		{"tableSlots", arenaUse(frontends), uint64(sizes.TableSlots), "datapath.tableSlots"},
	}
	out.Conntrack.Rooms = []Room{}
	for _, name := range []datapath.Room{datapath.RoomOpening, datapath.RoomEstablished, datapath.RoomClosing} {
		r := rooms[name]
		out.Conntrack.Entries += r.Live
		out.Conntrack.Capacity += r.Capacity
		out.Conntrack.Rooms = append(out.Conntrack.Rooms, Room{Name: string(name), Entries: r.Live, Capacity: r.Capacity, Evictions: r.Evicted})
	}
	return nil
}

// arenaUse returns how many slots the tables in use occupy. Frontends share tables.
func arenaUse[K comparable](frontends map[K]datapath.Frontend) uint64 {
	regions := make(map[datapath.Region]bool, 2*len(frontends))
	for _, f := range frontends {
		regions[f.Table], regions[f.Members] = true, true
	}
	var total uint64
	for r := range regions {
		total += (uint64(r.Len) + arenaLine - 1) / arenaLine * arenaLine
	}
	return total
}

// problems returns what somebody should look at, a line each: what is wrong, then what to do.
func problems(st Status, endpoints []view.Endpoint) []string {
	out := []string{}
	add := func(format string, args ...any) { out = append(out, oneLine(fmt.Sprintf(format, args...))) }
	if !st.Ready {
		add("not ready: the first reconcile is not complete; the log says what it waits for")
	}
	for _, f := range st.Findings {
		add("%s", f)
	}
	for _, e := range st.Errors {
		if e.Service == "" {
			add("reconcile: %s", e.Error)
		} else {
			add("service %s: %s", e.Service, e.Error)
		}
	}
	for _, m := range st.Maps {
		if m.Entries >= m.Capacity {
			add("map %s is full (%d of %d): raise %s in tclb.yaml and restart the proxy", m.Name, m.Entries, m.Capacity, m.Key)
		}
	}
	for _, r := range st.Conntrack.Rooms {
		if r.Name == string(datapath.RoomEstablished) && r.Entries >= r.Capacity {
			add("connection table is full (%d of %d), %s: raise conntrack.maxEntries in tclb.yaml and restart the proxy", r.Entries, r.Capacity, whenFull(st.Mode))
		}
	}
	for _, u := range st.Unhealthy[:min(len(st.Unhealthy), maxNames)] {
		what := "fails its health checks"
		switch {
		case u.Ejected:
			what = "is ejected"
		case u.Away:
			what = "cannot be reached"
		}
		add("service %s: backend %s %s since %s: %s", u.Service, nodeAddress(u.Node, u.Address), what, u.Since.UTC().Format(time.RFC3339), strings.TrimPrefix(u.Reason, "ejected: "))
	}
	if more := len(st.Unhealthy) - maxNames; more > 0 {
		add("%d more backends are unhealthy: tclb status -o json names them", more)
	}
	if len(st.Unattached) > 0 {
		add("not attached, since they were started before their network was chained to tclb-cni: restart %s", names(st.Unattached))
	}
	for _, e := range endpoints {
		for _, note := range e.Notes {
			add("endpoint %.12s %s: %s", e.ContainerID, e.Ifname, note)
		}
	}
	return out
}

// clusterProblems returns the lines about etcd and the other nodes.
func clusterProblems(c *view.Cluster, backends []view.Backend) []string {
	var out []string
	if !c.Connected {
		out = append(out, fmt.Sprintf("etcd cannot be used since %s, what was known stays in force: %s", c.Since.UTC().Format(time.RFC3339), oneLine(c.Error)))
	}
	for _, p := range c.Problems {
		out = append(out, oneLine(p))
	}
	said := make(map[string]bool)
	for _, b := range backends {
		line := fmt.Sprintf("service %s: backend %s stays as one of the last, though its node's lease has ended: start the node, or add backends", b.Service, nodeAddress(b.Node, b.Address))
		if b.Lost && !said[line] {
			said[line] = true
			out = append(out, line)
		}
	}
	return out
}

// maxNames is how many containers a line names, and how many unhealthy backends have lines.
const maxNames = 10

// nodeAddress names a backend as commands take it.
func nodeAddress(node string, address netip.Addr) string {
	if node == "" {
		return address.String()
	}
	return node + "/" + address.String()
}

// names returns "web-1 (podman), web-2 (podman) and 3 more": containers and their networks.
func names(list []Unattached) string {
	words := make([]string, 0, maxNames)
	for _, u := range list[:min(len(list), maxNames)] {
		name := u.Name
		if name == "" {
			name = fmt.Sprintf("%.12s", u.ContainerID)
		}
		words = append(words, fmt.Sprintf("%s (%s)", name, u.Network))
	}
	out := strings.Join(words, ", ")
	if more := len(list) - len(words); more > 0 {
		out += fmt.Sprintf(" and %d more", more)
	}
	return out
}

// whenFull says what becomes of a new connection for which the table has no room: a proxy that carries them itself has none
// to spare.
func whenFull(mode string) string {
	if mode == config.ModeUserspace {
		return "new connections are refused"
	}
	return "idle flows give way"
}
