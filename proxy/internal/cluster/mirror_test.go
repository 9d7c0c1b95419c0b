package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/pkg/sched"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// keysOf are the keys of a node with one container.
func keysOf(name string) map[string]item {
	id := registry.EndpointID("c-"+name, "eth0")
	return map[string]item{
		nodesDir + name:                {value: fmt.Appendf(nil, `{"name":%q,"address":"192.0.2.1"}`, name), lease: 1},
		membersDir + name + "/" + id:   {value: fmt.Appendf(nil, `{"id":%q,"addresses":["10.0.0.1"],"services":["web"]}`, id), lease: 1},
		healthDir + name + "/" + "web": {value: []byte(`[{"address":"10.0.0.1"}]`), lease: 1},
	}
}

func gone(keys map[string]item, revision int64) (b batch) {
	for key := range keys {
		b.changes = append(b.changes, change{key: key})
	}
	b.revision = revision
	return b
}

func TestNodeThatIsMissingWhenAllIsReadAnewGetsAGrace(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	m := newMirror("node-a")
	m.replace(keysOf("node-b"), 1, now, time.Minute)
	m.replace(nil, 9, now, time.Minute)
	p := m.peers(now)["node-b"]
	if p == nil || p.Lost || len(p.Members) != 1 || len(p.Health) != 1 {
		t.Fatalf("just after: %+v", p)
	}
	if next := m.nextLoss(now); !next.Equal(now.Add(time.Minute)) {
		t.Errorf("looks again at %s", next)
	}
	if n := m.known(now); len(n) != 1 || !n[0].Alive {
		t.Errorf("known %+v", n)
	}
	now = now.Add(time.Minute)
	if p = m.peers(now)["node-b"]; !p.Lost || len(p.Members) != 1 {
		t.Errorf("after the grace: %+v", p)
	}
	m.replace(keysOf("node-b"), 10, now, time.Minute)
	if p = m.peers(now)["node-b"]; p.Lost {
		t.Error("it is back")
	}
}

func TestNodeThatIsSeenToGoIsLostAtOnce(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	m := newMirror("node-a")
	m.replace(keysOf("node-b"), 1, now, time.Minute)
	before := m.peers(now)["node-b"]
	if again := m.peers(now)["node-b"]; again != before {
		t.Error("what did not change has another pointer")
	}
	m.apply(gone(keysOf("node-b"), 2), now)
	p := m.peers(now)["node-b"]
	if !p.Lost || len(p.Members) != 1 || len(p.Health) != 1 {
		t.Errorf("%+v", p)
	}
	if n := m.known(now.Add(forgetNodes)); len(n) != 0 {
		t.Errorf("still listed: %+v", n)
	}
}

// Containers without a record are those of a node that is just registering: it puts its record last.
func TestContainersCountFromTheRecordOn(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	keys := keysOf("node-b")
	record := keys[nodesDir+"node-b"]
	delete(keys, nodesDir+"node-b")
	m := newMirror("node-a")
	m.replace(keys, 1, now, time.Minute)
	if p := m.peers(now); len(p) != 0 {
		t.Errorf("%+v", p)
	}
	m.apply(batch{revision: 2, changes: []change{{nodesDir + "node-b", record}}}, now)
	if p := m.peers(now)["node-b"]; p == nil || len(p.Members) != 1 {
		t.Errorf("%+v", p)
	}

	s := New(Options{Node: "node-b", Log: slog.New(slog.DiscardHandler)})
	want := make(map[string][]byte)
	for key, it := range keysOf("node-b") {
		want[key] = it.value
	}
	ops, _ := s.ownOps(want, 7)
	if last := ops[len(ops)-1]; len(ops) != 3 || last.key != nodesDir+"node-b" || last.lease != 7 {
		t.Errorf("the record is not put last: %+v", ops)
	}
	for key, it := range keysOf("node-b") { // as a proxy before left them
		s.mirror.put(key, it)
	}
	if ops, old := s.ownOps(want, 7); len(ops) != 3 || len(old) != 1 || old[0] != 1 {
		t.Errorf("taken over by %+v, leases %v", ops, old)
	}
	s.mirror.put(membersDir+"node-b/stale", item{value: []byte(`{"id":"stale","addresses":["10.0.0.9"]}`), lease: 1})
	ops, _ = s.ownOps(want, 1)
	if len(ops) != 1 || !ops[0].delete || !strings.HasSuffix(ops[0].key, "stale") {
		t.Errorf("what is left over: %+v", ops)
	}
}

func TestNodesWriteNewTablesOneAfterTheOther(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	writers := 0
	for _, self := range []string{"node-a", "node-b", "node-c"} {
		s := New(Options{Node: self, Log: slog.New(slog.DiscardHandler), now: func() time.Time { return now }})
		all := make(map[string]item)
		for _, other := range []string{"node-a", "node-b", "node-c"} {
			for key, it := range keysOf(other) {
				all[key] = it
			}
		}
		s.mirror.replace(all, 1, now, 0)
		s.Lead("web", "v4", "", stored(t, new(sched.Base), "x"))
		writes, again := s.tableWrites()
		writers += len(writes)
		if len(writes) == 0 && !again.Equal(now.Add(leadAfter)) {
			t.Errorf("%s looks again at %s", self, again)
		}
		now = now.Add(leadAfter)
		if late, _ := s.tableWrites(); len(writes)+len(late) != 1 {
			t.Errorf("%s writes %d times at once and %d times later", self, len(writes), len(late))
		}
	}
	if writers != 1 {
		t.Errorf("%d nodes of three write at once", writers)
	}
}

// Each loss is looked for after the one before, also with nothing new from etcd.
func TestNodesAreLostOneAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.New("node-a", t.TempDir(), lb.Timeouts{}, slog.New(slog.DiscardHandler))
		store.Share()
		store.SetEndpoints([]registry.Endpoint{container("a", "10.88.0.2", "web")})
		store.SetServices([]state.Definition{web("web", "10.96.0.1")})
		s := New(Options{Node: "node-a", Store: store, Self: func() Node { return Node{} }, Log: slog.New(slog.DiscardHandler)})
		for i, name := range []string{"node-b", "node-c"} {
			gone := time.Now().Add(time.Duration(i+1) * time.Minute)
			member := container(name, fmt.Sprintf("10.89.0.%d", i+1), "web")
			s.mirror.nodes[name] = &peer{kept: &kept{record: Node{Name: name}, gone: gone, members: map[string]registry.Endpoint{member.ID: member}}}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.present(ctx)
		for _, want := range []string{"node-a node-b node-c", "node-a node-c", "node-a"} {
			time.Sleep(50 * time.Second)
			synctest.Wait()
			var there []string
			for _, b := range store.Snapshot().Service("web").Backends {
				there = append(there, b.Node)
			}
			slices.Sort(there)
			if got := strings.Join(there, " "); got != want {
				t.Errorf("backends on %q, want %q", got, want)
			}
		}
	})
}
