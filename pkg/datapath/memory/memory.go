// Package memory holds what the proxy writes for the datapath in the process's own memory: the same
// records, found by the same keys and ids. Ids and the arena end where the kernel's do; of frontends and prefixes
// there may be as many as there is memory for.
//
// The userspace mode chooses from it, and dptest makes of it maps that fail when a test says so. Reading
// takes no locks where a flow begins: records are replaced whole, and the arena's positions are read and
// written one by one. So a reader may meet a region that was given to another table meanwhile; it looks
// afterwards whether the frontend is still the one that named the region, as the datapath's programs do.
package memory

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Maps are the tables. They are safe for concurrent use.
type Maps struct {
	sizes     datapath.Sizes
	frontends sync.Map // lb.Frontend -> *datapath.Frontend
	services  []atomic.Pointer[datapath.Service]
	backends  []atomic.Pointer[datapath.Backend]
	arena     []uint32 // by sync/atomic

	mu     sync.RWMutex // guards all below
	allows map[datapath.AllowKey]struct{}
	bits   map[uint32]*[allowBits + 1]uint32 // by service: how many prefixes there are of each length
}

// allowBits is the length of an address in prefixes of sources: IPv4 ones are mapped.
const allowBits = 128

// New returns empty tables of the given sizes.
func New(sizes datapath.Sizes) *Maps {
	sizes = sizes.WithDefaults()
	return &Maps{
		sizes:    sizes,
		services: make([]atomic.Pointer[datapath.Service], sizes.MaxServices+1),
		backends: make([]atomic.Pointer[datapath.Backend], sizes.MaxBackends+1),
		arena:    make([]uint32, sizes.TableSlots),
		allows:   make(map[datapath.AllowKey]struct{}),
		bits:     make(map[uint32]*[allowBits + 1]uint32),
	}
}

// Sizes returns what New was given, defaults filled in.
func (m *Maps) Sizes() datapath.Sizes { return m.sizes }

// Frontend returns the record of a key, or nil. It is never changed, but replaced.
func (m *Maps) Frontend(key lb.Frontend) *datapath.Frontend {
	f, ok := m.frontends.Load(key)
	if !ok {
		return nil
	}
	return f.(*datapath.Frontend)
}

// Frontends returns every record.
func (m *Maps) Frontends() (map[lb.Frontend]datapath.Frontend, error) {
	out := make(map[lb.Frontend]datapath.Frontend)
	for key, f := range m.frontends.Range {
		out[key.(lb.Frontend)] = *f.(*datapath.Frontend)
	}
	return out, nil
}

// PutFrontend inserts or replaces a record, whole.
func (m *Maps) PutFrontend(key lb.Frontend, f datapath.Frontend) { m.frontends.Store(key, &f) }

// PutFrontends inserts or replaces records, each whole.
func (m *Maps) PutFrontends(batch map[lb.Frontend]datapath.Frontend) error {
	for key, f := range batch {
		m.PutFrontend(key, f)
	}
	return nil
}

// DeleteFrontends deletes; missing keys are no error.
func (m *Maps) DeleteFrontends(keys []lb.Frontend) error {
	for _, key := range keys {
		m.frontends.Delete(key)
	}
	return nil
}

// Service returns the record at id; one that was never written is empty.
func (m *Maps) Service(id uint32) (datapath.Service, error) {
	if int(id) >= len(m.services) {
		return datapath.Service{}, fmt.Errorf("service %d: %w", id, datapath.ErrNotFound)
	}
	if s := m.services[id].Load(); s != nil {
		return *s, nil
	}
	return datapath.Service{}, nil
}

// ServiceAt returns the record at id, or nil if none was written. It is never changed, but replaced.
func (m *Maps) ServiceAt(id uint32) *datapath.Service {
	if int(id) >= len(m.services) {
		return nil
	}
	return m.services[id].Load()
}

// PutService replaces the record at id.
func (m *Maps) PutService(id uint32, s datapath.Service) error {
	if int(id) >= len(m.services) {
		return fmt.Errorf("put service %d: %w", id, datapath.ErrFull)
	}
	m.services[id].Store(&s)
	return nil
}

// BackendAt returns the record at id, or nil if none was written. It is never changed, but replaced.
func (m *Maps) BackendAt(id uint32) *datapath.Backend {
	if int(id) >= len(m.backends) {
		return nil
	}
	return m.backends[id].Load()
}

// Backends returns the records that were ever given to a backend.
func (m *Maps) Backends() (map[uint32]datapath.Backend, error) {
	out := make(map[uint32]datapath.Backend)
	for id := range m.backends {
		if b := m.backends[id].Load(); b != nil && b.Gen != 0 {
			out[uint32(id)] = *b
		}
	}
	return out, nil
}

