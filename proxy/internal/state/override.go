package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/tc-loadbalancer/tclb/pkg/lb"

	"github.com/tc-loadbalancer/tclb/proxy/internal/diskfile"
)

// Errors of commands.
var (
	ErrNoService = errors.New("no such service")
	ErrNoBackend = errors.New("no such backend")
)

// overrideKey is a backend of a service.
type overrideKey struct {
	service, node string
	address       netip.Addr
}

// Override is what a command said about a backend. It ends with the backend, so of one that joined by
// itself it remembers which container that was.
//
// With etcd it holds on all nodes. The node that was told has it in force at once, and Unsent until the
// others can know; one that Ended is kept for as long.
type Override struct {
	Service  string     `json:"service"`
	Node     string     `json:"node,omitempty"` // or VLAN: lb.Backend.Place
	Address  netip.Addr `json:"address"`
	Endpoint string     `json:"endpoint,omitempty"`
	Drain    bool       `json:"drain,omitempty"`
	Weight   *int       `json:"weight,omitempty"`
	Origin   string     `json:"origin,omitempty"` // the node that was told; "" without etcd
	Unsent   bool       `json:"unsent,omitempty"`
}

func (o Override) key() overrideKey { return overrideKey{o.Service, o.Node, o.Address} }

// overrides are all of them, and their file.
type overrides struct {
	path string
	by   map[overrideKey]Override
}

// overridesFile is the form of overrides.json.
type overridesFile struct {
	Overrides []Override `json:"overrides"`
}

// load reads the file in stateDir; a missing one is empty.
func (o *overrides) load(stateDir string) error {
	o.path = filepath.Join(stateDir, "overrides.json")
	o.by = make(map[overrideKey]Override)
	data, err := os.ReadFile(o.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var f overridesFile
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	if err != nil {
		return fmt.Errorf("load %s: %w", o.path, err)
	}
	for _, v := range f.Overrides {
		o.by[v.key()] = v
	}
	return nil
}

// save replaces the file in one step.
func (o *overrides) save() error {
	f := overridesFile{Overrides: make([]Override, 0, len(o.by))}
	for _, v := range o.by {
		f.Overrides = append(f.Overrides, v)
	}
	slices.SortFunc(f.Overrides, func(a, b Override) int {
		if c := compareText(a.Service, b.Service); c != 0 {
			return c
		}
		if c := a.Address.Compare(b.Address); c != 0 {
			return c
		}
		return compareText(a.Node, b.Node)
	})
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("save overrides: %w", err)
	}
	if err := diskfile.Replace(o.path, append(data, '\n')); err != nil {
		return fmt.Errorf("save overrides: %w", err)
	}
	return nil
}

// apply puts a command's word over a backend's own.
func (o *overrides) apply(service string, b *Backend) {
	if len(o.by) == 0 {
		return
	}
	v, ok := o.by[overrideKey{service, b.Place(), b.Address}]
	if !ok || v.Endpoint != b.member() {
		return
	}
	if v.Drain {
		b.State, b.Drained = lb.Draining, true
	}
	if v.Weight != nil {
		b.Weight, b.Weighted = *v.Weight, true
	}
}

// end forgets an override, or what it says until the other nodes know.
func (o *overrides) end(k overrideKey, shared bool) {
	if !shared {
		delete(o.by, k)
		return
	}
	v := o.by[k]
	v.Drain, v.Weight, v.Unsent = false, nil, true
	o.by[k] = v
}

// dropEnded forgets overrides of backends that are gone. Those of a lost node may return. s.mu is held.
func (s *Store) dropEnded(next *Snapshot) {
	if len(s.overrides.by) == 0 {
		return
	}
	dropped := false
	for k, v := range s.overrides.by {
		if _, out := s.out[k]; !out && !v.Ended() && s.answers(v) && !next.holds(v) {
			s.overrides.end(k, s.shared)
			dropped = true
			s.log.Info("drain or weight set by command ended with its backend", "service", k.service, "backend", k.address)
		}
	}
	if dropped {
		if err := s.overrides.save(); err != nil {
			s.log.Error("ended drains and weights are still on disk", "err", err)
		}
	}
}

// holds says whether the backend of an override is there, and the same container.
func (s *Snapshot) holds(o Override) bool {
	svc := s.Service(o.Service)
	return svc != nil && slices.ContainsFunc(svc.Backends, func(b Backend) bool {
		return b.Address == o.Address && b.Place() == o.Node && b.member() == o.Endpoint
	})
}
