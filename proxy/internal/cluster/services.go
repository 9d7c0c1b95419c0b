package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
)

// Errors of changes to services.
var (
	ErrNoService = errors.New("no such service in etcd")
	ErrTaken     = errors.New("VIP is taken")
	ErrAway      = errors.New("etcd cannot be used now")
)

// NewService is a service to be put into etcd.
type NewService struct {
	Name string
	VIPs []netip.Addr // that it names; if none, it keeps those that it has, or gets some
	Text []byte       // a services file of this service alone
}

// tries is how often a change is tried that another node's change gets in the way of.
const tries = 20

// Put defines services for all nodes and returns once this one has them. assign gives VIPs to those that
// name none: it gets all services of etcd, and the VIPs that services have, by name. Two nodes that put at
// once never give one VIP away twice: the later one finds it taken (ErrTaken), or assigns another.
func (s *Source) Put(ctx context.Context, list []NewService, assign func(others []lb.Service, held map[string][]netip.Addr) (map[string][]netip.Addr, error)) error {
	for range tries {
		link, err := s.connected()
		if err != nil {
			return err
		}
		all, _, err := link.load(ctx)
		if err != nil {
			return s.away(ctx, err)
		}
		writes, err := planPut(all, list, assign)
		if err != nil {
			return err
		}
		done, err := s.commitAll(ctx, link, writes)
		if err != nil {
			return s.away(ctx, err)
		}
		if done {
			return s.waitShown(ctx)
		}
	}
	return errors.New("other nodes change the same services all the time: try again")
}

// planPut returns a transaction for each service, in order.
func planPut(all map[string]item, list []NewService, assign func([]lb.Service, map[string][]netip.Addr) (map[string][]netip.Addr, error)) ([]write, error) {
	replaced := make(map[string]bool, len(list))
	for _, n := range list {
		replaced[n.Name] = true
	}
	var others []lb.Service
	held, owners := make(map[string][]netip.Addr), make(map[netip.Addr]string)
	for _, key := range slices.Sorted(maps.Keys(all)) {
		name, ok := strings.CutPrefix(key, serviceDir)
		if !ok {
			continue
		}
		f, err := decodeService(key, name, all[key].value)
		if err != nil {
			continue // it counts nowhere
		}
		spec := f.Services[0].Service
		if held[name] = spec.VIPs; replaced[name] {
			continue
		}
		others = append(others, spec)
		for _, v := range spec.VIPs {
			owners[v] = name
		}
	}
	given, err := assign(others, held)
	if err != nil {
		return nil, err
	}
	out := make([]write, 0, len(list))
	for _, n := range list {
		if len(n.VIPs) == 0 {
			n.VIPs = given[n.Name]
			if n.Text, err = setVIPs(n.Text, n.VIPs); err != nil {
				return nil, err
			}
		}
		for _, v := range n.VIPs {
			if owner, taken := owners[v]; taken {
				return nil, fmt.Errorf("service %s: %w: %s is that of service %s of etcd", n.Name, ErrTaken, v, owner)
			}
		}
		out = append(out, putWrite(all, n, held[n.Name]))
	}
	return out, nil
}

// putWrite puts a service and claims its VIPs, if nobody changed either meanwhile.
func putWrite(all map[string]item, n NewService, before []netip.Addr) write {
	key := serviceDir + n.Name
	w := write{conds: []cond{{key, all[key].revision}}, ops: []op{{key: key, value: n.Text}}}
	for _, v := range n.VIPs {
		at := vipsDir + v.String()
		w.conds = append(w.conds, cond{at, all[at].revision})
		w.ops = append(w.ops, op{key: at, value: []byte(n.Name)})
	}
	for _, v := range before {
		at := vipsDir + v.String()
		if !slices.Contains(n.VIPs, v) && string(all[at].value) == n.Name {
			w.conds = append(w.conds, cond{at, all[at].revision})
			w.ops = append(w.ops, op{key: at, delete: true})
		}
	}
	return w
}

