package state

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// sharedStore is a store of a cluster that knows the endpoints given and no services of files.
func sharedStore(t *testing.T, defs []Definition, endpoints ...registry.Endpoint) *Store {
	t.Helper()
	s := New("node-a", t.TempDir(), lb.Timeouts{}, quiet)
	s.Share()
	s.SetServices(defs)
	s.SetEndpoints(endpoints)
	return s
}

func joining(e registry.Endpoint, services ...string) registry.Endpoint {
	e.Services = services
	return e
}

func textLog(to io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(to, nil)) }

func peers(name string, p Peer) map[string]*Peer { return map[string]*Peer{name: &p} }

func shared(name string, vips ...string) Definition {
	d := service(name, vips...)
	d.File = FileEtcd
	return d
}

func TestNothingIsPublishedBeforeTheCluster(t *testing.T) {
	s := sharedStore(t, []Definition{service("web", "10.96.0.1")})
	if s.Snapshot() != nil {
		t.Fatal("published without the other nodes")
	}
	s.SetCluster(&Cluster{})
	if s.Snapshot() == nil {
		t.Fatal("not published")
	}
}

func TestContainersOfOtherNodesJoin(t *testing.T) {
	web := service("web", "10.96.0.1", "fd00::1")
	web.Spec.Networks = []string{"net"}
	web.Spec.Backends = []lb.Backend{{Address: addr("10.89.0.9"), Node: "node-b", Weight: 7}}
	s := sharedStore(t, []Definition{web}, joining(endpoint("here", 1, "10.88.0.2"), "web"))
	heavy := joining(endpoint("there", 2, "10.89.0.2", "2001:db8::2"), "web")
	heavy.Weight = new(int)
	*heavy.Weight = 300
	named, elsewhere := endpoint("named", 3, "10.89.0.3"), endpoint("elsewhere", 4, "10.89.0.4")
	named.Names, elsewhere.Names, elsewhere.Network = []string{"web"}, []string{"web"}, "other"
	s.SetCluster(&Cluster{Peers: peers("node-b", Peer{Members: []registry.Endpoint{
		heavy, named, elsewhere,
		joining(endpoint("listed", 5, "10.89.0.9"), "web"),
		joining(endpoint("before", 1, "10.89.0.2"), "web"), // of the container that had the address before
	}})})
	wantBackends(t, s, "web",
		"node-a/10.88.0.2 weight=100 active ifindex=1",
		"node-b/10.89.0.2 weight=300 active ifindex=0",
		"node-b/10.89.0.3 weight=100 active ifindex=0",
		"node-b/10.89.0.9 weight=7 active ifindex=0",
		"node-b/2001:db8::2 weight=300 active ifindex=0")
	for _, b := range s.Snapshot().Service("web").Backends {
		if b.Remote != (b.Node == "node-b") {
			t.Errorf("%s: remote %t", b.Key(), b.Remote)
		}
	}
}

func TestHealthOfRemoteBackendsIsWhatTheirNodeSays(t *testing.T) {
	web := service("web", "10.96.0.1")
	web.Spec.Backends = []lb.Backend{{Address: addr("10.89.0.9"), Node: "node-b", Weight: 100}}
	s := sharedStore(t, []Definition{web})
	members := []registry.Endpoint{joining(endpoint("x", 1, "10.89.0.2"), "web"), joining(endpoint("y", 2, "10.89.0.3"), "web")}
	s.SetCluster(&Cluster{Peers: peers("node-b", Peer{Members: members})})
	first := s.Snapshot().Revision
	s.SetCluster(&Cluster{Peers: peers("node-b", Peer{Members: members, Health: map[string][]PeerHealth{"web": {
		{Address: addr("10.89.0.2"), Endpoint: members[0].ID, Ejected: true},
		{Address: addr("10.89.0.3"), Endpoint: "a container that is gone"},
		{Address: addr("10.89.0.9")},
	}}})})
	wantBackends(t, s, "web",
		"node-b/10.89.0.2 weight=100 unhealthy ifindex=0",
		"node-b/10.89.0.3 weight=100 active ifindex=0",
		"node-b/10.89.0.9 weight=100 unhealthy ifindex=0")
	if s.Snapshot().Revision != first+1 {
		t.Error("no new revision")
	}
	if b := s.Snapshot().Service("web").Backends; !b[0].Ejected || !b[0].Failed || b[2].Ejected {
		t.Errorf("%+v", b)
	}
}

