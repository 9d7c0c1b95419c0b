// Package outlier ejects backends that fail their clients, by what the datapath counts anyway: nobody
// is probed.
//
// The counters of every backend and port are read each Every. What they say are outcomes:
//
//   - answered: a SYN got its SYN-ACK. A success.
//   - refused: a RST in answer to a SYN, or an ICMP unreachable about a packet, of UDP too. A failure.
//   - unanswered: a SYN that is still without either 300 ms later, give or take 50. A failure. A client
//     repeats it only after a second, which is too late to wait for. Answers are taken for those of
//     the oldest SYNs, and a SYN that counted as unanswered is forgotten, so each counts once.
//
// UDP has no successes: no answer can mean that none was due. That leaves its refusals.
//
// A backend is ejected when one of its ports, seen alone,
//
//   - has failed 3 times or more, and in half of its outcomes or more, within a second; or
//   - has failed 3 times or more within 400 ms, and not succeeded once; or
//   - has refused a TCP flow 300 ms ago or earlier, and answered none since.
//
// The first is fair to who fails now and then, the second is quick about who is gone. The third is for
// the datapath's own caution: for three seconds it gives nothing to who refused a flow, so that more
// refusals are not to be had. A RST says that nobody listens, and one of them says it well enough.
//
// At most half of a service's backends of a family, rounded down, are out at a time, so that the last
// one never is: when everybody fails, the network or the clients are more likely to be the
// reason. Only backends count that would serve otherwise; if those become fewer, who was ejected first
// returns first.
//
// An ejection lasts 5 s, and twice as long each time it happens again, up to 5 min; that is forgotten
// after the backend has served as long again as it was out last, and a minute at least. Then
// it is on trial: the datapath gives it one new flow at a time. The first failure ejects
// it again. It is back when each port that it was ejected for has succeeded 3 times; a UDP port, when 3
// flows have begun on it and no refusal follows within a second. Without traffic the trial goes on.
//
// A node that stood still itself blames nobody: time between two readings counts as twice Every at most.
// Nothing is kept on disk. After a restart everybody serves until it fails again.
package outlier

import (
	"cmp"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Every is how often counters are read.
const Every = 100 * time.Millisecond

// Counts are the counters of a backend id, each modulo 2^32. They may begin anew at any time.
type Counts struct {
	Flows    uint32 // begun
	SYNs     uint32 // flows begun by a SYN
	Answered uint32 // SYNs by a SYN-ACK
	Rejected uint32 // SYNs by a RST; packets by an ICMP unreachable
}

// Backend is who is judged, within a service. Another endpoint at the same address is another backend
// and begins anew.
type Backend struct {
	Node     string
	Address  netip.Addr
	Endpoint string // registry.Endpoint.ID of a container attached here; else empty
}

// Port is one target port of a backend.
type Port struct {
	ID       uint32 // of its counters
	Port     uint16
	Protocol lb.Protocol
}

// Target is a backend and what is counted of it.
type Target struct {
	Backend
	Ports []Port
	// Able says that it would serve if it was not ejected.
	Able bool
}

// Report is a backend that is ejected or on trial.
type Report struct {
	Service string
	Backend
	Trial  bool
	Reason string // what it was ejected for
	Since  time.Time
}

// Tally is what became of a service's backends since it is watched.
type Tally struct {
	Refused, Unanswered uint64 // ejections by what most of the failures were
	Ejected             int    // now
}

// Judge watches services. Its methods are safe for concurrent use.
type Judge struct {
	read    func(id uint32) Counts
	log     *slog.Logger
	changed chan struct{}
	wake    chan struct{}

	mu       sync.Mutex // guards all below
	services map[string]*service
	polled   time.Time     // last
	clock    time.Duration // how long this node was awake; outcomes are dated by it
}

// service is one whose backends are watched.
type service struct {
	name     string
	backends map[Backend]*backend
	ordered  []*backend // the same, by address and node
	tally    Tally
	full     bool // somebody else would be ejected if so many were not
}

// New returns a judge of nobody. read returns the counters of an id, and must be quick.
func New(read func(id uint32) Counts, log *slog.Logger) *Judge {
	return &Judge{
		read: read, log: log, changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		services: make(map[string]*service),
	}
}

// Changed yields after somebody was ejected, came on trial or returned, once for any number of changes.
func (j *Judge) Changed() <-chan struct{} { return j.changed }

// SetService gives a service all its backends. Those that stay keep their state, those that are
// missing are forgotten.
func (j *Judge) SetService(name string, targets []Target) {
	j.mu.Lock()
	defer j.mu.Unlock()
	before := j.services[name]
	svc := &service{name: name, backends: make(map[Backend]*backend, len(targets))}
	if before != nil {
		svc.tally, svc.full = before.tally, before.full
	}
	for i := range targets {
		t := &targets[i]
		var b *backend
		if before != nil {
			b = before.backends[t.Backend]
		}
		if b == nil {
			b = &backend{Backend: t.Backend}
		}
		b.able = t.Able
		b.setPorts(t.Ports, j.read)
		svc.backends[t.Backend] = b
		svc.ordered = append(svc.ordered, b)
	}
	slices.SortFunc(svc.ordered, compareBackends)
	if before != nil {
		j.forget(before, svc.backends)
	}
	j.services[name] = svc
	notify(j.wake)
}

// RemoveService ends the watching of a service. Its backends are ejected no more.
func (j *Judge) RemoveService(name string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if svc := j.services[name]; svc != nil {
		delete(j.services, name)
		j.forget(svc, nil)
	}
}

// forget tells if somebody who was ejected or on trial is not among those who stay. j.mu is held.
func (j *Judge) forget(svc *service, stay map[Backend]*backend) {
	for _, b := range svc.ordered {
		if b.phase != serving && stay[b.Backend] == nil {
			notify(j.changed)
			return
		}
	}
}

// Outliers returns who is ejected or on trial, by service, address and node.
func (j *Judge) Outliers() []Report {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []Report
	for _, svc := range j.services {
		for _, b := range svc.ordered {
			if b.phase != serving {
				out = append(out, Report{Service: svc.name, Backend: b.Backend, Trial: b.phase == onTrial, Reason: b.reason, Since: b.since})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Report) int { return cmp.Compare(a.Service, b.Service) })
	return out
}

// Tally returns what became of a service's backends; the zero value if it is not watched.
func (j *Judge) Tally(name string) Tally {
	j.mu.Lock()
	defer j.mu.Unlock()
	svc := j.services[name]
	if svc == nil {
		return Tally{}
	}
	t := svc.tally
	for _, b := range svc.ordered {
		if b.phase == ejected {
			t.Ejected++
		}
	}
	return t
}

func compareBackends(a, b *backend) int {
	return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Endpoint, b.Endpoint))
}

// notify leaves word in a channel with room for one.
func notify(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
