package e2e

import (
	"net/netip"
	"testing"
)

// pairOfNodes is a client on one node and a server on another.
type pairOfNodes struct {
	*cluster
	a, b   *node
	client *container
	server *container
}

// newPairOfNodes starts two nodes. Service web of the first one has its backend on the second, which
// knows nothing of it.
func newPairOfNodes(t *testing.T, family int, subnets func(i int) []string, extra ...string) pairOfNodes {
	t.Helper()
	c := newCluster(t, 2, family, subnets, extra...)
	c.start()
	p := pairOfNodes{cluster: c, a: c.nodes[0], b: c.nodes[1]}
	p.client = p.a.container(t, "client", p.a.bridged())
	p.server = p.b.container(t, "server", p.b.bridged())
	p.server.serve(targetPort)
	p.a.writeServices("web.yaml", service("web", vip(10), remote(p.b, p.server.addr[:]...)))
	p.a.waitForBackends("web", 4)
	return p
}

func TestContainerReachesABackendOnAnotherNode(t *testing.T) {
	t.Parallel()
	for family, name := range families {
		t.Run("over "+name, func(t *testing.T) {
			t.Parallel()
			p := newPairOfNodes(t, family, distinctSubnets)
			eachWay(t, func(t *testing.T, family int, proto string) {
				a := p.client.mustAsk(t, proto, front(vip(10), family))
				if a.Server != p.server.name || a.Client.Addr() != p.client.addr[family] {
					t.Errorf("%s answers and sees %s, want %s and %s", a.Server, a.Client, p.server.name, p.client.addr[family])
				}
			})
		})
	}
}

// The default of the runtimes: every host has the same subnet, so that the client's address may be
// another container's on the backend's node, even the backend's own.
func TestNodesWithTheSameSubnetReachEachOther(t *testing.T) {
	t.Parallel()
	p := newPairOfNodes(t, v4, sameSubnets)
	if p.client.addr != p.server.addr {
		t.Fatalf("client %s and server %s were meant to have the same addresses", p.client.addr, p.server.addr)
	}
	seen := [2]netip.Addr{underlayAddress(v4, 0), underlayAddress(v6, 0)}
	eachWay(t, func(t *testing.T, family int, proto string) {
		a := p.client.mustAsk(t, proto, front(vip(10), family))
		if a.Server != p.server.name || a.Client.Addr() != seen[family] {
			t.Errorf("%s answers and sees %s, want %s and %s", a.Server, a.Client, p.server.name, seen[family])
		}
	})
}

func TestHostReachesABackendOnAnotherNode(t *testing.T) {
	t.Parallel()
	p := newPairOfNodes(t, v4, distinctSubnets)
	hostSource(t, p.a) // waits for the routes
	eachWay(t, func(t *testing.T, family int, proto string) {
		if a := p.a.mustAsk(t, proto, front(vip(10), family)); a.Server != p.server.name {
			t.Errorf("%s answers, want %s", a.Server, p.server.name)
		}
	})
}