func TestFilesWinOverEtcd(t *testing.T) {
	var said strings.Builder
	s := New("node-a", t.TempDir(), lb.Timeouts{}, textLog(&said))
	s.Share()
	s.SetEndpoints(nil)
	s.SetServices([]Definition{service("web", "10.96.0.1")})
	c := &Cluster{Services: []Definition{shared("api", "10.96.0.2"), shared("thief", "10.96.0.1"), shared("web", "10.96.0.7")}}
	s.SetCluster(c)
	s.SetCluster(c)
	var got []string
	for _, svc := range s.Snapshot().Services {
		got = append(got, fmt.Sprint(svc.Spec.Name, svc.Spec.VIPs, svc.File))
	}
	if diff := cmp.Diff([]string{"api[10.96.0.2]etcd", "web[10.96.0.1]web.yaml"}, got); diff != "" {
		t.Error(diff)
	}
	if n := strings.Count(said.String(), "WARN"); n != 2 {
		t.Errorf("%d warnings, want 2:\n%s", n, said.String())
	}
	s.SetServices(nil)
	if n := len(s.Snapshot().Services); n != 3 || len(s.Clashes()) != 0 {
		t.Errorf("%d services without the file, clashes %q", n, s.Clashes())
	}
}

func TestLastBackendsOfALostNodeStay(t *testing.T) {
	web, lone := service("web", "10.96.0.1", "fd00::1"), service("lone", "10.96.0.2")
	s := sharedStore(t, []Definition{web, lone}, joining(endpoint("here", 1, "10.88.0.2"), "web"))
	members := []registry.Endpoint{joining(endpoint("there", 2, "10.89.0.2", "2001:db8::2"), "web", "lone")}
	alive, lost := peers("node-b", Peer{Members: members}), peers("node-b", Peer{Members: members, Lost: true})
	s.SetCluster(&Cluster{Peers: alive})
	s.SetCluster(&Cluster{Peers: lost})
	wantBackends(t, s, "web", "node-a/10.88.0.2 weight=100 active ifindex=1", "node-b/2001:db8::2 weight=100 active ifindex=0")
	wantBackends(t, s, "lone", "node-b/10.89.0.2 weight=100 active ifindex=0")
	if b := s.Snapshot().Service("lone").Backends[0]; !b.Lost {
		t.Error("it is not said to be lost")
	}
	// Somebody comes and stands in; when he goes, who was out does not come back.
	here := joining(endpoint("here", 1, "10.88.0.2"), "web", "lone")
	s.SetEndpoints([]registry.Endpoint{here})
	wantBackends(t, s, "lone", "node-a/10.88.0.2 weight=100 active ifindex=1")
	s.SetEndpoints(nil)
	wantBackends(t, s, "lone")
	// With the node, its containers are back.
	s.SetCluster(&Cluster{Peers: alive})
	wantBackends(t, s, "lone", "node-b/10.89.0.2 weight=100 active ifindex=0")
	s.SetCluster(&Cluster{Peers: lost})
	wantBackends(t, s, "lone", "node-b/10.89.0.2 weight=100 active ifindex=0")
}

func TestMaintenanceDoesNotStandIn(t *testing.T) {
	web := service("web", "10.96.0.1")
	web.Spec.Backends = []lb.Backend{{Address: addr("192.0.2.1"), Weight: 0}, {Address: addr("10.89.0.9"), Node: "node-b", Weight: 100}}
	s := sharedStore(t, []Definition{web})
	s.SetCluster(&Cluster{Peers: peers("node-b", Peer{Lost: true})})
	wantBackends(t, s, "web", "node-b/10.89.0.9 weight=100 active ifindex=0", "192.0.2.1 weight=0 maintenance ifindex=0")
}

func TestOverridesHoldOnAllNodes(t *testing.T) {
	web := shared("web", "10.96.0.1")
	web.Spec.Backends = []lb.Backend{{Address: addr("192.0.2.1"), Weight: 100}}
	member := joining(endpoint("there", 2, "10.89.0.2"), "web")
	cluster := func(c Cluster) *Cluster {
		c.Services, c.Peers = []Definition{web}, peers("node-b", Peer{Members: []registry.Endpoint{member}})
		return &c
	}
	s := sharedStore(t, nil)
	s.SetCluster(cluster(Cluster{}))
	if err := s.SetDrain("web", "name-there", true); err != nil {
		t.Fatal(err)
	}
	drained := []string{"node-b/10.89.0.2 weight=100 draining ifindex=0", "192.0.2.1 weight=100 active ifindex=0"}
	wantBackends(t, s, "web", drained...)
	unsent := s.Unsent()
	if len(unsent) != 1 || unsent[0].Origin != "node-a" || unsent[0].Endpoint != member.ID {
		t.Fatalf("unsent %+v", unsent)
	}
	s.SetCluster(cluster(Cluster{})) // not there yet
	wantBackends(t, s, "web", drained...)
	s.SetCluster(cluster(Cluster{Overrides: unsent, Sent: unsent}))
	wantBackends(t, s, "web", drained...)
	if u := s.Unsent(); len(u) != 0 {
		t.Errorf("still unsent: %+v", u)
	}
	// Another node ends it.
	s.SetCluster(cluster(Cluster{}))
	wantBackends(t, s, "web", "node-b/10.89.0.2 weight=100 active ifindex=0", "192.0.2.1 weight=100 active ifindex=0")
}

