package state

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// Store is where the sources leave what they know. Safe for concurrent use: writers take turns.
type Store struct {
	node    string
	log     *slog.Logger
	now     func() time.Time
	changed chan struct{}
	current atomic.Pointer[Snapshot]

	mu           sync.Mutex   // guards all below
	services     []Definition // local and, with etcd, those of the cluster
	local        []Definition
	endpoints    []registry.Endpoint
	hasServices  bool
	hasEndpoints bool
	timeouts     lb.Timeouts
	overrides    overrides
	unhealthy    map[HealthRef]struct{}
	ejections    map[HealthRef]Ejection
	nodes        map[string]Node
	outside      *Outside
	vlans        *VLANs

	shared  bool // with etcd
	cluster *Cluster
	peers   []*peerIndex             // of cluster, by name
	out     map[overrideKey]struct{} // backends of lost nodes that others stand in for
	clashes map[string]bool          // of this node's files with etcd, as said in the log
}

// New returns a store for the node of that name. Drains and weights set by command are read from
// stateDir; unreadable ones are an error in the log and lost, because a proxy that does not start
// is worse.
func New(node, stateDir string, timeouts lb.Timeouts, log *slog.Logger) *Store {
	s := &Store{
		node:     node,
		log:      log,
		now:      time.Now,
		timeouts: timeouts,
		changed:  make(chan struct{}, 1),
		out:      make(map[overrideKey]struct{}),
		outside:  &Outside{},
		vlans:    &VLANs{},
	}
	if err := s.overrides.load(stateDir); err != nil {
		log.Error("drains and weights set by command are lost", "err", err)
	}
	return s
}

// Changed yields after the snapshot changed, once for any number of changes.
func (s *Store) Changed() <-chan struct{} { return s.changed }

// Snapshot returns the desired state, or nil before every source has reported.
func (s *Store) Snapshot() *Snapshot { return s.current.Load() }

// SetServices replaces the services. They are the caller's no more.
func (s *Store) SetServices(defs []Definition) {
	s.update(func() {
		s.local = defs
		s.combine()
		s.hasServices = true
	})
}

// SetEndpoints replaces the attached containers. Only those whose veth is there belong in it.
func (s *Store) SetEndpoints(endpoints []registry.Endpoint) {
	s.update(func() {
		s.endpoints = endpoints
		s.hasEndpoints = true
	})
}

// SetTimeouts replaces the node-wide timeouts.
func (s *Store) SetTimeouts(t lb.Timeouts) {
	s.update(func() { s.timeouts = t })
}

// update changes an input and publishes what follows from it.
func (s *Store) update(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	s.publish(nil)
}

// publish merges and publishes, unless nothing changed. touched names the services that the change
// concerns; nil stands for all. s.mu is held.
func (s *Store) publish(touched map[string]bool) {
	if !s.hasServices || !s.hasEndpoints || s.shared && s.cluster == nil {
		return
	}
	before := s.current.Load()
	next := s.merge(before, touched)
	if before != nil {
		if same(before, next) {
			return
		}
		next.Revision = before.Revision
	}
	next.Revision++
	s.current.Store(next)
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// same says whether two snapshots mean the same.
func same(a, b *Snapshot) bool {
	return a.Timeouts == b.Timeouts && a.Outside == b.Outside && a.VLANs == b.VLANs && maps.Equal(a.Nodes, b.Nodes) && slices.Equal(a.Services, b.Services) &&
		slices.EqualFunc(a.Endpoints, b.Endpoints, sameEndpoint)
}

// sameEndpoint compares what listings and merges use. A plugin that rewrites an endpoint file makes
// a new attachment of it, with another interface or time.
func sameEndpoint(a, b registry.Endpoint) bool {
	return a.ID == b.ID && a.HostIfindex == b.HostIfindex && a.MAC == b.MAC && a.Created.Equal(b.Created) &&
		a.Source == b.Source && a.Container == b.Container && a.Port == b.Port && a.Network == b.Network &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Services, b.Services) &&
		slices.Equal(a.Names, b.Names) && sameWeight(a.Weight, b.Weight)
}

func sameWeight(a, b *int) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
