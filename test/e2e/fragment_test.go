package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// echoNode has on VIP 10 an attached container, 11 a process of the host, 12 a container that is not
// attached, and 13 a host outside, all of which echo datagrams; and clients of all kinds.
type echoNode struct {
	*node
	clients []*place
}

func newEchoNode(t *testing.T) echoNode {
	t.Helper()
	n := newNode(t)
	outside := n.outside(t)
	attached := n.container(t, "attached", n.bridged(conf{"services": []string{"on-container"}}))
	plain := n.unattached(t, "unattached")
	for _, p := range []*place{attached.place, plain.place, outside} {
		p.echo(targetPort)
	}
	for family := range families {
		n.echoAt(netip.AddrPortFrom(uplink[family], targetPort))
	}
	n.writeServices("all.yaml", "services:\n"+entry("on-container", vip(10))+entry("on-host", vip(11), backends(uplink[:]...))+
		entry("on-unattached", vip(12), backends(plain.addr[:]...))+entry("on-outside", vip(13), backends(external[:]...)))
	n.start()
	n.waitForBackends("", 4*4)
	hostSource(t, n)
	return echoNode{node: n, clients: []*place{n.container(t, "client", n.bridged()).place, n.place, n.unattached(t, "plain").place, outside}}
}

// Datagrams of any size arrive whole, to and from any kind of backend.
func TestLargeDatagramsArriveWhole(t *testing.T) {
	t.Parallel()
	n := newEchoNode(t)
	for i, backend := range []string{"container", "host", "unattached", "outside"} {
		for _, from := range n.clients {
			if backend == "outside" && from == n.clients[3] {
				continue // the answers would not come back by the node
			}
			for family, name := range families {
				t.Run(fmt.Sprintf("%s to %s/%s", from.name, backend, name), func(t *testing.T) {
					for _, size := range []int{1, 1472, 1473, 8000, 60000} {
						from.expectEcho(t, front(vip(10+i), family), size)
					}
				})
			}
		}
	}
	t.Run("many", func(t *testing.T) {
		for family := range families {
			c := n.clients[0].mustDial(t, "udp", front(vip(10), family), 0)
			for i := range 100 {
				n.clients[0].exchange(t, c, pattern(8000, byte(i)))
			}
		}
	})
	n.expectNoFragmentDropped(t)
}

// expectNoFragmentDropped checks the counters at the end of a test whose datagrams all came through.
func (n *node) expectNoFragmentDropped(t *testing.T) {
	t.Helper()
	for _, reason := range []string{"fragment", "malformed", "unroutable"} {
		if count := n.dropped(t, reason); count != 0 {
			t.Errorf("%d packets were dropped as %s", count, reason)
		}
	}
}

// datagrams numbers those that were cut by hand: a receiver keeps what it got of one for half a minute.
var datagrams atomic.Uint32

// fragments cuts a datagram as a host would that sends by Ethernet.
func fragments(t *testing.T, src, dst netip.AddrPort, data []byte) [][]byte {
	t.Helper()
	whole := built(t, packet.Spec{Src: src, Dst: dst, Protocol: lb.UDP, Payload: data})
	out, err := packet.Fragments(whole, 1440, datagrams.Add(1)) // not 0: the kernel would choose one
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// orders are ways in which fragments can arrive that were sent in order.
var orders = map[string]func(pieces [][]byte) [][]byte{
	"last first": func(pieces [][]byte) [][]byte {
		slices.Reverse(pieces)
		return pieces
	},
	"first last": func(pieces [][]byte) [][]byte { return append(pieces[1:], pieces[0]) },
	"second first": func(pieces [][]byte) [][]byte {
		pieces[0], pieces[1] = pieces[1], pieces[0]
		return pieces
	},
	"first twice": func(pieces [][]byte) [][]byte {
		return append([][]byte{pieces[len(pieces)-1], pieces[0]}, pieces[:len(pieces)-1]...)
	},
}

// Fragments arrive whole whatever their order, and as quickly: nothing waits for a timeout. (Cilium
// drops them: cilium#25709, open since 2023; Calico has IPv4 and 16 of them.)
func TestFragmentsInAnyOrderArriveWhole(t *testing.T) {
	t.Parallel()
	for _, hostStack := range []bool{false, true} {
		t.Run(fmt.Sprintf("hostStack %v", hostStack), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, fmt.Sprintf("datapath: {hostStack: %v, %s}", hostStack, smallMaps))
			n.writeServices("web.yaml", service("web", vip(10)))
			n.start()
			server, client := n.container(t, "web", n.bridged(conf{"services": []string{"web"}})), n.container(t, "client", n.bridged())
			n.waitForBackends("web", 4)
			for family := range families {
				x := newExchange(t, client, server, family, 41000)
				for name, order := range orders {
					for _, size := range []int{2000, 8000, 60000} {
						t.Run(fmt.Sprintf("%s/%s/%d", name, families[family], size), func(t *testing.T) {
							for i := range byte(3) {
								x.request(t, order, pattern(size, i))
								x.reply(t, order, pattern(size, i+100))
							}
						})
					}
				}
			}
			n.expectNoFragmentDropped(t)
		})
	}
}