func TestEndOfAnOverrideIsToldByWhoAnswersForIt(t *testing.T) {
	weight := 5
	theirs := Override{Service: "web", Node: "node-b", Address: addr("10.89.0.2"), Endpoint: "x", Weight: &weight, Origin: "node-a"}
	ours := Override{Service: "web", Address: addr("192.0.2.1"), Drain: true, Origin: "node-a"}
	others := Override{Service: "web", Address: addr("192.0.2.2"), Drain: true, Origin: "node-b"}
	s := sharedStore(t, []Definition{service("web", "10.96.0.1")})
	s.SetCluster(&Cluster{Overrides: []Override{theirs, ours, others}})
	unsent := s.Unsent()
	if len(unsent) != 1 || unsent[0].Address != ours.Address || !unsent[0].Ended() {
		t.Errorf("unsent %+v, want the end of ours", unsent)
	}
}

func TestOverrideOutlivesTheLossOfItsNode(t *testing.T) {
	web := service("web", "10.96.0.1")
	web.Spec.Backends = []lb.Backend{{Address: addr("192.0.2.1"), Weight: 100}, {Address: addr("10.89.0.9"), Node: "node-b", Weight: 100}}
	s := sharedStore(t, []Definition{web})
	s.SetCluster(&Cluster{Peers: peers("node-b", Peer{})})
	if err := s.SetDrain("web", "10.89.0.9", true); err != nil {
		t.Fatal(err)
	}
	told := s.Unsent()
	s.SetCluster(&Cluster{Peers: peers("node-b", Peer{Lost: true}), Overrides: told, Sent: told})
	wantBackends(t, s, "web", "192.0.2.1 weight=100 active ifindex=0")
	s.SetCluster(&Cluster{Peers: peers("node-b", Peer{}), Overrides: told})
	wantBackends(t, s, "web", "node-b/10.89.0.9 weight=100 draining ifindex=0", "192.0.2.1 weight=100 active ifindex=0")
}

func TestOverridesFromBeforeTheClusterAreTold(t *testing.T) {
	dir := t.TempDir()
	web := service("web", "10.96.0.1")
	web.Spec.Backends = []lb.Backend{{Address: addr("192.0.2.1"), Weight: 100}}
	alone := New("node-a", dir, lb.Timeouts{}, quiet)
	alone.SetEndpoints(nil)
	alone.SetServices([]Definition{web})
	if err := alone.SetDrain("web", "192.0.2.1", true); err != nil {
		t.Fatal(err)
	}
	s := New("node-a", dir, lb.Timeouts{}, quiet)
	s.Share()
	s.SetEndpoints(nil)
	s.SetServices([]Definition{web})
	s.SetCluster(&Cluster{})
	if u := s.Unsent(); len(u) != 1 || u[0].Origin != "node-a" || !u[0].Drain {
		t.Errorf("unsent %+v", u)
	}
	wantBackends(t, s, "web", "192.0.2.1 weight=100 draining ifindex=0")
}

// A change of one container must not cost a merge of everything, nor be missed.
func TestChangeOfOnePeerTouchesItsServices(t *testing.T) {
	s := sharedStore(t, []Definition{service("a", "10.96.0.1"), service("b", "10.96.0.2")})
	s.now = func() time.Time { return time.Unix(1, 0) }
	x, y := joining(endpoint("x", 1, "10.89.0.1"), "a"), joining(endpoint("y", 1, "10.89.0.2"), "b")
	s.SetCluster(&Cluster{Peers: peers("node-b", Peer{Members: []registry.Endpoint{x, y}})})
	before := s.Snapshot()
	x.Services = []string{"b"}
	s.SetCluster(&Cluster{Peers: peers("node-b", Peer{Members: []registry.Endpoint{x, y}})})
	wantBackends(t, s, "a")
	wantBackends(t, s, "b", "node-b/10.89.0.1 weight=100 active ifindex=0", "node-b/10.89.0.2 weight=100 active ifindex=0")
	y.Addresses = y.Addresses[:0:0]
	s.SetCluster(&Cluster{Peers: peers("node-b", Peer{Members: []registry.Endpoint{x, y}})})
	wantBackends(t, s, "b", "node-b/10.89.0.1 weight=100 active ifindex=0")
	if s.Snapshot().Service("a") == before.Service("a") {
		t.Error("a did not change")
	}
}
