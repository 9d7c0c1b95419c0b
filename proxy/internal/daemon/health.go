package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/health"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// healthFile keeps who was unhealthy, so that a proxy that restarts does not send flows to the dead
// until it has found them again. In the run directory: a reboot ends what was known.
const healthFile = "health.json"

// checks leads backends from snapshots to the checker, and its verdicts back into the store.
type checks struct {
	checker *health.Checker
	store   *state.Store
	path    string
	log     *slog.Logger

	synced uint64                            // revision that the checker was told of
	seen   map[string]*state.Service         // that the checker was told of, by name
	known  map[state.HealthRef]health.Report // unhealthy before a restart; nil once the checker knows
}

// newChecks reads what the proxy before knew into the store, which has published nothing yet.
func newChecks(store *state.Store, checker *health.Checker, runDir string, log *slog.Logger) *checks {
	h := &checks{
		checker: checker, store: store, path: filepath.Join(runDir, healthFile), log: log,
		seen: make(map[string]*state.Service),
	}
	reports, err := h.load()
	if err != nil {
		log.Error("every backend counts as healthy until it is probed", "err", err)
	}
	h.known = make(map[state.HealthRef]health.Report, len(reports))
	for _, r := range reports {
		h.known[refOf(r)] = r
	}
	h.publish(reports)
	return h
}

// probeLimit leaves descriptors for everything else that the proxy has open.
func probeLimit() int {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return 0
	}
	return int(max(2, min(files.Cur/4, health.DefaultLimit)))
}

// follow tells the checker who there is and the store who is unhealthy, until ctx ends. passed returns
// a channel that is closed after the next pass over the maps: nobody is probed before packets
// can reach it.
func (h *checks) follow(ctx context.Context, passed func() <-chan struct{}) error {
	for {
		next := passed()
		if s := h.store.Snapshot(); s != nil && s.Revision != h.synced {
			h.sync(s)
			h.synced = s.Revision
		}
		select {
		case <-ctx.Done():
			return nil
		case <-next:
		case <-h.checker.Changed():
			reports := h.checker.Unhealthy()
			h.publish(reports)
			if err := h.save(reports); err != nil {
				h.log.Error("a restart will forget who is unhealthy", "err", err)
			}
		}
	}
}

// sync tells the checker about services that changed.
func (h *checks) sync(s *state.Snapshot) {
	for name := range h.seen {
		if svc := s.Service(name); svc == nil || !probed(svc) {
			h.checker.RemoveService(name)
			delete(h.seen, name)
		}
	}
	for _, svc := range s.Services {
		if name := svc.Spec.Name; probed(svc) && h.seen[name] != svc {
			h.checker.SetService(name, svc.Spec.HealthCheck, h.targets(svc))
			h.seen[name] = svc
		}
	}
	if h.known != nil {
		// What was known of backends that are there no more ends here.
		h.known = nil
		h.publish(h.checker.Unhealthy())
	}
}

func probed(svc *state.Service) bool {
	return svc.Spec.HealthCheck.Type == "tcp" || svc.Spec.HealthCheck.Type == "http"
}

// targets returns the backends of a service that are probed: all that can be reached by sockets from here and may
// serve, be it as a last resort. Of who is in a VLAN the neighbour's answer says whether it is there.
func (h *checks) targets(svc *state.Service) []health.Target {
	out := make([]health.Target, 0, len(svc.Backends))
	for i := range svc.Backends {
		b := &svc.Backends[i]
		port := checkPort(&svc.Spec, b)
		if b.Remote || b.Tagged() || b.Weight == 0 || port == 0 {
			continue
		}
		was := h.known[b.HealthRef(svc.Spec.Name)]
		out = append(out, health.Target{
			Backend: health.Backend{Node: b.Node, Address: b.Address, Endpoint: b.Endpoint},
			Port:    port, Reason: was.Reason, Since: was.Since,
		})
	}
	return out
}

// checkPort returns where a backend is probed, or 0 if nothing says where.
func checkPort(spec *lb.Service, b *state.Backend) uint16 {
	if spec.HealthCheck.Port != 0 {
		return spec.HealthCheck.Port
	}
	for _, p := range spec.Ports {
		if p.Protocol == lb.TCP {
			return spec.TargetPort(p, b.Backend)
		}
	}
	return 0
}

// publish tells the store who is unhealthy.
func (h *checks) publish(reports []health.Report) {
	unhealthy := make(map[state.HealthRef]struct{}, len(reports))
	for _, r := range reports {
		unhealthy[refOf(r)] = struct{}{}
	}
	h.store.SetUnhealthy(unhealthy)
}

func refOf(r health.Report) state.HealthRef {
	return state.HealthRef{Service: r.Service, Node: r.Node, Address: r.Address, Endpoint: r.Endpoint}
}

// load reads what save wrote; nothing if there is no file.
func (h *checks) load() ([]health.Report, error) {
	data, err := os.ReadFile(h.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []health.Report
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", h.path, err)
	}
	return out, nil
}

// save leaves for the next proxy who is unhealthy, in one step.
func (h *checks) save(reports []health.Report) error {
	data, err := json.Marshal(reports)
	tmp := filepath.Join(filepath.Dir(h.path), "."+healthFile)
	if err == nil {
		err = os.WriteFile(tmp, append(data, '\n'), 0o600)
	}
	if err == nil {
		err = os.Rename(tmp, h.path)
	}
	if err != nil {
		return fmt.Errorf("save %s: %w", h.path, err)
	}
	return nil
}
