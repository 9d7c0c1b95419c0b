package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// trio is a store in memory, and two nodes with one container each.
func trio(t *testing.T) (*memory, *node, *node) {
	t.Helper()
	m := newMemory()
	a := newNode(t, "node-a", 1, m).start([]state.Definition{web("web", "10.96.0.1")}, container("a", "10.88.0.2", "web"))
	b := newNode(t, "node-b", 2, m).start(nil, container("b", "10.89.0.2", "web", "lone"))
	a.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.2 active")
	return m, a, b
}

func TestNodesSeeEachOther(t *testing.T) {
	t.Parallel()
	_, a, b := trio(t)
	eventually(t, "nodes", func() bool { return len(a.source.Nodes()) == 1 && len(b.source.Nodes()) == 1 })
	n := a.source.Nodes()[0]
	if n.Name != "node-b" || n.Address != b.address || !n.Alive || n.Version != "test" {
		t.Errorf("%+v", n)
	}
	b.store.SetEndpoints(nil)
	a.wantBackends("web", "node-a/10.88.0.2 active")
	b.store.SetEndpoints([]registry.Endpoint{container("c", "10.89.0.3", "web")})
	a.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.3 active")
	b.store.SetUnhealthy(nil)
}

func TestHealthIsTold(t *testing.T) {
	t.Parallel()
	_, a, b := trio(t)
	b.store.SetServices([]state.Definition{web("web", "10.96.0.1")})
	b.store.SetUnhealthy(map[state.HealthRef]struct{}{
		{Service: "web", Node: "node-b", Address: addr("10.89.0.2"), Endpoint: registry.EndpointID("b", "eth0")}: {},
	})
	a.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.2 unhealthy")
	b.store.SetUnhealthy(map[state.HealthRef]struct{}{})
	a.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.2 active")
}

func TestNodeWhoseLeaseEndsIsOutButForTheLast(t *testing.T) {
	t.Parallel()
	m, a, b := trio(t)
	a.store.SetServices([]state.Definition{web("web", "10.96.0.1"), web("lone", "10.96.0.2")})
	a.wantBackends("lone", "node-b/10.89.0.2 active")
	it, _ := m.get(nodesDir + "node-b")
	b.die()
	m.expire(it.lease)
	a.wantBackends("web", "node-a/10.88.0.2 active")
	a.wantBackends("lone", "node-b/10.89.0.2 active lost")
	if n := a.source.Nodes(); len(n) != 1 || n[0].Alive || n[0].Gone.IsZero() {
		t.Errorf("nodes %+v", n)
	}
	// It registers again.
	b.start(nil, container("b2", "10.89.0.9", "web", "lone"))
	a.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.9 active")
	a.wantBackends("lone", "node-b/10.89.0.9 active")
}

func TestStoppedNodeStaysForRestartGrace(t *testing.T) {
	t.Parallel()
	m, a, b := trio(t)
	first, _ := m.get(nodesDir + "node-b")
	b.stop()
	now, there := m.get(nodesDir + "node-b")
	if !there || now.lease == first.lease || m.ttl(now.lease) != 5*time.Minute {
		t.Fatalf("after the stop: there %t, lease %d (was %d), ttl %s", there, now.lease, first.lease, m.ttl(now.lease))
	}
	if m.ttl(first.lease) != 0 {
		t.Error("the old lease lives on")
	}
	member := membersDir + "node-b/" + registry.EndpointID("b", "eth0")
	if it, _ := m.get(member); it.lease != now.lease {
		t.Error("the container hangs on another lease")
	}
	// The next proxy takes the keys over: none of them is ever away.
	gone := make(chan string, 100)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, revision, _ := m.link(new(atomic.Bool)).load(ctx)
	go func() {
		_ = m.link(new(atomic.Bool)).watch(ctx, revision+1, func(batch batch) {
			for _, c := range batch.changes {
				if c.value == nil {
					gone <- c.key
				}
			}
		})
	}()
	b.start(nil, container("b", "10.89.0.2", "web", "lone"))
	eventually(t, "keys taken over", func() bool {
		it, _ := m.get(nodesDir + "node-b")
		return m.ttl(it.lease) == 10*time.Second && m.ttl(now.lease) == 0
	})
	if it, _ := m.get(member); m.ttl(it.lease) != 10*time.Second {
		t.Error("the container still hangs on the old lease")
	}
	a.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.2 active")
	select {
	case key := <-gone:
		t.Errorf("%s was away", key)
	default:
	}
}

