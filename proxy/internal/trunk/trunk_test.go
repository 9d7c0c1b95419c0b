package trunk

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

func (w *world) sync(t *Table, wanted []Host) State {
	w.t.Helper()
	s, err := t.Sync(wanted)
	w.check(err)
	return s
}

func TestZonesLastAcrossRestarts(t *testing.T) {
	w := newWorld(t)
	wanted := append(at(100, one), at(200, one)...)
	before := w.sync(w.table(), wanted)
	zone := before.Ways[linkOf(100)].Zone
	if zone < datapath.VLANZones || zone == before.Ways[linkOf(200)].Zone || len(w.vlans) != 2 {
		t.Fatalf("ways %v, in the maps %v", before.Ways, w.vlans)
	}
	if want := (datapath.VLAN{Ifindex: 7, ID: 100, MAC: [6]byte{2, 0, 0, 0, 0, 7}, MTU: 1500}); w.vlans[zone] != want {
		t.Errorf("record %+v, want %+v", w.vlans[zone], want)
	}
	w.answer(zone, one, 1)
	writes := w.writes
	table := w.table()
	if known := table.Known(); known.Ways[linkOf(100)].Zone != zone || known.Hosts[at(100, one)[0]] != "" || known.Hosts[at(200, one)[0]] == "" {
		t.Errorf("after a restart: %+v", known)
	}
	slices.Reverse(wanted)
	if after := w.sync(table, wanted); !maps.Equal(after.Ways, before.Ways) || w.writes != writes {
		t.Errorf("ways were %v, are %v, %d writes", before.Ways, after.Ways, w.writes-writes)
	}
}

func TestZonesRestBeforeTheyAreGivenAgain(t *testing.T) {
	w := newWorld(t)
	table := w.table()
	first := w.sync(table, at(100, one)).Ways[linkOf(100)].Zone
	if table.Surplus(at(100, one)) {
		t.Error("a VLAN that is wanted is surplus")
	}
	w.sync(table, at(200, one))
	if !table.Surplus(at(200, one)) || len(w.vlans) != 2 {
		t.Errorf("VLANs %v before anything is pruned", w.vlans)
	}
	w.check(table.Prune(at(200, one)))
	if table.Surplus(at(200, one)) || len(w.vlans) != 1 || len(w.neighbours) != 1 {
		t.Errorf("left: %v, %v", w.vlans, w.neighbours)
	}
	if again := w.sync(table, append(at(100, one), at(200, one)...)).Ways[linkOf(100)].Zone; again == first {
		t.Errorf("zone %d is given again at once", again)
	}
}

