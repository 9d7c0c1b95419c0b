// Package reach finds out which other nodes can be reached through the tunnel, how far they are, and
// what fits through.
//
// It asks by probes, which the other node's datapath turns round without its proxy: a node whose proxy
// restarts stays reachable, as its containers do. What is found is published; nobody is taken out here.
package reach

import (
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"
)

// Errors of Ping.
var (
	ErrUnknown = errors.New("no such node")
	ErrPlain   = errors.New("a plain VXLAN peer, where nothing answers probes")
)

// Target is a node to watch.
type Target struct {
	ID      uint16
	Name    string
	Address netip.Addr // its end of the tunnel; probes are of its family
	Plain   bool       // a VXLAN device without tclb: never probed, and counts as reachable
	MTU     int        // largest IP packet that should fit to it; 0 = not known, and not tried
}

// State is what is known of a node.
type State struct {
	Target

	// Reachable is the last verdict. A node that was not asked yet has a good one.
	Reachable bool
	// Known says that probes led to the verdict and still can be sent.
	Known bool
	// Since is when the verdict became what it is; LastSeen when the last answer came, zero before the
	// first one.
	Since, LastSeen time.Time
	// Latency is the smoothed time of a probe and its answer, Last that of the last one.
	Latency, Last time.Duration
	// LossRatio is the part of the last 64 probes that were not answered in time.
	LossRatio float64
	// BlackHole says that small probes are answered and those of the size MTU are not.
	BlackHole bool
	Offload   Offload
	Counts    Counts
}

// Counts are the probes of a node by result, since it is watched. A late answer counts as Lost first, and
// as Late when it comes.
type Counts struct {
	Sent, Answered, Lost, Late uint64
}

// Options say how a Prober works. All fields but Publish and DisableOffloads are required.
type Options struct {
	Transport Transport
	// Publish is called by Run with all nodes by name whenever a verdict changed. It must not call back.
	Publish func(map[string]State)
	// DisableOffloads makes the tunnel device send whole packets only, because what it leaves to others
	// to segment arrives broken. It is called once at most, and must not call back.
	DisableOffloads func() error
	Log             *slog.Logger
}

// Prober watches nodes. Create it with New; it is safe for concurrent use.
type Prober struct {
	transport Transport
	publish   func(map[string]State)
	disable   func() error
	log       *slog.Logger
	wake      chan struct{}

	mu      sync.Mutex
	nodes   map[string]*node
	waiting map[uint64]*probe // by token
	dirty   bool              // something is to be published
	failing map[bool]bool     // by "is IPv4": probes could not be sent, which was logged
	tested  *node             // whose offload test is under way
	off     bool              // offloads are disabled
	planned time.Time         // when Run meant to look again
}

// New returns a prober without targets. Nothing is sent before Run.
func New(o Options) *Prober {
	p := &Prober{
		transport: o.Transport, publish: o.Publish, disable: o.DisableOffloads, log: o.Log,
		wake:  make(chan struct{}, 1),
		nodes: make(map[string]*node), waiting: make(map[uint64]*probe), failing: make(map[bool]bool),
	}
	if p.publish == nil {
		p.publish = func(map[string]State) {}
	}
	return p
}

// SetTargets replaces the nodes to watch. What is known of those that stay, stays; under another id or
// address a node is another one.
func (p *Prober) SetTargets(targets []Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	next := make(map[string]*node, len(targets))
	for _, t := range targets {
		t.Address = t.Address.Unmap()
		n := p.nodes[t.Name]
		if n == nil || n.ID != t.ID || n.Address != t.Address || n.Plain != t.Plain {
			n, p.dirty = newNode(t, now), true
		} else if n.MTU != t.MTU {
			n.setMTU(t.MTU, now)
			p.dirty = true
		}
		next[t.Name] = n
	}
	for name, n := range p.nodes {
		if next[name] != n {
			p.forget(n)
			p.dirty = true
		}
	}
	interval := intervalOf(len(next))
	for name, n := range next {
		if p.nodes[name] != n {
			n.due, n.large.due = spread(now, interval), spread(now, largeEvery)
		}
	}
	p.nodes = next
	p.kick()
}

// States returns what is known, by name.
func (p *Prober) States() map[string]State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.states()
}

func (p *Prober) states() map[string]State {
	out := make(map[string]State, len(p.nodes))
	for name, n := range p.nodes {
		out[name] = n.State
	}
	return out
}

// forget drops everything that waits for a node. p.mu is held.
func (p *Prober) forget(n *node) {
	maps.DeleteFunc(p.waiting, func(_ uint64, w *probe) bool { return w.node == n })
	if p.tested == n {
		p.tested = nil
	}
}

// kick makes Run look again.
func (p *Prober) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}