// exchangeOfFragments is a socket on each end of a flow through VIP 10, whose packets are made by hand.
type exchangeOfFragments struct {
	client, server *container
	at             *net.UDPConn   // the server's
	c              *conn          // the client's
	from, to, seen netip.AddrPort // the client, the VIP, and the client as the server sees it
	family         int
}

func newExchange(t *testing.T, client, server *container, family, port int) *exchangeOfFragments {
	t.Helper()
	x := &exchangeOfFragments{client: client, server: server, family: family, from: client.at(family, port), to: front(vip(10), family)}
	server.do(func() (err error) {
		x.at, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(server.at(family, targetPort)))
		return err
	})
	t.Cleanup(func() { x.at.Close() })
	x.c = client.mustDial(t, "udp", x.to, port)
	t.Cleanup(func() { x.c.Close() })
	return x
}

// request sends a datagram to the VIP as fragments; it must arrive at the server within a moment.
func (x *exchangeOfFragments) request(t *testing.T, order func([][]byte) [][]byte, data []byte) {
	t.Helper()
	x.client.send(t, order(fragments(t, x.from, x.to, data))...)
	got := make([]byte, 1<<16)
	err := x.at.SetReadDeadline(time.Now().Add(patience))
	var n int
	if err == nil {
		n, x.seen, err = x.at.ReadFromUDPAddrPort(got)
	}
	if err != nil || !bytes.Equal(got[:n], data) {
		t.Fatalf("request of %d bytes: %d arrive, %v", len(data), n, err)
	}
	if x.seen != x.from {
		t.Errorf("the server sees %s, want %s", x.seen, x.from)
	}
}

// reply is the same the other way. The client's socket takes datagrams of the VIP only.
func (x *exchangeOfFragments) reply(t *testing.T, order func([][]byte) [][]byte, data []byte) {
	t.Helper()
	x.server.send(t, order(fragments(t, x.server.at(x.family, targetPort), x.seen, data))...)
	got, n := make([]byte, 1<<16), 0
	err := x.c.SetDeadline(time.Now().Add(patience))
	if err == nil {
		n, err = x.c.Read(got)
	}
	if err != nil || !bytes.Equal(got[:n], data) {
		t.Fatalf("reply of %d bytes: %d arrive, %v", len(data), n, err)
	}
}

// roomy is a socket's buffer that takes whatever a test sends at once.
const roomy = 8 << 20

// Many datagrams at a time, with fragments of the one between those of the other and the first of each
// behind its others: they are not taken for each other's. Clients count packets alike.
func TestMixedFragmentsAreNotConfused(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	server, client := n.container(t, "web", n.bridged(conf{"services": []string{"web"}})), n.container(t, "client", n.bridged())
	server.echo(targetPort, func(u *net.UDPConn) { setOption(t, u, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, roomy) })
	server.sysctl("net/ipv4/ipfrag_max_dist", "0") // else it gives up on the 65th datagram that it has not whole
	n.waitForBackends("web", 4)
	const count, size = 100, 2800 // two fragments each
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			to := front(vip(10), family)
			c := client.mustDial(t, "udp", to, 42000+family)
			setOption(t, c.Conn, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, roomy)
			var firsts, others [][]byte
			for i := range count {
				pieces := fragments(t, client.at(family, 42000+family), to, pattern(size, byte(i)))
				firsts, others = append(firsts, pieces[0]), append(others, pieces[1])
			}
			client.send(t, append(others, firsts...)...)
			missing := map[byte]bool{}
			for i := range count {
				missing[byte(i)] = true
			}
			err := c.SetDeadline(time.Now().Add(patience))
			for got := make([]byte, 1<<16); err == nil && len(missing) > 0; {
				var n int
				if n, err = c.Read(got); err == nil {
					seed := got[0]
					if !missing[seed] || !bytes.Equal(got[:n], pattern(size, seed)) {
						t.Fatalf("%d bytes come back that are none of those sent, or are again", n)
					}
					delete(missing, seed)
				}
			}
			if err != nil {
				t.Errorf("%d of %d datagrams do not come back: %v", len(missing), count, err)
			}
		})
	}
	n.expectNoFragmentDropped(t)
}

// Later fragments of a datagram whose first never comes must not leak: the backend would hear of a
// VIP, or the router.
func TestFragmentsWithoutTheirFirstGoNowhere(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.outside(t)
	n.ip("route add default via " + external[v4].String())
	n.ip("-6 route add default via " + external[v6].String())
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	server, client := n.container(t, "web", n.bridged(conf{"services": []string{"web"}})), n.container(t, "client", n.bridged())
	n.waitForBackends("web", 4)
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			onUplink, onBridge, atServer := n.capture(t, "up0"), n.capture(t, "red0"), server.capture(t, "eth0")
			client.send(t, fragments(t, client.at(family, 43000), front(vip(10), family), pattern(8000, 1))[1:]...)
			// What comes afterwards has come through: nothing is under way.
			x := newExchange(t, client, server, family, 43001)
			x.request(t, orders["last first"], pattern(8000, 2))
			for where, frames := range map[string]func() [][]byte{"the uplink": onUplink, "the bridge": onBridge, "the server's device": atServer} {
				if got := about(frames(), vip(10)[family]); len(got) > 0 {
					t.Errorf("on %s: %v", where, got)
				}
			}
		})
	}
}
