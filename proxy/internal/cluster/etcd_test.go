package cluster

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// pair is a real etcd and two nodes with a container each.
func pair(t *testing.T, options ...string) (*server, *node, *node) {
	t.Helper()
	s := newServer(t, options...)
	a := s.node("node-a", 1).start([]state.Definition{web("web", "10.96.0.1")}, container("a", "10.88.0.2", "web"))
	b := s.node("node-b", 2).start([]state.Definition{web("web", "10.96.0.1")}, container("b", "10.89.0.2", "web"))
	both(a, b)
	return s, a, b
}

func both(nodes ...*node) {
	for _, n := range nodes {
		n.t.Helper()
		n.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.2 active")
	}
}

func TestEtcdCarriesMembersAndServices(t *testing.T) {
	t.Parallel()
	s, a, b := pair(t)
	if err := a.source.Put(t.Context(), []NewService{text("api", "10.96.0.5")}, fromPool("10.96.0.0/16")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "api on b", func() bool { return b.store.Snapshot().Service("api") != nil })
	c := s.raw()
	if got := s.get(c, "/tclb/v1/vips/10.96.0.5"); got != "api" {
		t.Errorf("VIP claimed by %q", got)
	}
	if err := a.store.SetDrain("web", "node-b/10.89.0.2", true); err != nil {
		t.Fatal(err)
	}
	b.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.2 draining")
	if err := b.store.SetDrain("web", "10.89.0.2", false); err != nil {
		t.Fatal(err)
	}
	both(a, b)
	eventually(t, "the override is gone from etcd", func() bool { return s.get(c, "/tclb/v1/overrides/web/node-b/10.89.0.2") == "" })
	if err := b.source.Delete(t.Context(), "api"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "api gone on a", func() bool { return a.store.Snapshot().Service("api") == nil })
}

func TestEtcdEndsTheLeaseOfADeadNode(t *testing.T) {
	t.Parallel()
	s, a, b := pair(t)
	// A node that dies says nothing: its requests just end.
	b.source.mu.Lock()
	link := b.source.link
	b.source.mu.Unlock()
	b.dead.Store(true)
	_ = link.close()
	a.wantBackends("web", "node-a/10.88.0.2 active")
	if got := s.get(s.raw(), "/tclb/v1/nodes/node-b"); got != "" {
		t.Errorf("its record is there: %s", got)
	}
	b.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.2 active")
}

func TestEtcdKilledAndBack(t *testing.T) {
	t.Parallel()
	s, a, b := pair(t)
	s.kill()
	eventually(t, "noticed", func() bool { return !a.source.Status().Connected && !b.source.Status().Connected })
	if e := a.source.Status().Error; !strings.Contains(e, "connection refused") || !strings.Contains(e, s.client) {
		t.Errorf("error %q", e)
	}
	both(a, b)
	b.store.SetEndpoints([]registry.Endpoint{container("b", "10.89.0.2", "web"), container("new", "10.89.0.3", "web")})
	b.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.2 active", "node-b/10.89.0.3 active")
	s.start()
	a.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.2 active", "node-b/10.89.0.3 active")
}

func TestEtcdPausedForLongerThanALease(t *testing.T) {
	t.Parallel()
	s, a, b := pair(t)
	s.signal(unix.SIGSTOP)
	defer func() { _ = s.cmd.Process.Signal(unix.SIGCONT) }() // or it could not be ended
	eventually(t, "noticed", func() bool { return !a.source.Status().Connected && !b.source.Status().Connected })
	time.Sleep(3 * time.Second) // the leases' time is over; nobody is there to end them
	both(a, b)
	a.store.SetEndpoints([]registry.Endpoint{container("a", "10.88.0.2", "web"), container("new", "10.88.0.3", "web")})
	a.wantBackends("web", "node-a/10.88.0.2 active", "node-a/10.88.0.3 active", "node-b/10.89.0.2 active")
	s.signal(unix.SIGCONT)
	b.wantBackends("web", "node-a/10.88.0.2 active", "node-a/10.88.0.3 active", "node-b/10.89.0.2 active")
	a.connected()
}

