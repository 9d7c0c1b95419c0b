package api

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// tables are frontends and what their regions hold.
type tables struct {
	Datapath
	frontends map[lb.Frontend]datapath.Frontend
	regions   map[datapath.Region][]uint32
}

func (t *tables) Frontends() (map[lb.Frontend]datapath.Frontend, error) { return t.frontends, nil }

var errNoRegion = errors.New("no such region")

func (t *tables) ReadRegion(r datapath.Region) ([]uint32, error) {
	values, ok := t.regions[r]
	if !ok {
		return nil, errNoRegion
	}
	return values, nil
}

// add puts a frontend of a service with that table and those backend ids by seat.
func (t *tables) add(vip string, port uint16, service uint32, f datapath.Frontend, slots, members []uint32) {
	positions, narrow := datapath.Pack(slots, len(members))
	at := uint32(1000 * len(t.regions))
	f.Kind, f.Service, f.Narrow, f.Slots = datapath.KindService, service, narrow, uint32(len(slots))
	f.Table = datapath.Region{Offset: at, Len: uint32(len(positions))}
	f.Members = datapath.Region{Offset: at + 500, Len: uint32(len(members))}
	t.regions[f.Table], t.regions[f.Members] = positions, members
	t.frontends[lb.Frontend{VIP: netip.MustParseAddr(vip), Port: port, Protocol: lb.TCP}] = f
}

func TestSharesAreThoseOfTheTables(t *testing.T) {
	none := datapath.Frontend{}
	tests := []struct {
		name string
		fill func(m *tables)
		want map[uint32]float64
	}{
		{"another service's table", func(m *tables) {
			m.add("10.96.0.1", 80, 7, none, []uint32{0, 1, 1, 1}, []uint32{10, 11})
			m.add("10.96.0.2", 80, 8, none, []uint32{0}, []uint32{10})
		}, map[uint32]float64{10: 0.25, 11: 0.75}},
		{"each family has a table", func(m *tables) {
			m.add("10.96.0.1", 80, 7, none, []uint32{0, 1}, []uint32{10, 11})
			m.add("fd00:96::1", 80, 7, none, []uint32{0}, []uint32{12})
		}, map[uint32]float64{10: 0.5, 11: 0.5, 12: 1}},
		{"two VIPs share theirs", func(m *tables) {
			m.add("10.96.0.1", 80, 7, none, []uint32{0, 1}, []uint32{10, 11})
			key := lb.Frontend{VIP: netip.MustParseAddr("10.96.0.1"), Port: 80, Protocol: lb.TCP}
			m.frontends[lb.Frontend{VIP: netip.MustParseAddr("10.96.0.9"), Port: 80, Protocol: lb.TCP}] = m.frontends[key]
		}, map[uint32]float64{10: 0.5, 11: 0.5}},
		{"two ports lead to one backend", func(m *tables) {
			m.add("10.96.0.1", 80, 7, none, []uint32{0, 1}, []uint32{10, 11})
			m.add("10.96.0.1", 81, 7, none, []uint32{0, 1}, []uint32{10, 12})
		}, map[uint32]float64{10: 0.5, 11: 0.5, 12: 0.5}},
		{"the head of least-conn is no part of the sequence", func(m *tables) {
			m.add("10.96.0.1", 80, 7, datapath.Frontend{Head: 2}, []uint32{0, 1, 1, 0, 1, 1}, []uint32{10, 11})
		}, map[uint32]float64{10: 0.25, 11: 0.75}},
		{"seats that are empty or serve nobody", func(m *tables) {
			m.add("10.96.0.1", 80, 7, none, []uint32{1, 3, 1, 3}, []uint32{10, 11, 0, 12})
		}, map[uint32]float64{10: 0, 11: 0.5, 12: 0.5}},
		{"nobody serves", func(m *tables) {
			m.frontends[lb.Frontend{Port: 80}] = datapath.Frontend{Kind: datapath.KindService, Service: 7}
		}, map[uint32]float64{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := &tables{frontends: make(map[lb.Frontend]datapath.Frontend), regions: make(map[datapath.Region][]uint32)}
			tt.fill(m)
			got, err := (&Server{datapath: m}).shares(7)
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("%v; shares by backend id (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestTableThatCannotBeReadIsAnError(t *testing.T) {
	m := &tables{frontends: make(map[lb.Frontend]datapath.Frontend), regions: make(map[datapath.Region][]uint32)}
	m.add("10.96.0.1", 80, 7, datapath.Frontend{}, []uint32{0}, []uint32{10})
	clear(m.regions)
	if err := (&Server{datapath: m}).addShares(7, []Backend{{id: 10}}); !errors.Is(err, errNoRegion) {
		t.Errorf("error %v", err)
	}
}
