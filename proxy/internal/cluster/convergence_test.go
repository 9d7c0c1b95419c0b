package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/datapath/dptest"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/pkg/sched"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// proxy is a whole one but for the kernel: state, cluster and reconciler, with maps in memory.
type proxy struct {
	t         testing.TB
	i         int
	dir       string
	endpoints []registry.Endpoint
	store     *state.Store
	source    *Source
	rec       *reconcile.Reconciler
	maps      *dptest.Maps

	dead   atomic.Bool // etcd is out of its reach
	mu     sync.Mutex
	passed chan struct{}
}

func (p *proxy) next() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.passed
}

func (p *proxy) tell() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.passed)
	p.passed = make(chan struct{})
}

// fleet are proxies that share one etcd.
type fleet struct {
	t       testing.TB
	server  *server
	client  *clientv3.Client
	proxies []*proxy
	service int
}

// membersEach is how many containers a service has, each on another node.
const membersEach = 4

func startFleet(t testing.TB, nodes, services int) *fleet {
	t.Helper()
	s := newServer(t)
	f := &fleet{t: t, server: s, client: s.raw(), service: services}
	f.putServices()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	for i := range nodes {
		p := newProxy(t, s, i, services)
		for svc := range services {
			for m := range min(membersEach, nodes) {
				if (svc+m)%nodes == i {
					p.endpoints = append(p.endpoints, f.container(svc, m))
				}
			}
		}
		f.proxies = append(f.proxies, p)
	}
	for _, p := range f.proxies {
		p.store.SetServices(nil)
		p.store.SetEndpoints(slices.Clone(p.endpoints))
		wg.Go(func() { _ = p.source.Run(ctx) })
		wg.Go(func() { p.loop(ctx) })
	}
	return f
}

func newProxy(t testing.TB, s *server, i, services int) *proxy {
	name := fmt.Sprintf("node-%02d", i)
	p := &proxy{t: t, i: i, dir: t.TempDir(), passed: make(chan struct{})}
	log := slog.New(slog.DiscardHandler)
	p.store = state.New(name, p.dir, datapath.DefaultTimeouts, log)
	p.store.Share()
	etcd := config.Etcd{Endpoints: []string{s.client}, Prefix: "/tclb", LeaseTTL: 30 * time.Second, RestartGrace: time.Minute}
	p.source = New(Options{
		Etcd: etcd, dial: mortal(&p.dead, etcd),
		Node: name, StateDir: p.dir, Store: p.store, Log: log, Changed: p.next,
		Self: func() Node { return Node{Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})} },
	})
	p.maps = dptest.New(datapath.Sizes{MaxServices: uint32(4 * services), MaxBackends: uint32(16 * services), TableSlots: uint32(2048 * services)})
	p.rec = reconcile.New(reconcile.Options{
		Maps: p.maps, Arena: datapath.NewArena(p.maps.Sizes().TableSlots, 0, time.Now),
		TableDir: filepath.Join(p.dir, "tables"), Shared: p.source, Now: time.Now, Log: log,
	})
	return p
}

// loop is the daemon's.
func (p *proxy) loop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.store.Changed():
			p.rec.Apply(p.store.Snapshot())
		case <-p.source.TablesChanged():
			p.rec.Refresh(p.source.TakeTables())
		}
		p.tell()
	}
}

func serviceName(i int) string { return fmt.Sprintf("svc-%04d", i) }

// container is a service's m-th member, with an address that its node alone gives away.
func (f *fleet) container(svc, m int) registry.Endpoint {
	e := container(fmt.Sprintf("c-%d-%d", svc, m), "10.0.0.1", serviceName(svc))
	e.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, byte(m), byte(svc >> 8), byte(svc)})}
	return e
}

// putServices is somebody who applies them all.
func (f *fleet) putServices() {
	f.t.Helper()
	var ops []clientv3.Op
	for i := range f.service {
		text := fmt.Sprintf("services:\n- name: %s\n  vips: [10.96.%d.%d]\n  ports: [{port: 80}]\n", serviceName(i), i>>8, i&255)
		ops = append(ops, clientv3.OpPut("/tclb/v1/services/"+serviceName(i), text))
	}
	for chunk := range slices.Chunk(ops, maxOps) {
		if _, err := f.client.Txn(f.t.Context()).Then(chunk...).Commit(); err != nil {
			f.t.Fatal(err)
		}
	}
}

// complete says whether a node has every service with its members, in the maps.
func (p *proxy) complete(services, members int) bool {
	s := p.store.Snapshot()
	if s == nil || len(s.Services) != services || p.rec.Stats().Applied != s.Revision {
		return false
	}
	for _, svc := range s.Services {
		if len(svc.Backends) < members {
			return false
		}
	}
	return true
}

// table returns who owns each slot of a service, as this node has it.
func (p *proxy) table(service string) []string {
	data, err := os.ReadFile(filepath.Join(p.dir, "tables", service+".v4"))
	if err != nil {
		return nil
	}
	var base sched.Base
	if err := base.UnmarshalBinary(data); err != nil {
		p.t.Error(err)
		return nil
	}
	out := make([]string, len(base.Owners))
	for i, o := range base.Owners {
		if o != sched.NoSeat {
			out[i] = base.Seats[o].Key
		}
	}
	return out
}

