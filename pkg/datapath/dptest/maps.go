// Package dptest has the datapath's maps in memory, for tests of what writes them.
//
// They are those of userspace mode, with the precision of the kernel's, and fail like them: they are
// full at their size, a write to a position that does not exist is refused, and a batch stops at the
// entry that fails. Tests can make any operation fail besides.
package dptest

import (
	"fmt"
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/datapath/memory"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Maps are the maps that the proxy writes. Safe for concurrent use.
type Maps struct {
	// Fail, if set, is asked before each write of an entry; what it returns becomes the
	// operation's error. op is the method's name. It must not call the maps.
	Fail func(op string, key any) error
	// MaxFrontends and MaxAllows are when those maps are full; 0 = never.
	MaxFrontends int
	MaxAllows    int

	*memory.Maps // what is written

	mu     sync.Mutex // guards all below, and makes a write and its log one
	stats  []datapath.BackendStat
	groups map[uint32]datapath.Group
	fronts int // frontends that there are
	writes int
	log    []string
}

// New returns empty maps of the given sizes.
func New(sizes datapath.Sizes) *Maps {
	tables := memory.New(sizes)
	return &Maps{
		Maps:   tables,
		stats:  make([]datapath.BackendStat, tables.Sizes().MaxBackends+1),
		groups: make(map[uint32]datapath.Group),
	}
}

// Writes returns how many entries were written or deleted since the last call.
func (m *Maps) Writes() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.writes
	m.writes = 0
	return n
}

// Log returns the operations since the last call, in order: method and key.
func (m *Maps) Log() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.log
	m.log = nil
	return out
}

// maxLog keeps a forgotten log from growing in load tests.
const maxLog = 10000

// write counts a write and asks Fail. m.mu is held.
func (m *Maps) write(op string, key any) error {
	if m.Fail != nil {
		if err := m.Fail(op, key); err != nil {
			return fmt.Errorf("%s %v: %w", op, key, err)
		}
	}
	m.writes++
	if len(m.log) < maxLog {
		m.log = append(m.log, fmt.Sprintf("%s %v", op, key))
	}
	return nil
}

// PutFrontends inserts or replaces; on an error some may be written, in no order.
func (m *Maps) PutFrontends(batch map[lb.Frontend]datapath.Frontend) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, f := range batch {
		anew := m.Frontend(key) == nil
		if anew && m.MaxFrontends > 0 && m.fronts >= m.MaxFrontends {
			return fmt.Errorf("put frontend %s: %w", key, datapath.ErrFull)
		}
		if err := m.write("PutFrontends", key); err != nil {
			return err
		}
		m.PutFrontend(key, f)
		if anew {
			m.fronts++
		}
	}
	return nil
}

// DeleteFrontends deletes; missing keys are no error.
func (m *Maps) DeleteFrontends(keys []lb.Frontend) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range keys {
		if err := m.write("DeleteFrontends", key); err != nil {
			return err
		}
		if m.Frontend(key) != nil {
			m.fronts--
		}
		if err := m.Maps.DeleteFrontends([]lb.Frontend{key}); err != nil {
			return err
		}
	}
	return nil
}

// PutService replaces the record at id.
func (m *Maps) PutService(id uint32, s datapath.Service) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.write("PutService", id); err != nil {
		return err
	}
	return m.Maps.PutService(id, asStored(s))
}

// asStored rounds as the map's units do.
func asStored(s datapath.Service) datapath.Service {
	tick := func(d *time.Duration) { *d = *d >> 20 << 20 }
	for _, d := range []*time.Duration{
		&s.Timeouts.TCPEstablished, &s.Timeouts.TCPSyn, &s.Timeouts.TCPFin,
		&s.Timeouts.UDP, &s.Timeouts.UDPStream, &s.Affinity,
	} {
		tick(d)
	}
	s.LoadFactor = math.Round(s.LoadFactor*1024) / 1024
	return s
}

// Backends returns the records that were ever given to a backend.
func (m *Maps) Backends() (map[uint32]datapath.Backend, error) {
	out, err := m.Maps.Backends()
	for id, b := range out {
		if !b.Address.IsValid() {
			b.Address = netip.IPv6Unspecified() // 16 zero bytes
			out[id] = b
		}
	}
	return out, err
}

// PutBackends replaces the records at ids.
func (m *Maps) PutBackends(ids []uint32, backends []datapath.Backend) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, id := range ids {
		if err := m.write("PutBackends", id); err != nil {
			return err
		}
		if err := m.PutBackend(id, backends[i]); err != nil {
			return err
		}
	}
	return nil
}

// BackendStat returns what SetBackendStat said.
func (m *Maps) BackendStat(id uint32) datapath.BackendStat {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stats[id]
}

// SetBackendStat is what packets do.
func (m *Maps) SetBackendStat(id uint32, s datapath.BackendStat) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stats[id] = s
}

// ResetBackendStat clears the counters at id and takes its load off the group.
func (m *Maps) ResetBackendStat(id, group uint32) {
	m.addLoad(group, -int64(m.BackendStat(id).Load))
	m.SetBackendStat(id, datapath.BackendStat{})
}

// MoveLoad counts a backend's load in another group.
func (m *Maps) MoveLoad(id, from, to uint32) {
	load := int64(m.BackendStat(id).Load)
	m.addLoad(from, -load)
	m.addLoad(to, load)
}

func (m *Maps) addLoad(group uint32, load int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.groups[group]
	g.Load += load
	m.groups[group] = g
}

// Group returns what is counted for a group.
func (m *Maps) Group(id uint32) datapath.Group {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.groups[id]
}

// SetGroup is what packets do.
func (m *Maps) SetGroup(id uint32, g datapath.Group) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.groups[id] = g
}

// ResetGroup begins a group.
func (m *Maps) ResetGroup(id uint32, cursor uint64) { m.SetGroup(id, datapath.Group{Cursor: cursor}) }

// RetireEndpoint clears the flags of every record behind an interface, as the plugin's DEL does.
func (m *Maps) RetireEndpoint(ifindex uint32, addrs []netip.Addr) (int, error) {
	ids, records := m.Behind(ifindex, addrs)
	for i, id := range ids {
		records[i].Live, records[i].New, records[i].Local = false, false, false
		if err := m.PutBackend(id, records[i]); err != nil {
			return i, err
		}
	}
	return len(ids), nil
}

// WriteRegion writes values to a region.
func (m *Maps) WriteRegion(r datapath.Region, values []uint32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.write("WriteRegion", r); err != nil {
		return err
	}
	return m.Maps.WriteRegion(r, values)
}

// PutAllow adds a key.
func (m *Maps) PutAllow(k datapath.AllowKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.MaxAllows > 0 {
		allows, err := m.Allows()
		if _, ok := allows[k]; err == nil && !ok && len(allows) >= m.MaxAllows {
			return fmt.Errorf("put allow %v: %w", k, datapath.ErrFull)
		}
	}
	if err := m.write("PutAllow", k); err != nil {
		return err
	}
	return m.Maps.PutAllow(k)
}

// DeleteAllow removes a key; a missing one is no error.
func (m *Maps) DeleteAllow(k datapath.AllowKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.write("DeleteAllow", k); err != nil {
		return err
	}
	return m.Maps.DeleteAllow(k)
}
