package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
	"github.com/tc-loadbalancer/tclb/proxy/internal/trunk"
)

// Names of the pins of devices that carry VLANs.
const (
	trunkPrefix = "trunk-"
	trunkIn     = "-tagged"
)

// answersEvery is how often is looked for answers while some may come.
const answersEvery = 50 * time.Millisecond

// trunks are the ways to backends in VLANs. Of one goroutine alone, but for what is wrong.
type trunks struct {
	table      *trunk.Table
	wire       trunk.Wire
	wanted     []trunk.Host
	revision   uint64            // of the snapshot that wanted is of
	attached   map[string]uint32 // device by name
	attachedAt time.Time
	lookedAt   time.Time

	mu       sync.Mutex // guards all below
	problems []string   // a line each
}

func newTrunks(m trunk.Maps) *trunks {
	t := &trunks{attached: make(map[string]uint32)}
	t.table = trunk.New(trunk.Options{Maps: m, Devices: trunk.Links{}, Wire: &t.wire, Now: time.Now})
	return t
}

// findVLANs makes the VLANs of a proxy before known to the state, before it publishes anything.
func (p *kernelMode) findVLANs() error {
	if err := p.trunks.table.Recover(); err != nil {
		return err
	}
	p.publishVLANs(p.trunks.table.Known())
	return nil
}

func (p *kernelMode) publishVLANs(s trunk.State) {
	v := &state.VLANs{Ways: make(map[lb.VLAN]state.Way, len(s.Ways)), Hosts: make(map[state.VLANHost]string, len(s.Hosts))}
	for name, w := range s.Ways {
		v.Ways[name] = state.Way(w)
	}
	for h, problem := range s.Hosts {
		v.Hosts[state.VLANHost(h)] = problem
	}
	p.store.SetVLANs(v)
}

// followTrunks keeps the ways to backends in VLANs right until ctx ends.
func (p *kernelMode) followTrunks(ctx context.Context) error {
	t := p.trunks
	defer t.wire.Close()
	for {
		passed := p.passed.next()
		var errs []error
		if news := p.noteTagged(); news || time.Since(t.lookedAt) >= peersEvery {
			errs = p.syncTrunks(ctx)
			t.lookedAt = time.Now()
			p.noteTrunkProblems(errors.Join(errs...))
		} else if s, err := t.table.Poll(t.wanted); err == nil {
			p.publishVLANs(s)
		}
		wait := peersEvery
		if t.table.Waits() {
			wait = answersEvery
		}
		select {
		case <-ctx.Done():
			return nil
		case <-passed:
		case <-time.After(wait):
		}
	}
}

// noteTagged notes who the snapshot says is in a VLAN, and returns whether it is a new one.
func (p *kernelMode) noteTagged() bool {
	s := p.store.Snapshot()
	if s == nil || s.Revision == p.trunks.revision {
		return false
	}
	var out []trunk.Host
	for _, svc := range s.Services {
		for i := range svc.Backends {
			if b := &svc.Backends[i]; b.Tagged() {
				out = append(out, trunk.Host{VLAN: b.VLAN, Address: b.Address})
			}
		}
	}
	t := p.trunks
	t.revision = s.Revision
	if slices.Equal(t.wanted, out) {
		return false
	}
	t.wanted = out
	return true
}

// syncTrunks looks at everything once: programs run before packets are sent, and go after the backends have.
func (p *kernelMode) syncTrunks(ctx context.Context) []error {
	t := p.trunks
	if p.store.Snapshot() == nil {
		return nil // nobody knows yet what is wanted
	}
	again := time.Since(t.attachedAt) > attachEvery
	if again {
		t.attachedAt = time.Now()
	}
	errs := []error{p.attachTrunks(again)}
	s, err := t.table.Sync(t.wanted)
	errs = append(errs, err)
	p.publishVLANs(s)
	if t.table.Surplus(t.wanted) {
		wait, cancel := context.WithTimeout(ctx, pruneAfter)
		_ = p.waitApplied(wait) // backends in VLANs that go first, if they can
		cancel()
		errs = append(errs, t.table.Prune(t.wanted))
	}
	return append(errs, p.dropTrunks(again))
}

func trunkPin(device string) string { return devicePin(trunkPrefix, device) + trunkIn }

// attachTrunks makes from_trunk run on the devices that carry VLANs. Those that are not there are reported with
// their backends.
func (p *kernelMode) attachTrunks(again bool) error {
	t := p.trunks
	var errs []error
	for _, name := range t.devices() {
		device, err := net.InterfaceByName(name)
		if err != nil {
			delete(t.attached, name)
			continue
		}
		if !again && t.attached[name] == uint32(device.Index) {
			continue
		}
		_, err = attach.AttachBehind(p.datapath.Program(datapath.FromTrunk), device.Index, attach.Ingress, p.pinAt(trunkPin(name)))
		if err != nil {
			errs = append(errs, fmt.Errorf("attach to %s, which carries VLANs: %w", name, err))
			continue
		}
		t.attached[name] = uint32(device.Index)
	}
	return errors.Join(errs...)
}

// devices returns the names of those that carry wanted VLANs, each once.
func (t *trunks) devices() []string {
	out := make([]string, 0, len(t.wanted))
	for _, h := range t.wanted {
		out = append(out, h.VLAN.Device)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// dropTrunks detaches from devices that carry nothing any more. The first look finds those of an earlier proxy as well.
func (p *kernelMode) dropTrunks(look bool) error {
	wanted := p.trunks.devices()
	for name := range p.trunks.attached {
		if !slices.Contains(wanted, name) {
			delete(p.trunks.attached, name)
			look = true
		}
	}
	if !look {
		return nil
	}
	entries, err := os.ReadDir(datapath.LinkDir(p.BPFFS))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		keep := slices.ContainsFunc(wanted, func(name string) bool { return trunkPin(name) == e.Name() })
		if strings.HasPrefix(e.Name(), trunkPrefix) && strings.HasSuffix(e.Name(), trunkIn) && !keep {
			errs = append(errs, attach.Detach(p.pinAt(e.Name()), 0))
		}
	}
	return errors.Join(errs...)
}

// noteTrunkProblems keeps what is wrong, and logs what was not so before.
func (p *kernelMode) noteTrunkProblems(err error) {
	var now []string
	if err != nil {
		now = strings.Split(err.Error(), "\n")
	}
	t := p.trunks
	t.mu.Lock()
	before := t.problems
	t.problems = now
	t.mu.Unlock()
	for _, text := range now {
		if !slices.Contains(before, text) {
			p.Log.Error("backends in VLANs are not reached as they should be", "err", text)
		}
	}
}
