package reconcile_test

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/sched"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// together is where nodes share tables: the first to offer one leads it.
type together struct {
	leader  map[string]string
	data    map[string][]byte
	dropped []string
}

// seat is what one node sees of it.
type seat struct {
	*together
	node string
}

func (s *seat) Follow(service, family, files string, _ bool) (*sched.Base, bool) {
	key := service + family + files
	data := s.data[key]
	if data == nil || s.leader[key] == s.node {
		return nil, false
	}
	base := new(sched.Base)
	if err := base.UnmarshalBinary(data); err != nil {
		panic(err)
	}
	return base, true
}

func (s *seat) Lead(service, family, files string, data []byte) {
	key := service + family + files
	if l := s.leader[key]; l == "" || l == s.node {
		s.leader[key], s.data[key] = s.node, data
	}
}

func (s *seat) Drop(service string) { s.dropped = append(s.dropped, service) }

// sharing returns nodes that share tables.
func sharing(t *testing.T, names ...string) (*together, []*node) {
	t.Helper()
	shared := &together{leader: make(map[string]string), data: make(map[string][]byte)}
	var nodes []*node
	for _, name := range names {
		n := newNode(t, datapath.Sizes{})
		n.rec = reconcile.New(reconcile.Options{
			Maps: n.maps, Arena: datapath.NewArena(n.maps.Sizes().TableSlots, reconcile.Grace, func() time.Time { return n.now }),
			TableDir: filepath.Join(n.dir, "tables"), Shared: &seat{together: shared, node: name},
			Now: func() time.Time { return n.now }, Log: quiet,
		})
		nodes = append(nodes, n)
	}
	return shared, nodes
}

// with returns a service of etcd with backends at 198.51.100.N.
func with(backends ...string) []state.Definition {
	s := web("web", "10.96.0.1", 0)
	for _, b := range backends {
		s.Backends = append(s.Backends, lb.Backend{Address: addr("198.51.100." + b), Weight: 100})
	}
	return []state.Definition{{Spec: s, File: state.FileEtcd}}
}

func (n *node) define(defs []state.Definition) {
	n.t.Helper()
	n.store.SetServices(defs)
	n.store.SetEndpoints(nil)
	n.rec.Apply(n.store.Snapshot())
	n.rec.Save()
	n.ok()
}

func agree(t *testing.T, what string, nodes ...*node) {
	t.Helper()
	first := nodes[0].table("10.96.0.1")
	for _, n := range nodes[1:] {
		if got := n.table("10.96.0.1"); !slices.Equal(got, first) {
			t.Errorf("%s: nodes differ in %d of %d slots", what, differing(got, first), len(first))
		}
	}
}

func differing(a, b []string) int {
	if len(a) != len(b) {
		return max(len(a), len(b))
	}
	n := 0
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

func TestNodesThatShareTablesAgreeWhateverTheySaw(t *testing.T) {
	_, nodes := sharing(t, "a", "b", "late")
	a, b, late := nodes[0], nodes[1], nodes[2]
	a.define(with("1", "2", "3"))
	b.define(with("1", "2", "3"))
	agree(t, "at the start", a, b)
	// The leader has a history that a fresh table would not have.
	a.define(with("1", "3"))
	a.define(with("1", "3", "4"))
	a.define(with("3", "4"))
	b.define(with("3", "4"))
	late.define(with("3", "4"))
	agree(t, "after a history that others did not see", a, b, late)
	// A follower that hears of a new backend first does what the leader is going to do.
	b.define(with("3", "4", "5"))
	late.define(with("3", "4"))
	before := b.table("10.96.0.1")
	a.define(with("3", "4", "5"))
	b.rec.Refresh([]string{"web"})
	if n := differing(before, b.table("10.96.0.1")); n != 0 {
		t.Errorf("the leader's word moved %d slots", n)
	}
	late.define(with("3", "4", "5"))
	agree(t, "in the end", a, b, late)
}

func TestBackendThatAFollowerDoesNotSeeKeepsItsSlots(t *testing.T) {
	shared, nodes := sharing(t, "a", "b")
	a, b := nodes[0], nodes[1]
	a.define(with("1", "2", "3"))
	b.define(with("1", "2", "3"))
	led := slices.Clone(shared.data["webv4"])
	whole := b.table("10.96.0.1")
	b.define(with("1", "3"))
	for i, now := range b.table("10.96.0.1") {
		if was := whole[i]; now == "198.51.100.2" || was != "198.51.100.2" && now != was {
			t.Fatalf("slot %d went from %s to %s", i, was, now)
		}
	}
	if !slices.Equal(led, shared.data["webv4"]) {
		t.Error("a follower changed the table")
	}
	b.define(with("1", "2", "3"))
	if n := differing(whole, b.table("10.96.0.1")); n != 0 {
		t.Errorf("its return moved %d slots", n)
	}
}

// Who is not seen is not gone: nobody takes over that seat.
func TestNewBackendTakesNoSeatOfOneThatIsNotSeen(t *testing.T) {
	_, nodes := sharing(t, "a", "b")
	a, b := nodes[0], nodes[1]
	a.define(with("1", "2", "3"))
	b.define(with("1", "2", "3"))
	b.define(with("1", "3", "4"))
	early := b.table("10.96.0.1")
	a.define(with("1", "2", "3", "4"))
	for i, late := range a.table("10.96.0.1") {
		if late != "198.51.100.2" && early[i] != late {
			t.Fatalf("slot %d is %s's where 2 is not seen, and %s's where it is", i, early[i], late)
		}
	}
}

// Affinity remembers seats: in another table they mean something else.
func TestTableOfAnotherHistoryEndsAffinities(t *testing.T) {
	shared, nodes := sharing(t, "a", "b")
	a, b := nodes[0], nodes[1]
	b.define(with("8", "9"))
	own := b.generation()
	delete(shared.leader, "webv4")
	delete(shared.data, "webv4")
	a.define(with("1", "2"))
	b.rec.Refresh([]string{"web"})
	if got := b.generation(); got == own {
		t.Error("seats of another table are taken for the same")
	}
	b.define(with("1", "2"))
	now := b.generation()
	a.define(with("1", "2", "3"))
	b.rec.Refresh([]string{"web"})
	if b.generation() != now {
		t.Error("a table that goes on ends affinities")
	}
}

func (n *node) generation() uint32 {
	n.t.Helper()
	s, err := n.maps.Service(n.rec.Service("web").ID)
	if err != nil {
		n.t.Fatal(err)
	}
	return s.BaseGen
}

func TestTablesAreSharedByWhatFilesSay(t *testing.T) {
	shared, nodes := sharing(t, "a")
	a := nodes[0]
	define := func(weight int, reversed bool) {
		defs := with("1", "2")
		defs[0].File = "web.yaml"
		defs[0].Spec.Backends[1].Weight = weight
		if reversed {
			slices.Reverse(defs[0].Spec.Backends)
		}
		a.define(defs)
	}
	define(100, false)
	define(100, true)
	if len(shared.data) != 1 {
		t.Errorf("order makes another table: %d", len(shared.data))
	}
	define(50, false)
	if len(shared.data) != 2 {
		t.Errorf("files that differ share a table: %d", len(shared.data))
	}
	a.define(nil)
	if !slices.Equal(shared.dropped, []string{"web"}) {
		t.Errorf("dropped %q", shared.dropped)
	}
}