func TestWithoutRestartGraceAStoppedNodeIsOutAtOnce(t *testing.T) {
	t.Parallel()
	m, a, b := trio(t)
	b.stop()
	b.etcd.RestartGrace = 0
	b.start(nil, container("b", "10.89.0.2", "web"))
	eventually(t, "b is back", func() bool {
		it, _ := m.get(nodesDir + "node-b")
		return m.ttl(it.lease) == 10*time.Second
	})
	b.stop()
	if _, there := m.get(nodesDir + "node-b"); there {
		t.Error("its record stays")
	}
	a.wantBackends("web", "node-a/10.88.0.2 active")
}

func TestAwayStoreChangesNothingAndIsToldLater(t *testing.T) {
	t.Parallel()
	m, a, b := trio(t)
	m.setDown(true)
	eventually(t, "noticed", func() bool { return !a.source.Status().Connected && !b.source.Status().Connected })
	a.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.2 active")
	// Who joins is used here at once.
	a.store.SetEndpoints([]registry.Endpoint{container("a", "10.88.0.2", "web"), container("new", "10.88.0.3", "web")})
	a.wantBackends("web", "node-a/10.88.0.2 active", "node-a/10.88.0.3 active", "node-b/10.89.0.2 active")
	if err := a.store.SetDrain("web", "b", true); err != nil {
		t.Fatal(err)
	}
	// A restart without etcd knows the other node.
	a.stop()
	a.start([]state.Definition{web("web", "10.96.0.1")}, container("a", "10.88.0.2", "web"), container("new", "10.88.0.3", "web"))
	eventually(t, "published without etcd", func() bool { return a.store.Snapshot() != nil })
	a.wantBackends("web", "node-a/10.88.0.2 active", "node-a/10.88.0.3 active", "node-b/10.89.0.2 draining")
	b.store.SetServices([]state.Definition{web("web", "10.96.0.1")})
	m.setDown(false)
	b.wantBackends("web", "node-a/10.88.0.2 active", "node-a/10.88.0.3 active", "node-b/10.89.0.2 draining")
	a.wantBackends("web", "node-a/10.88.0.2 active", "node-a/10.88.0.3 active", "node-b/10.89.0.2 draining")
	if n := strings.Count(a.log.String(), "level=ERROR"); n > 3 {
		t.Errorf("%d error lines:\n%s", n, a.log)
	}
}

