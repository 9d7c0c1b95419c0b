// Package source reads what the desired state is made of: services files and endpoint files.
//
// It follows directories and keeps what the last good version of each file said; what that means for
// the node is the business of package state.
package source

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// Services follows the services directory. Safe for concurrent use.
type Services struct {
	// Elsewhere, if set, returns VIPs of services that are in no file here: no service gets one of them
	// from the pool. Set it before Start.
	Elsewhere func() []netip.Addr

	dir      string
	lastGood *config.LastGood
	vips     *config.VIPStore
	publish  func([]state.Definition)
	log      *slog.Logger

	saving sync.Mutex // held by who uses lastGood and vips

	mu       sync.Mutex // guards all below
	env      config.Surroundings
	read     []config.File // as the directory was read last
	accepted []config.File
	findings []config.Finding
	dirErr   error
	poolErr  error
	saved    chan struct{} // something is to be saved
}

// NewServices returns a source for a directory. publish gets every new list of services.
func NewServices(dir, stateDir string, publish func([]state.Definition), log *slog.Logger) *Services {
	return &Services{
		dir:      dir,
		lastGood: config.NewLastGood(stateDir),
		vips:     config.NewVIPStore(stateDir),
		publish:  publish,
		log:      log,
		saved:    make(chan struct{}, 1),
	}
}

// Start reads what was good before the last stop. Call it before anything else.
func (s *Services) Start(env config.Surroundings) {
	s.saving.Lock()
	defer s.saving.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.accepted, err = s.lastGood.Load(); err != nil {
		s.log.Warn("last good services files are lost", "err", err)
	}
	for i := range s.accepted { // they stand for files of the directory, also where those are broken now
		s.accepted[i].Path = filepath.Join(s.dir, s.accepted[i].Name)
	}
	s.env = env
	if s.env.Held, err = s.vips.Load(); err != nil {
		s.log.Warn("assigned VIPs are chosen anew", "err", err)
	}
}

// Run follows the directory until ctx ends.
func (s *Services) Run(ctx context.Context) error {
	go s.saveUntil(ctx)
	return Watch(ctx, s.dir, s.log, func(c Change) {
		if c.All || slices.ContainsFunc(c.Names, config.Counts) {
			s.Reread()
		}
	})
}

// SetSurroundings changes what services have to fit beside, and reads the directory again.
func (s *Services) SetSurroundings(env config.Surroundings) {
	s.mu.Lock()
	same := s.env.Same(&env)
	env.Held = s.env.Held
	s.env = env
	s.mu.Unlock()
	if !same {
		s.Reread()
	}
}

// Reread reads the directory and publishes the services if a file changed.
//
// A directory that cannot be read changes nothing. One that is not there has no files at the start;
// later it changes nothing either, because directories are also replaced by renaming.
func (s *Services) Reread() {
	s.mu.Lock()
	defer s.mu.Unlock()
	files, err := s.readDir()
	known := s.dirErr != nil
	if s.dirErr = err; err != nil {
		if !known {
			s.log.Error("services stay as they are", "err", err)
		}
		if s.read != nil {
			return
		}
		files = slices.Clone(s.accepted)
		if errors.Is(err, fs.ErrNotExist) {
			files = []config.File{}
		}
	}
	s.read = files
	s.merge(files)
}

// readDir reads the directory. A file that somebody is writing counts as it was read before. The
// locks keep a writer out while it is read, so that no half file is taken for a whole one.
func (s *Services) readDir() ([]config.File, error) {
	busy, release := hold(s.dir)
	defer release()
	files, err := config.ReadDir(s.dir, slices.Concat(s.accepted, s.read))
	if err != nil || len(busy) == 0 {
		return files, err
	}
	before := slices.Concat(s.read, s.accepted)
	out := make([]config.File, 0, len(files))
	for _, f := range files {
		if busy[f.Name] {
			i := slices.IndexFunc(before, func(b config.File) bool { return b.Name == f.Name })
			if i < 0 {
				continue
			}
			f = before[i]
		}
		out = append(out, f)
	}
	return out, nil
}