func TestAllZonesInUseIsAnError(t *testing.T) {
	z := newZones()
	for i := range datapath.MaxVLANs {
		if _, err := z.get(lb.VLAN{Device: "eth1", ID: uint16(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := z.get(lb.VLAN{Device: "eth2", ID: 1}); !errors.Is(err, datapath.ErrFull) {
		t.Errorf("%v", err)
	}
	z.giveBack(datapath.VLANZones + 9)
	z.giveBack(datapath.VLANZones + 5)
	for _, want := range []uint16{datapath.VLANZones + 9, datapath.VLANZones + 5} {
		if got, err := z.get(lb.VLAN{Device: "eth2", ID: want}); err != nil || got != want {
			t.Errorf("zone %d, %v, want the one that rests longest, %d", got, err, want)
		}
	}
}

// A neighbour is asked each second until it answers, then now and then at its address, and is lost after three
// questions without an answer.
func TestNeighboursAreAsked(t *testing.T) {
	w := newWorld(t)
	table := w.table()
	wanted := at(100, one)
	host := wanted[0]
	s := w.sync(table, wanted)
	zone := s.Ways[linkOf(100)].Zone
	problem := func() string {
		t.Helper()
		s, err := table.Poll(wanted)
		w.check(err)
		return s.Hosts[host]
	}
	expect := func(what string, after time.Duration, to [6]byte, asked bool, reachable bool) {
		t.Helper()
		w.now = w.now.Add(after)
		p := problem()
		q := w.questions()
		if len(q) > 1 || asked != (len(q) == 1) || asked && (q[0].To != to || q[0].Target != one || q[0].ID != 100 || q[0].Ifindex != 7) {
			t.Errorf("%s: asked %+v", what, q)
		}
		if (p == "") != reachable || !reachable && !strings.Contains(p, "eth1.100") {
			t.Errorf("%s: %q", what, p)
		}
	}
	all, known := [6]byte{}, [6]byte{2, 0, 0, 0, 1, 1}
	if q := w.questions(); len(q) != 1 || q[0].To != all || s.Hosts[host] == "" || !table.Waits() {
		t.Fatalf("asked %+v, %q", q, s.Hosts[host])
	}
	expect("soon", 900*time.Millisecond, all, false, false)
	expect("again", 100*time.Millisecond, all, true, false)
	if w.now = w.now.Add(answerTime); table.Waits() {
		t.Error("it waits for an answer that does not come")
	}
	w.answer(zone, one, 1)
	expect("it answers", 0, all, false, true)
	expect("for a while", refreshEvery-1, all, false, true)
	expect("is it there?", 1, known, true, true)
	w.answer(zone, one, 2)
	expect("as another", time.Millisecond, all, false, true)
	known[5] = 2
	expect("is it there?", refreshEvery, known, true, true)
	expect("everybody", time.Second, all, true, true)
	expect("everybody", time.Second, all, true, true)
	expect("lost", time.Second, all, true, false)
	expect("lost", time.Second, all, true, false)
	w.answer(zone, one, 2)
	expect("back", 0, all, false, true)
	// Whoever speaks by himself need not be asked.
	w.answer(zone, one, 2)
	expect("it spoke", refreshEvery, all, false, true)
}

func TestDevicesComeAndGo(t *testing.T) {
	w := newWorld(t)
	device := w.devices["eth1"]
	delete(w.devices, "eth1")
	table := w.table()
	wanted := at(100, one)
	s := w.sync(table, wanted)
	way := s.Ways[linkOf(100)]
	if way.Zone == 0 || !strings.Contains(way.Problem, "eth1 is not there") || len(w.vlans) != 0 || len(w.questions()) != 0 {
		t.Fatalf("way %+v, in the maps %v", way, w.vlans)
	}
	w.devices["eth1"] = device
	if got := w.sync(table, wanted).Ways[linkOf(100)]; got.Problem != "" || got.Zone != way.Zone || w.vlans[way.Zone].Ifindex != 7 || !w.heard[7] {
		t.Errorf("it came: %+v, %v", got, w.vlans)
	}
	w.answer(way.Zone, one, 1)
	if s := w.sync(table, wanted); s.Hosts[wanted[0]] != "" {
		t.Errorf("it answers: %+v", s)
	}
	delete(w.devices, "eth1")
	if got := w.sync(table, wanted).Ways[linkOf(100)]; got.Problem == "" || len(w.vlans) != 0 {
		t.Errorf("it went: %+v, %v", got, w.vlans)
	}
	device.Ifindex = 9
	w.devices["eth1"] = device
	w.questions()
	s = w.sync(table, wanted)
	if got := s.Ways[linkOf(100)]; got.Problem != "" || got.Zone != way.Zone || w.vlans[way.Zone].Ifindex != 9 {
		t.Errorf("another one: %+v, %v", got, w.vlans)
	}
	if q := w.questions(); len(q) != 1 || q[0].Ifindex != 9 || s.Hosts[wanted[0]] == "" {
		t.Errorf("behind it there may be others, asked are %+v, %q", q, s.Hosts[wanted[0]])
	}
}

// Clients go under the trunk's address to those who are in a subnet with it, and questions too.
func TestSourcesAreTheDevicesAddresses(t *testing.T) {
	w := newWorld(t)
	table := w.table()
	d := w.devices["eth1"]
	for _, p := range []string{"198.18.100.200/24", "198.18.100.201/24", "192.0.2.1/24", "2001:db8:64::200/64", "198.18.100.1/32"} {
		d.Prefixes = append(d.Prefixes, netip.MustParsePrefix(p))
	}
	w.devices["eth1"] = d
	wanted := at(100, one, six)
	zone := w.sync(table, wanted).Ways[linkOf(100)].Zone
	want := map[datapath.SourceKey]netip.Addr{
		{Zone: zone, Prefix: netip.MustParsePrefix("198.18.100.0/24")}:  netip.MustParseAddr("198.18.100.200"),
		{Zone: zone, Prefix: netip.MustParsePrefix("2001:db8:64::/64")}: netip.MustParseAddr("2001:db8:64::200"),
	}
	if !maps.Equal(w.sources, want) {
		t.Errorf("sources %v, want %v", w.sources, want)
	}
	for _, q := range w.questions() {
		if q.Source != want[datapath.SourceKey{Zone: zone, Prefix: netip.PrefixFrom(q.Target, map[bool]int{true: 24, false: 64}[q.Target.Is4()]).Masked()}] {
			t.Errorf("%s is asked for as %s", q.Target, q.Source)
		}
	}
	d.Prefixes = d.Prefixes[1:2]
	w.devices["eth1"] = d
	w.sync(table, wanted)
	if want := map[datapath.SourceKey]netip.Addr{{Zone: zone, Prefix: netip.MustParsePrefix("198.18.100.0/24")}: netip.MustParseAddr("198.18.100.201")}; !maps.Equal(w.sources, want) {
		t.Errorf("sources %v, want %v", w.sources, want)
	}
	delete(w.devices, "eth1")
	w.sync(table, wanted)
	if len(w.sources) != 1 {
		t.Errorf("the sources of a device that may return: %v", w.sources)
	}
	w.check(table.Prune(nil))
	if len(w.sources)+len(w.neighbours)+len(w.vlans) != 0 {
		t.Errorf("left: %v %v %v", w.sources, w.neighbours, w.vlans)
	}
}

func TestAGivenMACIsNotAskedFor(t *testing.T) {
	w := newWorld(t)
	table := w.table()
	given := at(100, one)
	given[0].VLAN.MAC = "02:00:5e:10:00:09"
	s := w.sync(table, append(at(100, one, six), given...))
	k := datapath.NeighbourKey{Zone: s.Ways[linkOf(100)].Zone, Address: one}
	if want := (datapath.Neighbour{MAC: [6]byte{2, 0, 0x5e, 0x10, 0, 9}, Fixed: true}); w.neighbours[k] != want {
		t.Errorf("neighbour %+v, want %+v", w.neighbours[k], want)
	}
	for _, q := range w.questions() {
		if q.Target == one {
			t.Errorf("asked %+v", q)
		}
	}
	w.sync(table, at(100, one))
	if n := w.neighbours[k]; n.Fixed || n.MAC != [6]byte{} || len(w.questions()) != 1 {
		t.Errorf("given no more: %+v", n)
	}
}

func TestWhatFailsIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	table := w.table()
	w.fail = errors.New("no room")
	s, err := table.Sync(at(100, one))
	if !errors.Is(err, w.fail) || s.Ways[linkOf(100)].Problem == "" {
		t.Errorf("%+v, %v", s, err)
	}
	w.fail = nil
	w.sync(table, at(100, one))
	w.fail = errors.New("no room")
	if err := table.Prune(nil); !errors.Is(err, w.fail) || !table.Surplus(nil) {
		t.Errorf("prune: %v", err)
	}
	w.fail = nil
	if w.check(table.Prune(nil)); len(w.vlans)+len(w.neighbours) != 0 {
		t.Errorf("left: %v %v", w.vlans, w.neighbours)
	}
}

// What somebody removed from the maps is made anew.
func TestRemovedNeighboursAreMadeAnew(t *testing.T) {
	w := newWorld(t)
	table := w.table()
	w.sync(table, at(100, one))
	clear(w.neighbours)
	w.now = w.now.Add(time.Second)
	w.sync(table, at(100, one))
	w.sync(table, at(100, one))
	if len(w.neighbours) != 1 {
		t.Error("a neighbour stays removed")
	}
}
