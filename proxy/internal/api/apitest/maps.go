package apitest

import (
	"net/netip"
	"sync"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Maps are the maps of the node that NewView shows.
type Maps struct {
	SizesValue  datapath.Sizes
	PairValues  []datapath.Pair
	RoomValues  map[datapath.Room]datapath.RoomStat
	DropValues  map[datapath.DropReason]uint64
	PairsErr    error // returned after the pairs
	Generations map[uint32]uint32

	mu    sync.Mutex
	stats map[uint32]datapath.BackendStat // guarded by mu
}

// NewMaps returns maps with three pairs.
func NewMaps() *Maps {
	at := netip.MustParseAddrPort
	return &Maps{
		SizesValue: datapath.Sizes{MaxServices: 4, MaxBackends: 8, TableSlots: 1024, MaxConntrack: 100},
		PairValues: []datapath.Pair{
			{
				Index: 7, Protocol: lb.UDP, Client: at("192.0.2.200:5353"), VIP: at("198.51.100.53:53"), Backend: at("192.0.2.106:53"),
				State: datapath.FlowEstablished, Active: true, Service: 2, BackendID: 13, BackendGen: 1, Created: 5 * time.Second, Idle: 5 * time.Second,
				Packets: [2]uint64{1, 0}, Bytes: [2]uint64{60, 0},
			},
			{
				Index: 3, Protocol: lb.TCP, Client: at("[2001:db8::99]:40000"), VIP: at("[2001:db8:96::10]:80"), Backend: at("[2001:db8::5]:8080"),
				State: datapath.FlowEstablished, Active: true, Service: 1, BackendID: 12, BackendGen: 1, Created: 65 * time.Second, Idle: 5 * time.Second,
				Packets: [2]uint64{10, 20}, Bytes: [2]uint64{1000, 2000},
			},
			{
				Index: 4, Protocol: lb.TCP, Client: at("192.0.2.200:40000"), VIP: at("203.0.113.7:8080"), Backend: at("203.0.113.7:8080"),
				State: datapath.FlowOpening, Direct: true, Created: time.Second, Idle: time.Second,
				Packets: [2]uint64{1, 0}, Bytes: [2]uint64{60, 0},
			},
		},
		RoomValues: map[datapath.Room]datapath.RoomStat{
			datapath.RoomOpening:     {Live: 1, Created: 3, Capacity: 25},
			datapath.RoomEstablished: {Live: 2, Created: 2, Evicted: 4, Capacity: 100},
			datapath.RoomClosing:     {Capacity: 25},
		},
		DropValues:  map[datapath.DropReason]uint64{},
		Generations: map[uint32]uint32{10: 1, 11: 1, 12: 1, 13: 1, 14: 1},
		stats: map[uint32]datapath.BackendStat{
			10: {Active: 0, Total: 41, Packets: 400, Bytes: 40000},
			12: {Active: 1, Total: 2, Packets: 5, Bytes: 500, SYNLatency: 40 * time.Microsecond, FirstLatency: 1500 * time.Microsecond},
			13: {Active: 1, Total: 1},
			14: {Total: 3, Packets: 30, Bytes: 3000},
		},
	}
}

// SetStat replaces what is counted for a backend.
func (m *Maps) SetStat(id uint32, stat datapath.BackendStat) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stats[id] = stat
}

// BackendStat returns what SetStat set.
func (m *Maps) BackendStat(id uint32) datapath.BackendStat {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stats[id]
}

// Sizes returns SizesValue.
func (m *Maps) Sizes() datapath.Sizes { return m.SizesValue }

// Frontends returns the frontends of web and dns, each service with one table.
func (m *Maps) Frontends() (map[lb.Frontend]datapath.Frontend, error) {
	web := datapath.Frontend{Service: 1, Table: datapath.Region{Offset: 0, Len: 256}, Members: datapath.Region{Offset: 256, Len: 2}}
	dns := datapath.Frontend{Service: 2, Table: datapath.Region{Offset: 272, Len: 128}, Members: datapath.Region{Offset: 400, Len: 1}}
	return map[lb.Frontend]datapath.Frontend{
		{VIP: netip.MustParseAddr("198.51.100.10"), Port: 80, Protocol: lb.TCP}: web,
		{VIP: netip.MustParseAddr("198.51.100.11"), Port: 80, Protocol: lb.TCP}: web,
		{VIP: netip.MustParseAddr("198.51.100.53"), Port: 53, Protocol: lb.UDP}: dns,
		{VIP: netip.MustParseAddr("198.51.100.99"), Port: 9, Protocol: lb.TCP}:  {Service: 3},
	}, nil
}

// ReadRegion returns the tables of Frontends: web's has three slots of its first seat for one of its
// second one.
func (m *Maps) ReadRegion(r datapath.Region) ([]uint32, error) {
	switch r.Offset {
	case 256:
		return []uint32{10, 12}, nil
	case 400:
		return []uint32{13}, nil
	}
	out := make([]uint32, r.Len)
	for i := range out {
		if r.Offset == 0 && i%4 == 3 {
			out[i] = 1
		}
	}
	return out, nil
}

// Backends returns a record for each of Generations.
func (m *Maps) Backends() (map[uint32]datapath.Backend, error) {
	out := make(map[uint32]datapath.Backend)
	for id, gen := range m.Generations {
		out[id] = datapath.Backend{Gen: gen, Live: true}
	}
	return out, nil
}

// Service returns the default timeouts for every service.
func (m *Maps) Service(uint32) (datapath.Service, error) {
	return datapath.Service{Timeouts: lb.Timeouts{
		TCPEstablished: 2*time.Hour + 15*time.Minute, TCPSyn: time.Minute, TCPFin: 30 * time.Second,
		UDP: 30 * time.Second, UDPStream: 3 * time.Minute,
	}}, nil
}

// Rooms returns RoomValues.
func (m *Maps) Rooms() (map[datapath.Room]datapath.RoomStat, error) { return m.RoomValues, nil }

// Drops returns DropValues.
func (m *Maps) Drops() (map[datapath.DropReason]uint64, error) { return m.DropValues, nil }

// Pairs yields PairValues, then returns PairsErr.
func (m *Maps) Pairs(yield func(datapath.Pair) bool) error {
	for _, p := range m.PairValues {
		if !yield(p) {
			return nil
		}
	}
	return m.PairsErr
}
