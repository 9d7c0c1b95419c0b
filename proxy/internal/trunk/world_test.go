package trunk

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// world is everything around a table: maps, devices, a clock, and what was asked.
type world struct {
	t          *testing.T
	now        time.Time
	vlans      map[uint16]datapath.VLAN
	sources    map[datapath.SourceKey]netip.Addr
	neighbours map[datapath.NeighbourKey]datapath.Neighbour
	devices    map[string]Device
	heard      map[uint32]bool
	asked      []Question
	writes     int
	fail       error
}

func newWorld(t *testing.T) *world {
	return &world{
		t: t, now: time.Unix(1e9, 0), heard: map[uint32]bool{},
		vlans:      map[uint16]datapath.VLAN{},
		sources:    map[datapath.SourceKey]netip.Addr{},
		neighbours: map[datapath.NeighbourKey]datapath.Neighbour{},
		devices:    map[string]Device{"eth1": {Ifindex: 7, MAC: [6]byte{2, 0, 0, 0, 0, 7}, MTU: 1500}},
	}
}

// table returns one that has found what is in the maps.
func (w *world) table() *Table {
	w.t.Helper()
	t := New(Options{Maps: w, Devices: w, Wire: w, Now: func() time.Time { return w.now }})
	w.check(t.Recover())
	return t
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) wrote(change func()) error {
	if w.fail != nil {
		return w.fail
	}
	w.writes++
	change()
	return nil
}

func (w *world) VLANs() (map[uint16]datapath.VLAN, error) { return maps.Clone(w.vlans), w.fail }

func (w *world) PutVLAN(zone uint16, v datapath.VLAN) error {
	return w.wrote(func() { w.vlans[zone] = v })
}

func (w *world) DeleteVLAN(zone uint16) error { return w.wrote(func() { delete(w.vlans, zone) }) }

func (w *world) Sources() (map[datapath.SourceKey]netip.Addr, error) {
	return maps.Clone(w.sources), w.fail
}

func (w *world) PutSource(k datapath.SourceKey, a netip.Addr) error {
	return w.wrote(func() { w.sources[k] = a })
}

func (w *world) DeleteSource(k datapath.SourceKey) error {
	return w.wrote(func() { delete(w.sources, k) })
}

func (w *world) Neighbours() (map[datapath.NeighbourKey]datapath.Neighbour, error) {
	return maps.Clone(w.neighbours), w.fail
}

func (w *world) Neighbour(k datapath.NeighbourKey) (datapath.Neighbour, error) {
	n, ok := w.neighbours[k]
	if !ok {
		return n, datapath.ErrNotFound
	}
	return n, w.fail
}

func (w *world) PutNeighbour(k datapath.NeighbourKey, n datapath.Neighbour) error {
	return w.wrote(func() { w.neighbours[k] = n })
}

func (w *world) DeleteNeighbour(k datapath.NeighbourKey) error {
	return w.wrote(func() { delete(w.neighbours, k) })
}

func (w *world) Device(name string) (Device, error) {
	d, ok := w.devices[name]
	if !ok {
		return d, fmt.Errorf("device %s is not there", name)
	}
	return d, nil
}

func (w *world) Name(ifindex uint32) string {
	for name, d := range w.devices {
		if d.Ifindex == ifindex {
			return name
		}
	}
	return ""
}

func (w *world) Hear(ifindex uint32) error {
	w.heard[ifindex] = true
	return w.fail
}

func (w *world) Ask(q Question) error {
	w.asked = append(w.asked, q)
	return w.fail
}

// answer is what the datapath writes when a backend says who it is.
func (w *world) answer(zone uint16, address netip.Addr, mac byte) {
	w.t.Helper()
	k := datapath.NeighbourKey{Zone: zone, Address: address}
	n, ok := w.neighbours[k]
	if !ok {
		w.t.Fatalf("nobody looks for %s in zone %d", address, zone)
	}
	n.MAC, n.Answers = [6]byte{2, 0, 0, 0, 1, mac}, n.Answers+1
	w.neighbours[k] = n
}

// questions returns what was asked since the last call.
func (w *world) questions() []Question {
	out := w.asked
	w.asked = nil
	return out
}

var (
	one = netip.MustParseAddr("198.18.100.1")
	six = netip.MustParseAddr("2001:db8:64::1")
)

func at(id uint16, addresses ...netip.Addr) (out []Host) {
	for _, a := range addresses {
		out = append(out, Host{VLAN: lb.VLAN{Device: "eth1", ID: id}, Address: a})
	}
	return out
}

func linkOf(id uint16) lb.VLAN { return lb.VLAN{Device: "eth1", ID: id} }