// commitAll does one after the other; false if a condition does not hold any more.
func (s *Source) commitAll(ctx context.Context, link kv, writes []write) (bool, error) {
	for _, w := range writes {
		ok, err := s.commit(ctx, link, w)
		if err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

// setVIPs writes vips into the one service of a services file.
func setVIPs(text []byte, vips []netip.Addr) ([]byte, error) {
	var doc struct {
		Services []yaml.Node `yaml:"services"`
	}
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("set vips: %w", err)
	}
	if len(doc.Services) != 1 || doc.Services[0].Kind != yaml.MappingNode {
		return nil, errors.New("set vips: want one service")
	}
	var value yaml.Node
	if err := value.Encode(vips); err != nil {
		return nil, fmt.Errorf("set vips: %w", err)
	}
	value.Style = yaml.FlowStyle
	svc := &doc.Services[0]
	for i := 0; i+1 < len(svc.Content); i += 2 {
		if svc.Content[i].Value == "vips" {
			svc.Content = slices.Delete(svc.Content, i, i+2)
			break
		}
	}
	key := yaml.Node{Kind: yaml.ScalarNode, Value: "vips"}
	svc.Content = append(svc.Content, &key, &value)
	out, err := yaml.Marshal(map[string][]*yaml.Node{"services": {svc}})
	if err != nil {
		return nil, fmt.Errorf("set vips: %w", err)
	}
	return out, nil
}

// Delete removes a service from all nodes, with what commands said of its backends and its tables, and
// returns once this node has it no more: ErrNoService if etcd has none of that name.
func (s *Source) Delete(ctx context.Context, name string) error {
	for range tries {
		link, err := s.connected()
		if err != nil {
			return err
		}
		all, _, err := link.load(ctx)
		if err != nil {
			return s.away(ctx, err)
		}
		key := serviceDir + name
		it, there := all[key]
		if !there {
			return fmt.Errorf("delete service %s: %w", name, ErrNoService)
		}
		w := write{conds: []cond{{key, it.revision}}, ops: []op{
			{key: key, delete: true},
			{key: overridDir + name + "/", delete: true, dir: true},
			{key: tableKey(name, "v4", ""), delete: true},
			{key: tableKey(name, "v6", ""), delete: true},
		}}
		for k, v := range all {
			if strings.HasPrefix(k, vipsDir) && string(v.value) == name && len(w.ops) < maxOps {
				w.ops = append(w.ops, op{key: k, delete: true})
			}
		}
		ok, err := s.commit(ctx, link, w)
		if err != nil {
			return s.away(ctx, err)
		}
		if ok {
			return s.waitShown(ctx)
		}
	}
	return errors.New("other nodes change the same service all the time: try again")
}

// connected returns the session's store, or says why there is none.
func (s *Source) connected() (kv, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link == nil {
		return nil, fmt.Errorf("%w: %s", ErrAway, s.status.Error)
	}
	return s.link, nil
}

// away says why a request failed.
func (s *Source) away(ctx context.Context, err error) error {
	return fmt.Errorf("%w: %s", ErrAway, s.explain(ctx, err))
}

// waitShown waits until the store has everything that was written up to now.
func (s *Source) waitShown(ctx context.Context) error {
	s.mu.Lock()
	want := s.written
	s.mu.Unlock()
	for {
		s.mu.Lock()
		have, next := s.shownAt, s.shows
		s.mu.Unlock()
		if have >= want {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-next:
		}
	}
}

// Files returns the services of etcd but for those named, as files, so that new ones can be compared
// with them.
func (s *Source) Files(without []string) []config.File {
	skip := make(map[string]bool, len(without))
	for _, n := range without {
		skip[n] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mirror.files(skip)
}

// Has says whether etcd defines a service of that name.
func (s *Source) Has(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.mirror.services[name]
	return ok
}
