// Package cluster shares what nodes know through etcd, and hides it: which nodes there are, their
// containers and health, the services and commands that hold on all of them, and base tables.
//
// A mirror of etcd's keys is kept by load and watch; what it means goes to the state store as a whole, and
// what this node knows is written when it differs from the mirror. So both directions are comparisons:
// a restart, a lost connection or a key that somebody removed need no case of their own. With etcd away
// the mirror stays, also across a restart.
package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/diskfile"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// Store is what the source needs of the state store.
type Store interface {
	Snapshot() *state.Snapshot
	SetCluster(*state.Cluster)
	Unsent() []state.Override
}

// Options are what a source works with.
type Options struct {
	Etcd     config.Etcd
	Node     string
	StateDir string
	Store    Store
	// Self returns how this node presents itself. Name and Instance are filled in.
	Self func() Node
	// Changed returns a channel that is closed after the next change of the store's snapshot or of Self.
	Changed func() <-chan struct{}
	Log     *slog.Logger

	dial func(context.Context) (kv, error) // tests have their own
	now  func() time.Time
}

// Times of a source.
const (
	firstWait = 2 * time.Second // how long the first view waits for etcd before what was known stands in
	pace      = 10 * time.Millisecond
	saveEvery = 5 * time.Second
)

// Source is this node's part of the cluster. Its methods are safe for concurrent use.
type Source struct {
	Options
	self     string
	instance string
	writes   chan struct{} // something may have to be written
	news     chan struct{} // the mirror changed
	nodes    chan struct{} // for others: the nodes changed
	tables   chan struct{} // for others: tables changed
	started  time.Time

	mu        sync.Mutex // guards all below
	mirror    *mirror
	loaded    bool          // etcd was read in this session
	shown     bool          // the store has a view
	showCount int64         // views so far
	shownAt   int64         // the revision that the store has seen in full
	shows     chan struct{} // closed with the next view
	defs      []state.Definition
	said      map[string]string // problems that are in the log, by what they concern
	sent      map[string]sentOverride
	lease     int64
	written   int64 // revision of the last write
	life      time.Time
	link      kv // of the session; nil without
	status    Status
	lastSeen  []KnownNode

	led       map[string]*ledTable // by key
	offered   map[string]bool      // of led: perhaps not in etcd yet
	current   map[string]bool      // by key: etcd's is what this process made, or went on from
	dropped   map[string]bool      // by key: to be removed if this node leads it
	tableKeys map[string]string    // by service and family
}

// sentOverride is one that was written, and at which revision.
type sentOverride struct {
	override state.Override
	revision int64
}

// New returns a source. Nothing is read or written yet.
func New(o Options) *Source {
	if o.dial == nil {
		o.dial = func(ctx context.Context) (kv, error) { return dialEtcd(ctx, o.Etcd) }
	}
	if o.now == nil {
		o.now = time.Now
	}
	s := &Source{
		Options: o, self: o.Node, started: o.now(), mirror: newMirror(o.Node),
		writes: make(chan struct{}, 1), news: make(chan struct{}, 1), nodes: make(chan struct{}, 1), tables: make(chan struct{}, 1),
		shows: make(chan struct{}), said: make(map[string]string), sent: make(map[string]sentOverride),
		led: make(map[string]*ledTable), offered: make(map[string]bool), dropped: make(map[string]bool), current: make(map[string]bool), tableKeys: make(map[string]string),
	}
	s.status = Status{Endpoints: o.Etcd.Endpoints, Since: s.started, Error: "not connected yet"}
	return s
}

// Run takes part in the cluster until ctx ends, and then leaves it: what this node has published stays
// for restartGrace.
func (s *Source) Run(ctx context.Context) error {
	s.instance = s.loadInstance()
	s.loadCache()
	var wg sync.WaitGroup
	wg.Go(func() { s.present(ctx) })
	wg.Go(func() { s.saveUntil(ctx) })
	s.connectUntil(ctx)
	wg.Wait()
	return nil
}

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *Source) kickWrites() { kick(s.writes) }

// present shows the store what the mirror says, whenever that changed. The first view waits a moment for
// etcd: one made of what was known would be replaced at once.
func (s *Source) present(ctx context.Context) {
	wait := time.NewTimer(firstWait)
	defer wait.Stop()
	loss := time.NewTimer(time.Hour)
	defer loss.Stop()
	for {
		force := false
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
			force = true
		case <-loss.C:
		case <-s.news:
		}
		if next := s.show(force); !next.IsZero() {
			loss.Reset(max(0, next.Sub(s.now())))
		}
		pause(ctx, pace) // a burst of changes is one
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// show gives the store a view and returns when the next node will count as lost, zero if none will.
// Before etcd was read, only force does.
func (s *Source) show(force bool) (next time.Time) {
	s.mu.Lock()
	if !s.loaded && !s.shown && !force {
		s.mu.Unlock()
		return next
	}
	s.shown = true
	now := s.now()
	c := &state.Cluster{Peers: s.mirror.peers(now)}
	if s.defs == nil || s.mirror.servicesChanged {
		s.defs, s.mirror.servicesChanged = s.mirror.definitions(), false
	}
	c.Services = s.defs
	for _, o := range s.mirror.overrides {
		c.Overrides = append(c.Overrides, o)
	}
	for key, o := range s.sent {
		if o.revision <= s.mirror.revision {
			c.Sent = append(c.Sent, o.override)
			delete(s.sent, key)
		}
	}
	s.complain(now)
	if len(s.mirror.tablesChanged) > 0 {
		kick(s.tables)
	}
	next = s.mirror.nextLoss(now)
	revision := s.mirror.revision
	s.mu.Unlock()
	s.Store.SetCluster(c)
	s.tellShown(revision, now)
	s.kickWrites()
	return next
}

// tellShown says that the store has a new view, and whether other nodes came, went or changed.
func (s *Source) tellShown(revision int64, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shownAt = revision
	s.showCount++
	close(s.shows)
	s.shows = make(chan struct{})
	known := s.mirror.known(now)
	if !sameNodes(s.lastSeen, known) {
		s.lastSeen = known
		kick(s.nodes)
	}
}

// Nodes returns the other nodes by name: those that are there, and those that were within a day.
func (s *Source) Nodes() []KnownNode {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mirror.known(s.now())
}

// NodesChanged yields when Nodes changed, once for any number of changes. It is for one reader.
func (s *Source) NodesChanged() <-chan struct{} { return s.nodes }

// loadInstance returns what tells this node from another of its name. It is made once.
func (s *Source) loadInstance() string {
	path := filepath.Join(s.StateDir, "instance")
	if data, err := os.ReadFile(path); err == nil && len(strings.TrimSpace(string(data))) > 0 {
		return strings.TrimSpace(string(data))
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	text := hex.EncodeToString(id[:])
	if err := diskfile.Replace(path, []byte(text+"\n")); err != nil {
		s.Log.Warn("this node is taken for another one after a restart", "err", err)
	}
	return text
}