// A loss of etcd's data, or of changes, takes nothing away for a moment.
func TestMissedChangesAreReadAgain(t *testing.T) {
	t.Parallel()
	m, a, b := trio(t)
	m.setDown(true)
	eventually(t, "noticed", func() bool { return !a.source.Status().Connected && !b.source.Status().Connected })
	m.mu.Lock()
	m.items, m.leases = make(map[string]item), make(map[int64]time.Duration) // as after a restore of an empty store
	m.mu.Unlock()
	m.compact()
	var seen []string
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if got := fmt.Sprint(a.backends("web")); !slices.Contains(seen, got) {
				seen = append(seen, got)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	m.setDown(false)
	for _, n := range []*node{a, b} {
		eventually(t, n.name+" is back", func() bool { _, ok := m.get(nodesDir + n.name); return ok })
	}
	eventually(t, "a knows b", func() bool { n := a.source.Nodes(); return len(n) == 1 && n[0].Alive && n[0].Gone.IsZero() })
	close(stop)
	<-ended
	if len(seen) != 1 {
		t.Errorf("a saw %q", seen)
	}
}

func TestServicesOfEtcdAreOnAllNodes(t *testing.T) {
	t.Parallel()
	m, a, b := trio(t)
	if err := a.source.Put(t.Context(), []NewService{text("api", ""), text("db", "10.96.7.7")}, fromPool("10.96.0.0/16", "api")); err != nil {
		t.Fatal(err)
	}
	svc := a.store.Snapshot().Service("api")
	if svc == nil || len(svc.Spec.VIPs) != 1 || svc.File != state.FileEtcd {
		t.Fatalf("%+v", svc)
	}
	eventually(t, "api on b", func() bool {
		other := b.store.Snapshot().Service("api")
		return other != nil && slices.Equal(other.Spec.VIPs, svc.Spec.VIPs) && b.store.Snapshot().Service("db") != nil
	})
	// Changed without vips, it keeps the one that it has.
	changed := text("api", "")
	changed.Text = append(changed.Text, "  backends: [{address: 192.0.2.99}]\n"...)
	if err := b.source.Put(t.Context(), []NewService{changed}, fromPool("10.96.0.0/16", "api")); err != nil {
		t.Fatal(err)
	}
	a.wantBackends("api", "192.0.2.99 active")
	if got := a.store.Snapshot().Service("api").Spec.VIPs; !slices.Equal(got, svc.Spec.VIPs) {
		t.Errorf("VIPs moved from %s to %s", svc.Spec.VIPs, got)
	}
	err := b.source.Put(t.Context(), []NewService{text("thief", "10.96.7.7")}, fromPool("10.96.0.0/16"))
	if !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "service db") {
		t.Errorf("thief: %v", err)
	}
	if err := a.source.Delete(t.Context(), "db"); err != nil {
		t.Fatal(err)
	}
	if a.store.Snapshot().Service("db") != nil {
		t.Error("db is still there")
	}
	if err := b.source.Put(t.Context(), []NewService{text("heir", "10.96.7.7")}, fromPool("10.96.0.0/16")); err != nil {
		t.Errorf("the VIP of a deleted service: %v", err)
	}
	if err := a.source.Delete(t.Context(), "db"); !errors.Is(err, ErrNoService) {
		t.Errorf("deleted twice: %v", err)
	}
	m.setDown(true)
	eventually(t, "noticed", func() bool { return !a.source.Status().Connected })
	if err := a.source.Put(t.Context(), []NewService{text("late", "10.96.9.9")}, fromPool("10.96.0.0/16")); !errors.Is(err, ErrAway) {
		t.Errorf("put without etcd: %v", err)
	}
}

