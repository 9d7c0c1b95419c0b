package runtimes

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// Times of a Learner. Variables, so that tests need not wait.
var (
	// askPause is the least time between two rounds of questions. What happens meanwhile is one
	// round, so starting hundreds of containers does not keep the runtime busy with us.
	askPause = time.Second
	// askTimeout bounds one question. A runtime answers late while it starts or stops a container.
	askTimeout = 10 * time.Second
	// retryFirst and retryLast are how long to wait after a failure; it doubles.
	retryFirst, retryLast = 2 * time.Second, 2 * time.Minute
	// lookEvery is how often to look for a runtime that is not there, and to ask again for labels
	// that can change.
	lookEvery = 30 * time.Second
)

// Options of a Learner.
type Options struct {
	Podman     string // socket of podman's API; "" = the usual ones, then the podman command; Off
	Containerd string // socket of containerd; "" = the usual one; Off
	StateDir   string // where learned labels are kept, so that a restart need not wait for runtimes
	Log        *slog.Logger
	// Publish gets every new list of endpoints, with labels applied as far as they are known.
	Publish func([]registry.Endpoint)
}

// Learner adds labels to endpoints. Safe for concurrent use.
type Learner struct {
	cache    cache
	log      *slog.Logger
	publish  func([]registry.Endpoint)
	runtimes []runtime
	kick     chan struct{}

	mu        sync.Mutex // guards all below
	endpoints []registry.Endpoint
	known     map[string]*lesson // by endpoint id
	silent    map[string]*silence
}

// lesson is what is known about an endpoint's container.
type lesson struct {
	created time.Time // of the attachment, for ids are used again
	labels  Labels
	told    string          // mistakes that are in the log
	asked   map[string]bool // runtimes that answered, knowing the container or not
	owner   string          // the runtime that knows it
}

// silence is a runtime that does not answer.
type silence struct {
	until  time.Time
	wait   time.Duration
	logged string
}

// NewLearner returns a learner. It asks nobody before Run.
func NewLearner(o Options) *Learner {
	l := &Learner{
		cache: cache{o.StateDir}, log: o.Log, publish: o.Publish, kick: make(chan struct{}, 1),
		known: make(map[string]*lesson), silent: make(map[string]*silence),
	}
	if o.Podman != Off {
		l.runtimes = append(l.runtimes, newPodman(o.Podman))
	}
	if o.Containerd != Off {
		l.runtimes = append(l.runtimes, newContainerd(o.Containerd))
	}
	lessons, err := l.cache.load()
	if err != nil {
		l.log.Warn("learned labels are learned again", "err", err)
	}
	for id, c := range lessons {
		l.known[id] = &lesson{created: c.Created, labels: c.Labels, asked: make(map[string]bool)}
	}
	return l
}

// SetEndpoints takes the attached containers and publishes them with the labels known so far.
func (l *Learner) SetEndpoints(endpoints []registry.Endpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endpoints = endpoints
	known := make(map[string]*lesson, len(endpoints))
	for _, e := range endpoints {
		k := l.known[e.ID]
		if k == nil || !k.created.Equal(e.Created) {
			k = &lesson{created: e.Created, asked: make(map[string]bool)}
		}
		known[e.ID] = k
	}
	l.known = known
	l.tell()
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// tell publishes. l.mu is held, so that lists arrive in order.
func (l *Learner) tell() {
	out := make([]registry.Endpoint, len(l.endpoints))
	for i, e := range l.endpoints {
		out[i] = l.known[e.ID].labels.apply(e)
	}
	l.publish(out)
}

// Run asks the runtimes about new containers until ctx ends.
func (l *Learner) Run(ctx context.Context) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	for {
		again := false
		select {
		case <-ctx.Done():
			return nil
		case <-l.kick:
		case <-retry.C:
		case <-look.C:
			again = true
		}
		next := l.round(ctx, again)
		retry.Reset(next)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(askPause):
		}
	}
}

// round asks every runtime about the containers that it has not answered for; again also about those
// whose labels can have changed. It returns when to come back for what failed.
func (l *Learner) round(ctx context.Context, again bool) time.Duration {
	next := time.Hour
	for _, r := range l.runtimes {
		ids := l.open(r, again)
		if len(ids) == 0 {
			continue
		}
		if wait := l.waiting(r); wait > 0 {
			next = min(next, wait)
			continue
		}
		asking, cancel := context.WithTimeout(ctx, askTimeout)
		labels, err := r.labels(asking, ids)
		cancel()
		if ctx.Err() != nil {
			return next
		}
		if err != nil {
			next = min(next, l.failed(r, err))
			continue
		}
		l.learned(r, ids, labels)
	}
	return next
}

// open returns the containers that r is to be asked about.
func (l *Learner) open(r runtime, again bool) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ids []string
	for _, e := range l.endpoints {
		k := l.known[e.ID]
		todo := k.owner == "" && !k.asked[r.name()] || again && r.mutable() && k.owner == r.name()
		if todo && r.mine(e) && !slices.Contains(ids, e.ContainerID) {
			ids = append(ids, e.ContainerID)
		}
	}
	return ids
}

// waiting returns how long r is to be left alone.
func (l *Learner) waiting(r runtime) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.silent[r.name()]; s != nil {
		return time.Until(s.until)
	}
	return 0
}

// failed notes that r did not answer, and returns when to ask again.
func (l *Learner) failed(r runtime, err error) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.silent[r.name()]
	if s == nil {
		s = &silence{wait: retryFirst / 2}
		l.silent[r.name()] = s
	}
	s.wait = min(2*s.wait, retryLast)
	if errors.Is(err, errAbsent) {
		s.wait = lookEvery
		l.log.Debug("no labels from a runtime that is not here", "runtime", r.name(), "err", err)
	} else if s.logged != err.Error() {
		s.logged = err.Error()
		l.log.Warn("labels of containers are not known: asking again from time to time", "runtime", r.name(), "err", err)
	}
	s.until = time.Now().Add(s.wait)
	return s.wait
}

// learned takes an answer of r and publishes what follows from it.
func (l *Learner) learned(r runtime, ids []string, answer map[string]map[string]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.silent, r.name())
	changed := false
	for _, e := range l.endpoints {
		k := l.known[e.ID]
		if !slices.Contains(ids, e.ContainerID) {
			continue
		}
		k.asked[r.name()] = true
		all, found := answer[e.ContainerID]
		if found {
			k.owner = r.name()
		} else if k.owner != r.name() {
			continue // another runtime's
		}
		labels, errs := parseLabels(all)
		l.complain(k, e, errs)
		if !k.labels.equal(labels) {
			k.labels, changed = labels, true
		}
	}
	if !changed {
		return
	}
	l.tell()
	if err := l.cache.save(l.known); err != nil {
		l.log.Warn("learned labels are forgotten at a restart", "err", err)
	}
}

// complain logs the mistakes in a container's labels once.
func (l *Learner) complain(k *lesson, e registry.Endpoint, errs []error) {
	text := make([]string, len(errs))
	for i, err := range errs {
		text[i] = err.Error()
	}
	if all := strings.Join(text, "; "); all != k.told {
		k.told = all
		for _, t := range text {
			l.log.Warn(t, "container", e.ContainerID, "name", e.Container)
		}
	}
}

func (l Labels) equal(o Labels) bool {
	same := l.Weight == nil && o.Weight == nil || l.Weight != nil && o.Weight != nil && *l.Weight == *o.Weight
	return same && l.Port == o.Port && slices.Equal(l.Services, o.Services)
}
