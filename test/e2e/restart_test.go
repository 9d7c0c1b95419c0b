package e2e

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// load is steady traffic: each client makes one request after the other, each on a connection of
// its own.
type load struct {
	stopping chan struct{}
	running  sync.WaitGroup

	mu       sync.Mutex
	requests int
	failures []error
}

func startLoad(clients []*container, v int) *load {
	l := &load{stopping: make(chan struct{})}
	for _, c := range clients {
		for family := range families {
			for _, proto := range []string{"tcp", "udp"} {
				l.running.Go(func() { l.client(c, proto, v, family) })
			}
		}
	}
	return l
}

func (l *load) client(c *container, proto string, v, family int) {
	for {
		select {
		case <-l.stopping:
			return
		default:
		}
		_, err := c.ask(proto, front(vip(v), family))
		l.mu.Lock()
		l.requests++
		if err != nil {
			l.failures = append(l.failures, fmt.Errorf("%s from %s: %w", proto, c.name, err))
		}
		l.mu.Unlock()
	}
}

// end stops the load, which must have been one without failures.
func (l *load) end(t *testing.T) {
	t.Helper()
	close(l.stopping)
	l.running.Wait()
	if len(l.failures) > 0 {
		t.Errorf("%d of %d requests failed: %v", len(l.failures), l.requests, errors.Join(l.failures[:min(5, len(l.failures))]...))
	}
	if l.requests < 200 {
		t.Errorf("only %d requests: that was no load", l.requests)
	}
}

// mapState is what a restart must not change.
type mapState struct {
	backends  map[uint32]datapath.Backend
	frontends map[lb.Frontend]datapath.Frontend
	services  map[uint32]datapath.Service
}

func (n *node) mapState(t *testing.T) mapState {
	t.Helper()
	d := n.maps()
	var s mapState
	var err, err2 error
	s.backends, err = d.Backends()
	s.frontends, err2 = d.Frontends()
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	s.services = map[uint32]datapath.Service{}
	for _, f := range s.frontends {
		if s.services[f.Service], err = d.Service(f.Service); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func expectSameMaps(t *testing.T, before, after mapState) {
	t.Helper()
	if !maps.Equal(before.backends, after.backends) {
		t.Errorf("backends changed:\n%+v\n%+v", before.backends, after.backends)
	}
	if !maps.Equal(before.frontends, after.frontends) {
		t.Errorf("frontends changed:\n%+v\n%+v", before.frontends, after.frontends)
	}
	if !maps.Equal(before.services, after.services) {
		t.Errorf("services changed:\n%+v\n%+v", before.services, after.services)
	}
}

func TestProxyKilledUnderLoadCostsNoRequest(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.writeServices("all.yaml", "services:\n"+entry("web", vip(10))+entry("api", vip(11)))
	n.start()
	var clients []*container
	for i := range 3 {
		n.container(t, fmt.Sprintf("web%d", i), n.bridged(conf{"services": []string{"web", "api"}})).serve(targetPort)
		clients = append(clients, n.container(t, fmt.Sprintf("client%d", i), n.bridged()))
	}
	n.waitForBackends("web", 12)
	n.waitForBackends("api", 12)
	open := clients[0].mustDial(t, "tcp", front(vip(10), v4), 0)
	server := clients[0].mustHear(t, open).Server

	before := n.mapState(t)
	l := startLoad(clients, 10)
	for range 2 {
		n.kill()
		n.start()
	}
	n.stop()
	n.start()
	l.end(t)
	expectSameMaps(t, before, n.mapState(t))
	if a := clients[0].mustHear(t, open); a.Server != server {
		t.Errorf("a connection of before is answered by %s, was by %s", a.Server, server)
	}
}

func TestContainersComeAndGoWithoutProxy(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	members := n.bridged(conf{"services": []string{"web"}})
	leaving, staying := n.container(t, "leaving", members), n.container(t, "staying", members)
	leaving.serve(targetPort)
	staying.serve(targetPort)
	n.waitForBackends("web", 8)
	n.stop()

	late, client := n.container(t, "late", members), n.container(t, "client", n.bridged())
	late.serve(targetPort)
	eachWay(t, func(t *testing.T, family int, proto string) {
		expectSpread(t, client.spread(t, proto, front(vip(10), family), 40), 40, leaving.name, staying.name)
	})

	if err := leaving.del(members, "eth0"); err != nil {
		t.Fatal(err)
	}
	eachWay(t, func(t *testing.T, family int, proto string) {
		expectSpread(t, client.spread(t, proto, front(vip(10), family), 40), 40, staying.name)
	})

	n.start()
	n.waitForBackends("web", 8)
	eachWay(t, func(t *testing.T, family int, proto string) {
		expectSpread(t, client.spread(t, proto, front(vip(10), family), 40), 40, staying.name, late.name)
	})
}