// merge decides which versions count, gives VIPs to services without, and publishes.
func (s *Services) merge(files []config.File) {
	accepted, findings := config.Merge(s.accepted, files, s.env)
	s.reportNew(findings)
	s.accepted, s.findings = accepted, findings
	specs := config.Services(accepted)
	assigned, err := config.AssignVIPs(s.besideElsewhere(specs), s.env.Pool, s.env.Held)
	if err != nil && (s.poolErr == nil || s.poolErr.Error() != err.Error()) {
		s.log.Error("services without a VIP", "err", err)
	}
	s.poolErr = err
	s.env.Held = assigned
	defs := make([]state.Definition, 0, len(specs))
	for i := range accepted {
		for j := range accepted[i].Services {
			spec := accepted[i].Services[j].Service
			if len(spec.VIPs) == 0 {
				spec.VIPs = assigned[spec.Name]
			}
			defs = append(defs, state.Definition{Spec: spec, File: accepted[i].Path})
		}
	}
	s.publish(defs)
	select {
	case s.saved <- struct{}{}:
	default:
	}
}

// besideElsewhere adds the VIPs that are taken elsewhere, but for those that services here have already.
func (s *Services) besideElsewhere(specs []lb.Service) []lb.Service {
	if s.Elsewhere == nil {
		return specs
	}
	var taken []netip.Addr
	for _, v := range s.Elsewhere() {
		held := false
		for _, mine := range s.env.Held {
			held = held || slices.Contains(mine, v)
		}
		if !held {
			taken = append(taken, v)
		}
	}
	if len(taken) == 0 {
		return specs
	}
	return append(slices.Clone(specs), lb.Service{VIPs: taken})
}

// reportNew logs each finding once.
func (s *Services) reportNew(findings []config.Finding) {
	for _, f := range findings {
		if !slices.Contains(s.findings, f) {
			s.log.Error(f.String())
		}
	}
}

// saveUntil writes what a restart needs, after the change is in force.
func (s *Services) saveUntil(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.saved:
			s.Save()
		}
	}
}

// Save writes what a restart needs.
func (s *Services) Save() {
	s.saving.Lock()
	defer s.saving.Unlock()
	s.mu.Lock()
	accepted, held := s.accepted, maps.Clone(s.env.Held)
	s.mu.Unlock()
	if err := s.lastGood.Save(accepted); err != nil {
		s.log.Error("services files are not kept for a restart", "err", err)
	}
	if err := s.vips.Save(held); err != nil {
		s.log.Error("assigned VIPs are not kept for a restart", "err", err)
	}
}

// Findings returns the mistakes of the files as they are now.
func (s *Services) Findings() []config.Finding {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.findings)
}

// Files returns the paths of all files that were read.
func (s *Services) Files() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]string, len(s.read))
	for i, f := range s.read {
		out[i] = f.Path
	}
	return out
}

// hold takes a read lease on each services file and names those that are being written. Until release
// is called a writer's open waits.
func hold(dir string) (busy map[string]bool, release func()) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, func() {}
	}
	busy = make(map[string]bool)
	var fds []int
	for _, e := range entries {
		if !config.Counts(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		fd, err := unix.Open(filepath.Join(dir, e.Name()), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		// EAGAIN is a writer. Other errors are file systems without leases, or files of others.
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK); errors.Is(err, unix.EAGAIN) {
			busy[e.Name()] = true
		}
		fds = append(fds, fd)
	}
	return busy, func() {
		for _, fd := range fds {
			_ = unix.Close(fd) // ends the lease
		}
	}
}

// FileOf returns the path of the accepted file that defines a service.
func (s *Services) FileOf(service string) (path string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.accepted {
		for j := range s.accepted[i].Services {
			if s.accepted[i].Services[j].Service.Name == service {
				return s.accepted[i].Path, true
			}
		}
	}
	return "", false
}

// Try returns what would be wrong with a file beside those that count now, if it took the place of the
// files named in instead. others are files from elsewhere that count too. Nothing changes.
func (s *Services) Try(f config.File, instead []string, others []config.File) []config.Finding {
	s.mu.Lock()
	defer s.mu.Unlock()
	rest := slices.DeleteFunc(slices.Concat(s.accepted, others), func(a config.File) bool { return slices.Contains(instead, a.Name) })
	_, findings := config.Merge(rest, append(slices.Clone(rest), f), s.env)
	return findings
}
