package source

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// Endpoints follows the endpoint files of the run directory. Safe for concurrent use.
type Endpoints struct {
	dir     *registry.Dir
	alive   func(registry.Endpoint) bool
	publish func([]registry.Endpoint)
	log     *slog.Logger

	mu     sync.Mutex // guards all below
	known  map[string]registry.Endpoint
	unread map[string]bool // errors that are in the log already, by text
}

// NewEndpoints returns a source for a run directory. alive says whether the interface of an endpoint is
// there; publish gets every new list of those that are.
func NewEndpoints(dir *registry.Dir, alive func(registry.Endpoint) bool, publish func([]registry.Endpoint), log *slog.Logger) *Endpoints {
	return &Endpoints{dir: dir, alive: alive, publish: publish, log: log, known: make(map[string]registry.Endpoint)}
}

// Run follows the directory until ctx ends.
func (s *Endpoints) Run(ctx context.Context) error {
	return Watch(ctx, s.dir.Endpoints(), s.log, func(c Change) {
		if c.All {
			s.Reread()
			return
		}
		s.update(c.Names)
	})
}

// Reread reads every file and publishes.
func (s *Endpoints) Reread() {
	s.mu.Lock()
	defer s.mu.Unlock()
	endpoints, errs := s.dir.List()
	s.complain(errs)
	s.known = make(map[string]registry.Endpoint, len(endpoints))
	for _, e := range endpoints {
		s.known[e.ID] = e
	}
	s.tell()
}

// update reads the files of those names and publishes if one is an endpoint's.
func (s *Endpoints) update(names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := false
	for _, name := range names {
		id, ok := registry.IDOf(name)
		if !ok {
			continue
		}
		changed = true
		e, err := s.dir.Get(id)
		switch {
		case err == nil:
			s.known[id] = e
		case errors.Is(err, registry.ErrNotFound):
			delete(s.known, id)
		default:
			s.log.Error("endpoint file is ignored", "err", err)
			delete(s.known, id)
		}
	}
	if changed {
		s.tell()
	}
}

// complain logs each unreadable file once.
func (s *Endpoints) complain(errs []error) {
	unread := make(map[string]bool, len(errs))
	for _, err := range errs {
		if !s.unread[err.Error()] {
			s.log.Error("endpoint file is ignored", "err", err)
		}
		unread[err.Error()] = true
	}
	s.unread = unread
}

// tell publishes those that are alive, by id. s.mu is held, so that lists arrive in order.
func (s *Endpoints) tell() {
	out := make([]registry.Endpoint, 0, len(s.known))
	for _, e := range s.known {
		if s.alive(e) {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b registry.Endpoint) int { return strings.Compare(a.ID, b.ID) })
	s.publish(out)
}