func TestForeignKeysAreNamedAndLeftAlone(t *testing.T) {
	t.Parallel()
	m, a, _ := trio(t)
	foreign := map[string]string{
		"nodes/node-x":                    "not JSON",
		"nodes/a\nb":                      `{"name":"a\nb"}`,
		"nodes/node-y":                    `{"name":"node-y","address":"127.0.0.1"}`,
		"members/node-b/lo":               `{"id":"lo","addresses":["10.0.0.1","::1"]}`,
		"members/node-b/zzz":              `{"id":"other","addresses":["192.0.2.1"]}`,
		"services/broken":                 "services:\n- name: broken\n  ports: [{port: 99999}]\n",
		"services/novip":                  "services:\n- name: novip\n  ports: [{port: 80}]\n",
		"overrides/web/_/192.0.2.1":       `{"service":"other","address":"192.0.2.1"}`,
		"tables/web/v4":                   "{\"owner\":\"node-b\"}\nnot deflated",
		"something/else":                  "1",
		"members/node-b/too/many/slashes": "{}",
	}
	for key, value := range foreign {
		m.put(key, value)
	}
	m.put("services/fine", "services:\n- {name: fine, vips: [10.96.4.4], ports: [{port: 80}]}\n")
	eventually(t, "the good one counts", func() bool { return a.store.Snapshot().Service("fine") != nil })
	eventually(t, "all are named", func() bool { return len(a.source.Status().Problems) == len(foreign) })
	if n := strings.Count(a.log.String(), " in etcd is ignored"); n != len(foreign) {
		t.Errorf("%d lines about %d keys:\n%s", n, len(foreign), a.log)
	}
	problems := strings.Join(a.source.Status().Problems, "\n")
	for key, value := range foreign {
		if !strings.Contains(problems, "key "+plain("/tclb/v1/"+key)+" in etcd is ignored: ") {
			t.Errorf("nothing about %q:\n%s", key, problems)
		}
		if it, _ := m.get(key); string(it.value) != value {
			t.Errorf("%q was changed", key)
		}
	}
	for key := range foreign {
		m.remove(key)
	}
	eventually(t, "no problem is left", func() bool { return len(a.source.Status().Problems) == 0 })
}

// A key that somebody spoils does not take away what it said, and is put right by who owns it.
func TestSpoiledKeysAreRepaired(t *testing.T) {
	t.Parallel()
	m, a, _ := trio(t)
	good, _ := m.get(nodesDir + "node-b")
	m.put(nodesDir+"node-b", "spoiled")
	m.remove(membersDir + "node-a/" + registry.EndpointID("a", "eth0"))
	eventually(t, "repaired", func() bool {
		it, _ := m.get(nodesDir + "node-b")
		_, there := m.get(membersDir + "node-a/" + registry.EndpointID("a", "eth0"))
		return there && string(it.value) == string(good.value) && it.lease == good.lease
	})
	a.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.2 active")
}

func TestTwoNodesOfOneName(t *testing.T) {
	t.Parallel()
	m, a, _ := trio(t)
	twin := newNode(t, "node-b", 9, m).start(nil, container("twin", "10.90.0.2", "web"))
	eventually(t, "said", func() bool { return len(twin.source.Status().Problems) == 1 })
	if p := twin.source.Status().Problems[0]; !strings.Contains(p, "node-b") || !strings.Contains(p, "192.0.2.2") {
		t.Error(p)
	}
	a.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.2 active")
}

func TestTwoNodesOfOneAddress(t *testing.T) {
	t.Parallel()
	m, a, _ := trio(t)
	newNode(t, "node-c", 2, m).start(nil)
	eventually(t, "said", func() bool { return len(a.source.Status().Problems) == 1 })
	if p := a.source.Status().Problems[0]; !strings.Contains(p, "node-b and node-c have the same address 192.0.2.2") {
		t.Error(p)
	}
}

func TestSteadyClusterWritesNothing(t *testing.T) {
	t.Parallel()
	m, a, b := trio(t)
	eventually(t, "all is told", func() bool { return len(a.source.Nodes()) == 1 && len(b.source.Nodes()) == 1 })
	var before int
	eventually(t, "writes end", func() bool {
		before = m.count()
		time.Sleep(50 * time.Millisecond)
		return m.count() == before
	})
	a.touch()
	b.touch()
	time.Sleep(50 * time.Millisecond)
	if n := m.count(); n != before {
		t.Errorf("%d writes without a change", n-before)
	}
}

func TestLostLeaseIsTakenAnew(t *testing.T) {
	t.Parallel()
	m, a, b := trio(t)
	it, _ := m.get(nodesDir + "node-b")
	m.expire(it.lease)
	b.store.SetEndpoints([]registry.Endpoint{container("c", "10.89.0.3", "web")})
	a.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.3 active")
	if !strings.Contains(b.log.String(), "counted as dead") {
		t.Errorf("nothing said:\n%s", b.log)
	}
}