// CheckBackend returns the error of a write to id, if it is no place for a backend.
func (m *Maps) CheckBackend(id uint32) error {
	if id == 0 || int(id) >= len(m.backends) {
		return fmt.Errorf("write backend %d of %d: %w", id, len(m.backends)-1, datapath.ErrFull)
	}
	return nil
}

// PutBackend replaces the record at id.
func (m *Maps) PutBackend(id uint32, b datapath.Backend) error {
	if err := m.CheckBackend(id); err != nil {
		return err
	}
	m.backends[id].Store(&b)
	return nil
}

// Behind returns the ids and records of the live backends behind an interface, at one of addrs or, without
// any, at all addresses.
func (m *Maps) Behind(ifindex uint32, addrs []netip.Addr) (ids []uint32, records []datapath.Backend) {
	for id := range m.backends {
		b := m.backends[id].Load()
		if ifindex == 0 || b == nil || b.Ifindex != ifindex || !b.Live || len(addrs) > 0 && !slices.Contains(addrs, b.Address) {
			continue
		}
		ids, records = append(ids, uint32(id)), append(records, *b)
	}
	return ids, records
}

// At returns what a position of the arena holds; 0 outside.
func (m *Maps) At(position uint32) uint32 {
	if uint64(position) >= uint64(len(m.arena)) {
		return 0
	}
	return atomic.LoadUint32(&m.arena[position])
}

// region returns the part of the arena that r is.
func (m *Maps) region(r datapath.Region) ([]uint32, error) {
	end := uint64(r.Offset) + uint64(r.Len)
	if end > uint64(len(m.arena)) {
		return nil, fmt.Errorf("region of positions %d to %d: %w", r.Offset, end, datapath.ErrNotFound)
	}
	return m.arena[r.Offset:end], nil
}

// WriteRegion writes values to the start of r, which no frontend may point to.
func (m *Maps) WriteRegion(r datapath.Region, values []uint32) error {
	at, err := m.region(r)
	if err != nil {
		return fmt.Errorf("write %w", err)
	}
	if len(values) > len(at) {
		return fmt.Errorf("write %d positions into a region of %d: %w", len(values), r.Len, datapath.ErrFull)
	}
	for i, v := range values {
		atomic.StoreUint32(&at[i], v)
	}
	return nil
}

// ReadRegion returns what r holds.
func (m *Maps) ReadRegion(r datapath.Region) ([]uint32, error) {
	at, err := m.region(r)
	if err != nil {
		return nil, fmt.Errorf("read %w", err)
	}
	out := make([]uint32, len(at))
	for i := range at {
		out[i] = atomic.LoadUint32(&at[i])
	}
	return out, nil
}

// Allows returns the prefixes of all services.
func (m *Maps) Allows() (map[datapath.AllowKey]struct{}, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return maps.Clone(m.allows), nil
}

// PutAllow admits a source prefix to a service.
func (m *Maps) PutAllow(k datapath.AllowKey) error {
	k.Prefix = k.Prefix.Masked()
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.allows[k]; ok {
		return nil
	}
	m.allows[k] = struct{}{}
	if m.bits[k.Service] == nil {
		m.bits[k.Service] = new([allowBits + 1]uint32)
	}
	m.bits[k.Service][mapped(k.Prefix).Bits()]++
	return nil
}

// DeleteAllow takes an admission back; a missing one is no error.
func (m *Maps) DeleteAllow(k datapath.AllowKey) error {
	k.Prefix = k.Prefix.Masked()
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.allows[k]; ok {
		delete(m.allows, k)
		m.bits[k.Service][mapped(k.Prefix).Bits()]--
	}
	return nil
}

// mapped returns a prefix of mapped addresses.
func mapped(p netip.Prefix) netip.Prefix {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return netip.PrefixFrom(netip.AddrFrom16(p.Addr().As16()), bits)
}

// Admits says whether a service admits a source.
func (m *Maps) Admits(service uint32, source netip.Addr) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	lengths := m.bits[service]
	if lengths == nil {
		return false
	}
	for bits, n := range lengths {
		if n == 0 {
			continue
		}
		if bits >= 96 && source.Is4() {
			if p, err := source.Prefix(bits - 96); err == nil {
				if _, ok := m.allows[datapath.AllowKey{Service: service, Prefix: p}]; ok {
					return true
				}
			}
		}
		p, err := netip.AddrFrom16(source.As16()).Prefix(bits)
		if err != nil {
			continue
		}
		if _, ok := m.allows[datapath.AllowKey{Service: service, Prefix: p}]; ok {
			return true
		}
	}
	return false
}