func TestEtcdCompactedWhileAway(t *testing.T) {
	t.Parallel()
	s, a, b := pair(t)
	c := s.raw()
	a.stop()
	b.store.SetEndpoints([]registry.Endpoint{container("b", "10.89.0.2", "web"), container("new", "10.89.0.3", "web")})
	b.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.2 active", "node-b/10.89.0.3 active")
	link, err := dialEtcd(t.Context(), a.etcd)
	if err != nil {
		t.Fatal(err)
	}
	defer link.close()
	for i := range 5 {
		s.put(c, "/tclb/v1/something", fmt.Sprint(i))
	}
	r, err := c.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Compact(t.Context(), r.Header.Revision); err != nil {
		t.Fatal(err)
	}
	if err := link.watch(t.Context(), 2, func(batch) {}); err != errCompacted { //nolint:errorlint // it is not wrapped
		t.Errorf("a watch of what is forgotten: %v", err)
	}
	a.start([]state.Definition{web("web", "10.96.0.1")}, container("a", "10.88.0.2", "web"))
	a.wantBackends("web", "node-a/10.88.0.2 active", "node-b/10.89.0.2 active", "node-b/10.89.0.3 active")
}

func TestConcurrentPutsNeverShareAVIP(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	var wg sync.WaitGroup
	const each = 8
	pool := "10.96.32.0/27" // 29 usable: hashes collide
	for _, n := range []*node{a, b} {
		for i := range each {
			name := fmt.Sprintf("%s-%d", n.name, i)
			wg.Go(func() {
				if err := n.source.Put(t.Context(), []NewService{text(name, "")}, fromPool(pool, name)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	taken := make(map[string]string)
	eventually(t, "both have all", func() bool { return len(a.source.Files(nil)) == 2*each && len(b.source.Files(nil)) == 2*each })
	for _, f := range a.source.Files(nil) {
		spec := f.Services[0].Service
		for _, v := range spec.VIPs {
			if o := taken[v.String()]; o != "" {
				t.Errorf("%s and %s have %s", o, spec.Name, v)
			}
			taken[v.String()] = spec.Name
		}
	}
	if len(taken) != 2*each {
		t.Errorf("%d VIPs for %d services", len(taken), 2*each)
	}
	// Named by hand, only one of two gets it.
	errs := make([]error, 2)
	for i, n := range []*node{a, b} {
		wg.Go(func() {
			errs[i] = n.source.Put(t.Context(), []NewService{text("same-"+n.name, "10.96.99.99")}, fromPool(pool))
		})
	}
	wg.Wait()
	if (errs[0] == nil) == (errs[1] == nil) {
		t.Errorf("both or none got the VIP: %v", errs)
	}
}

func TestForeignDataInARealEtcd(t *testing.T) {
	t.Parallel()
	s, a, _ := pair(t)
	c := s.raw()
	s.put(c, "/tclb/v1/nodes/stranger", "\x00\xff")
	s.put(c, "/tclb/v2/nodes/future", "not ours to read")
	s.put(c, "/other", "nor this")
	eventually(t, "named", func() bool { return len(a.source.Status().Problems) == 1 })
	if !strings.Contains(a.source.Status().Problems[0], "/tclb/v1/nodes/stranger") {
		t.Error(a.source.Status().Problems)
	}
	a.stop()
	for _, key := range []string{"/tclb/v1/nodes/stranger", "/tclb/v2/nodes/future", "/other"} {
		if s.get(c, key) == "" {
			t.Errorf("%s is gone", key)
		}
	}
}

func TestUnreachableEtcdDelaysNothingForLong(t *testing.T) {
	t.Parallel()
	n := newNode(t, "node-a", 1, nil)
	n.etcd.Endpoints = []string{"http://" + freePort(t)}
	begun := time.Now()
	n.start([]state.Definition{web("web", "10.96.0.1")}, container("a", "10.88.0.2", "web"))
	n.wantBackends0("web", "node-a/10.88.0.2 active")
	t.Logf("published after %s", time.Since(begun).Round(time.Millisecond))
	eventually(t, "said why", func() bool { return strings.Contains(n.source.Status().Error, "connection refused") })
	if k := strings.Count(n.log.String(), "etcd cannot be used"); k != 1 {
		t.Errorf("%d lines:\n%s", k, n.log)
	}
}

// wantBackends0 is wantBackends of a store that has published nothing yet.
func (n *node) wantBackends0(service string, want ...string) {
	n.t.Helper()
	eventually(n.t, "published", func() bool { return n.store.Snapshot() != nil && slices.Equal(n.backends(service), want) })
}
