package nodes

import (
	"errors"
	"maps"
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// fakeMaps are the maps of nodes, in memory.
type fakeMaps struct {
	nodes   map[uint16]datapath.Node
	subnets map[datapath.SubnetKey]struct{}
	writes  int
	fail    error
}

func newFake() *fakeMaps {
	return &fakeMaps{nodes: map[uint16]datapath.Node{}, subnets: map[datapath.SubnetKey]struct{}{}}
}

func (f *fakeMaps) Nodes() (map[uint16]datapath.Node, error) { return maps.Clone(f.nodes), f.fail }
func (f *fakeMaps) Subnets() (map[datapath.SubnetKey]struct{}, error) {
	return maps.Clone(f.subnets), f.fail
}

func (f *fakeMaps) wrote(change func()) error {
	if f.fail != nil {
		return f.fail
	}
	f.writes++
	change()
	return nil
}

func (f *fakeMaps) PutNode(id uint16, n datapath.Node) error {
	return f.wrote(func() { f.nodes[id] = n })
}
func (f *fakeMaps) DeleteNode(id uint16) error { return f.wrote(func() { delete(f.nodes, id) }) }
func (f *fakeMaps) PutSubnet(k datapath.SubnetKey) error {
	return f.wrote(func() { f.subnets[k] = struct{}{} })
}

func (f *fakeMaps) DeleteSubnet(k datapath.SubnetKey) error {
	return f.wrote(func() { delete(f.subnets, k) })
}

func peer(name, address string, subnets ...string) Peer {
	p := Peer{Name: name, Node: datapath.Node{VTEP: netip.MustParseAddr(address), MTU: 1450, SNAT: datapath.SNATCheck}}
	for _, s := range subnets {
		p.Subnets = append(p.Subnets, netip.MustParsePrefix(s))
	}
	return p
}

func mustPut(t *testing.T, table *Table, peers ...Peer) map[string]uint16 {
	t.Helper()
	ids, err := table.Put(peers)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestNodesKeepTheirIDsAcrossRestarts(t *testing.T) {
	m := newFake()
	b, c := peer("b", "192.0.2.12", "198.51.100.0/25"), peer("c", "2001:db8::13")
	before := mustPut(t, New(m), b, c)
	if before["b"] == before["c"] || before["b"] == 0 || before["c"] == 0 {
		t.Fatalf("ids %v", before)
	}
	writes := m.writes
	if after := mustPut(t, New(m), c, b); !maps.Equal(after, before) {
		t.Errorf("ids were %v, are %v", before, after)
	}
	if m.writes != writes {
		t.Error("a restart writes what is right already")
	}
}

func TestWhatDiffersIsWritten(t *testing.T) {
	m := newFake()
	table := New(m)
	id := mustPut(t, table, peer("b", "192.0.2.12", "198.51.100.0/25", "203.0.113.0/26"))["b"]
	moved := peer("b", "192.0.2.99", "198.51.100.128/25", "203.0.113.0/26")
	moved.MTU = 0 // nothing is known of the way now
	if got := mustPut(t, table, moved)["b"]; got != id {
		t.Errorf("id %d, was %d", got, id)
	}
	want := moved.Node
	want.MTU = 1450
	if m.nodes[id] != want || table.Nodes()["b"] != want {
		t.Errorf("record %+v, want %+v", m.nodes[id], want)
	}
	wantSubnets := map[datapath.SubnetKey]struct{}{
		{Node: id, Prefix: netip.MustParsePrefix("198.51.100.128/25")}: {},
		{Node: id, Prefix: netip.MustParsePrefix("203.0.113.0/26")}:    {},
	}
	if !maps.Equal(m.subnets, wantSubnets) {
		t.Errorf("subnets %v", m.subnets)
	}
}

func TestPruneForgetsWhoIsListedNoMore(t *testing.T) {
	m := newFake()
	b, c := peer("b", "192.0.2.12", "198.51.100.0/25"), peer("c", "192.0.2.13", "203.0.113.0/26")
	mustPut(t, New(m), b, c)
	table := New(m) // of a proxy that finds both
	id := mustPut(t, table, c)["c"]
	if !table.Surplus([]Peer{c}) {
		t.Error("nobody is surplus")
	}
	if err := table.Prune([]Peer{c}); err != nil {
		t.Fatal(err)
	}
	if len(m.nodes) != 1 || m.nodes[id] != c.Node || len(m.subnets) != 1 {
		t.Errorf("left: %v, %v", m.nodes, m.subnets)
	}
	if table.Surplus([]Peer{c}) {
		t.Error("somebody is surplus still")
	}
}

// A pair that outlives its node must not lead to another one.
func TestIDsRestAsLongAsThereAreOthers(t *testing.T) {
	m := newFake()
	table := New(m)
	seen := make(map[uint16]int)
	const turns = datapath.MaxNodes - 1
	for i := range turns + 1 {
		// The same address each time: the search for a free id begins at the same place.
		p := peer("b", "192.0.2.12")
		id := mustPut(t, table, p)["b"]
		if last, again := seen[id]; again && i-last < turns {
			t.Fatalf("id %d is used again after %d others", id, i-last)
		}
		seen[id] = i
		if err := table.Prune(nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != turns {
		t.Errorf("%d ids were used, want all %d", len(seen), turns)
	}
}

func TestAFullTableIsSaid(t *testing.T) {
	m := newFake()
	for id := uint16(1); id < datapath.MaxNodes; id++ {
		m.nodes[id] = datapath.Node{VTEP: netip.AddrFrom4([4]byte{203, 0, byte(id >> 8), byte(id)})}
	}
	if _, err := New(m).Put([]Peer{peer("b", "192.0.2.12")}); !errors.Is(err, datapath.ErrFull) {
		t.Errorf("got %v", err)
	}
}

func TestMapsThatFailAreTriedAgain(t *testing.T) {
	m := newFake()
	m.fail = errors.New("no")
	table := New(m)
	if ids, err := table.Put([]Peer{peer("b", "192.0.2.12")}); err == nil || ids != nil {
		t.Errorf("ids %v, %v of maps that cannot be read", ids, err)
	}
	m.fail = nil
	if ids := mustPut(t, table, peer("b", "192.0.2.12")); len(m.nodes) != 1 || ids["b"] == 0 {
		t.Errorf("ids %v, maps %v", ids, m.nodes)
	}
}
