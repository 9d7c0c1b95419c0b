package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// newEtcdCluster makes nodes on an underlay that know of each other by etcd alone.
func newEtcdCluster(t *testing.T, name string, count int) (*cluster, *etcdServer) {
	t.Helper()
	const etcdIndex = 50
	e := newEtcd(t, name)
	c := &cluster{t: t, underlay: newSwitch(t, name+"-underlay")}
	c.plug(e.place, "eth0", etcdIndex)
	for i := range count {
		n := newNode(t)
		n.subnets, n.underlay = sameSubnets(i), underlayAddress(v4, i)
		c.plug(n.place, underlayDevice, i)
		n.configureProxy("vipPool: [10.96.0.0/16]",
			fmt.Sprintf("etcd: {endpoints: [%s:2379], leaseTTL: 2s, restartGrace: 30s}", underlayAddress(v4, etcdIndex)))
		text, err := os.ReadFile(n.cfg)
		if err != nil {
			t.Fatal(err)
		}
		n.write(n.cfg, strings.Replace(string(text), "node: {name: "+n.name+"}", fmt.Sprintf("node: {name: %s, address: %s}", n.name, n.underlay), 1))
		n.errorsAreOK = true // that a node is away is one
		c.nodes = append(c.nodes, n)
	}
	c.start()
	return c, e
}

// backendsOn counts the backends that n lists of a service, by node and state.
func (n *node) backendsOn(service string) map[string]int {
	n.t.Helper()
	out := map[string]int{}
	for _, r := range list[[]backendRow](n, "backend", "list", service) {
		out[r.Node+" "+r.State]++
	}
	return out
}

// expectAnswers connects until exactly these servers have answered, and nobody else does.
func expectAnswers(t *testing.T, client *container, to string, want ...string) {
	t.Helper()
	slices.Sort(want)
	eventually(t, startTime, fmt.Sprintf("%q answer", want), func() error {
		met := map[string]bool{}
		for range 60 {
			a, err := client.ask("tcp", netip.MustParseAddrPort(to))
			if err != nil {
				return err
			}
			met[a.Server] = true
		}
		var got []string
		for s := range met {
			got = append(got, s)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("%q answered", got)
		}
		return nil
	})
}

// Three nodes with the same subnet and a container each: all serve all clients. One is stopped, which nobody
// notices; one loses its power, whose backends leave at the end of its lease.
func TestThreeNodesServeTogether(t *testing.T) {
	t.Parallel()
	c, e := newEtcdCluster(t, "etcd3", 3)
	a, b, dying := c.nodes[0], c.nodes[1], c.nodes[2]
	joins := conf{"services": []string{"web"}}
	var servers []string
	for _, n := range c.nodes {
		s := n.container(t, "web", n.bridged(joins))
		s.serve(80)
		servers = append(servers, s.name)
	}
	client := a.container(t, "client", a.bridged())
	if r := b.put("web"); r.status != 0 {
		t.Fatalf("apply: %+v", r)
	}
	eventually(t, startTime, "three backends", func() error {
		if got := a.backendsOn("web"); got[a.name+" active"]+got[b.name+" active"]+got[dying.name+" active"] != 3 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	front := vipsOf(a, "web")[0].String() + ":80"
	expectAnswers(t, client, front, servers...)

	b.stop()
	expectAnswers(t, client, front, servers...)
	e.kill() // what was known stays
	expectAnswers(t, client, front, servers...)
	e.launch()

	c.underlay.ip("link set port2 down")
	dying.kill()
	expectAnswers(t, client, front, servers[:2]...)
	eventually(t, 20*time.Second, "the dead node's backend is gone, the stopped one's is not", func() error {
		got := a.backendsOn("web")
		if len(got) != 2 || got[a.name+" active"] != 1 || got[b.name+" active"] != 1 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	if r := a.tclb("node", "ping", dying.name, "-c", "1"); r.status != 1 {
		t.Errorf("ping of a dead node: %+v", r)
	}
	b.start()
	c.underlay.ip("link set port2 up")
	dying.start()
	expectAnswers(t, client, front, servers...)
	if err := errors.Join(nodesOf(a, 3), nodesOf(b, 3)); err != nil {
		t.Error(err)
	}
}

// nodesOf says what is wrong if a node does not reach that many, itself included.
func nodesOf(n *node, count int) error {
	reached := 0
	for _, r := range list[[]nodeRow](n, "node", "list") {
		if r.Reachable {
			reached++
		}
	}
	if reached != count {
		return fmt.Errorf("%s reaches %d nodes, want %d", n.name, reached, count)
	}
	return nil
}