// agree says whether all nodes have the same owner in every slot of a service, and who it is in some.
func (f *fleet) agree(service string, want string) bool {
	var first []string
	for i, p := range f.proxies {
		t := p.table(service)
		if i == 0 {
			first = t
		}
		if len(t) == 0 || !slices.Equal(t, first) {
			return false
		}
	}
	return want == "" || slices.Contains(first, want)
}

// save writes everybody's tables, so that they can be looked at.
func (f *fleet) save() {
	for _, p := range f.proxies {
		p.rec.Save()
	}
}

// settle waits until all nodes have everything and agree on every slot of every service.
func (f *fleet) settle() {
	f.t.Helper()
	members := min(membersEach, len(f.proxies))
	eventuallyIn(f.t, 10*time.Minute, "all nodes have everything", func() bool {
		return !slices.ContainsFunc(f.proxies, func(p *proxy) bool { return !p.complete(f.service, members) })
	})
	eventuallyIn(f.t, 5*time.Minute, "all nodes agree on every slot", func() bool {
		f.save()
		for i := range f.service {
			if !f.agree(serviceName(i), "") {
				return false
			}
		}
		return true
	})
}

func eventuallyIn(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestConvergence starts nodes that share an etcd, and changes things. All nodes must agree on every slot.
// TCLB_CONVERGENCE=50x1000 sets the size.
func TestConvergence(t *testing.T) {
	needServer(t)
	nodes, services := 8, 60
	if size := os.Getenv("TCLB_CONVERGENCE"); size != "" {
		if _, err := fmt.Sscanf(size, "%dx%d", &nodes, &services); err != nil {
			t.Fatalf("TCLB_CONVERGENCE=%s: want NODESxSERVICES", size)
		}
	}
	begun := time.Now()
	f := startFleet(t, nodes, services)
	f.settle()
	t.Logf("%d nodes x %d services x %d containers, %d cores: all start at once and agree after %s", nodes, services, min(membersEach, nodes), runtime.NumCPU(), time.Since(begun).Round(time.Millisecond))
	var seen, agreed []time.Duration
	for i := range 20 {
		p, svc := f.proxies[i%nodes], serviceName(i%services)
		e := container(fmt.Sprintf("late-%d", i), fmt.Sprintf("10.200.0.%d", i+1), svc)

		begun := time.Now()
		p.endpoints = append(p.endpoints, e)
		p.store.SetEndpoints(slices.Clone(p.endpoints))
		want := fmt.Sprintf("node-%02d/%s", p.i, e.Addresses[0])
		eventually(t, "all nodes know the container", func() bool {
			return !slices.ContainsFunc(f.proxies, func(p *proxy) bool {
				return !slices.ContainsFunc(p.store.Snapshot().Service(svc).Backends, func(b state.Backend) bool { return b.Key() == want })
			})
		})
		seen = append(seen, time.Since(begun))
		eventually(t, "all nodes agree", func() bool {
			f.save()
			return f.agree(svc, want)
		})
		agreed = append(agreed, time.Since(begun))
	}
	slices.Sort(seen)
	slices.Sort(agreed)
	t.Logf("a container joins: on all nodes after %s (median), %s (most); all slots agree after %s, %s",
		seen[len(seen)/2].Round(time.Millisecond), seen[len(seen)-1].Round(time.Millisecond),
		agreed[len(agreed)/2].Round(time.Millisecond), agreed[len(agreed)-1].Round(time.Millisecond))
	f.loseNode()
	f.save()
	for i := range services {
		if !f.agree(serviceName(i), "") {
			t.Errorf("nodes differ about %s in the end", serviceName(i))
		}
	}
}

// loseNode ends a node's lease and waits until it is out everywhere.
func (f *fleet) loseNode() {
	f.t.Helper()
	lost := f.proxies[len(f.proxies)-1]
	lost.source.mu.Lock()
	lease, link := lost.source.lease, lost.source.link
	lost.source.mu.Unlock()
	lost.dead.Store(true)
	_ = link.close()
	begun := time.Now()
	if _, err := f.client.Revoke(f.t.Context(), clientv3.LeaseID(lease)); err != nil {
		f.t.Fatal(err)
	}
	f.proxies = f.proxies[:len(f.proxies)-1]
	eventuallyIn(f.t, 5*time.Minute, "the node's backends are out", func() bool {
		return !slices.ContainsFunc(f.proxies, func(p *proxy) bool {
			return slices.ContainsFunc(p.store.Snapshot().Services, func(svc *state.Service) bool {
				return slices.ContainsFunc(svc.Backends, func(b state.Backend) bool { return b.Node == lost.source.self })
			})
		})
	})
	f.t.Logf("a node dies: its backends are out on all nodes %s after the end of its lease", time.Since(begun).Round(time.Millisecond))
	eventuallyIn(f.t, 5*time.Minute, "the others agree without it", func() bool {
		f.save()
		for i := range f.service {
			if !f.agree(serviceName(i), "") {
				return false
			}
		}
		return true
	})
	f.t.Logf("and they agree on every slot after %s", time.Since(begun).Round(time.Millisecond))
}
