package e2e

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"

	"github.com/tc-loadbalancer/tclb/pkg/overlay"
)

// bulkPort is where a server takes much and gives as much back.
const bulkPort = 8081

// block is what bulk consists of, again and again.
var block = pattern(1<<20, 7)

// bulk takes n bytes, and sends n when it has them and they were right.
func bulk(n int) func(net.Conn) {
	return func(c net.Conn) {
		if swallow(c, n) == nil {
			_ = pour(c, n)
		}
	}
}

func pour(w io.Writer, n int) error {
	for sent := 0; sent < n; sent += len(block) {
		if _, err := w.Write(block); err != nil {
			return err
		}
	}
	return nil
}

// swallow reads n bytes of blocks and looks at each.
func swallow(r io.Reader, n int) error {
	want, buf := crc32.ChecksumIEEE(block), make([]byte, len(block))
	for got := 0; got < n; got += len(block) {
		if _, err := io.ReadFull(r, buf); err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", got, n, err)
		}
		if crc32.ChecksumIEEE(buf) != want {
			return fmt.Errorf("bytes %d to %d are not what was sent", got, got+len(block))
		}
	}
	return nil
}

// withBulk adds a service of that much data on the server.
func (p pairOfNodes) withBulk(t *testing.T, n int) {
	t.Helper()
	p.server.handle(bulkPort, bulk(n))
	p.a.writeServices("bulk.yaml", fmt.Sprintf("services:\n- name: bulk\n  vips: [%s, %q]\n  ports: [{port: %d, targetPort: %d}]\n  %s\n",
		vip(20)[v4], vip(20)[v6], servicePort, bulkPort, remote(p.b, p.server.addr[:]...)))
	p.a.waitForBackends("bulk", 2)
}

// bothWays sends n bytes through the tunnel and back.
func (p pairOfNodes) bothWays(t *testing.T, family, n int) {
	t.Helper()
	p.client.bothWays(t, front(vip(20), family), n)
}

// bothWays sends n bytes to a bulk server and takes as many.
func (p *place) bothWays(t *testing.T, to netip.AddrPort, n int) {
	t.Helper()
	c := p.mustDial(t, "tcp", to, 0)
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := pour(c, n); err != nil {
		t.Fatalf("send: %v", err)
	}
	if err := swallow(c, n); err != nil {
		t.Fatalf("receive: %v", err)
	}
}

// wrongChecksums is how many packets a place has refused for their checksums.
func (p *place) wrongChecksums(t *testing.T) (n int) {
	t.Helper()
	var text []byte
	p.do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/snmp")
		return err
	})
	var heads []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if heads == nil || heads[0] != fields[0] {
			heads = fields
			continue
		}
		for i, head := range heads {
			if head == "InCsumErrors" {
				var more int
				if _, err := fmt.Sscan(fields[i], &more); err != nil {
					t.Fatal(err)
				}
				n += more
			}
		}
		heads = nil
	}
	return n
}

// A gigabyte each way, by both families, over both underlays; then without the devices' help.
func TestTunnelCarriesBulk(t *testing.T) {
	for under, name := range families {
		size := []int{1 << 30, 1 << 28}[under]
		t.Run("over "+name, func(t *testing.T) {
			p := newPairOfNodes(t, under, distinctSubnets)
			p.withBulk(t, size)
			for family := range families {
				p.bothWays(t, family, size)
			}
			for _, at := range []*place{p.client.place, p.server.place, p.a.place, p.b.place} {
				if n := at.wrongChecksums(t); n != 0 {
					t.Errorf("%s met %d wrong checksums", at.name, n)
				}
			}
		})
	}
}

func TestTunnelCarriesBulkWithoutOffloads(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	p := newPairOfNodes(t, v4, distinctSubnets)
	p.withBulk(t, size)
	for _, n := range p.nodes {
		n.do(func() error {
			l, err := netlinksafe.LinkByName(underlayDevice)
			if err != nil {
				return err
			}
			return overlay.DisableOffloads(uint32(l.Attrs().Index))
		})
	}
	for family := range families {
		p.bothWays(t, family, size)
	}
}

// What does not fit is fragmented outside, or its sender learns what fits: the first datagram with DF is
// lost with that, as on any path.
func TestDatagramsOfEverySizePassTheTunnel(t *testing.T) {
	t.Parallel()
	for under, name := range families {
		t.Run("over "+name, func(t *testing.T) {
			t.Parallel()
			p := newPairOfNodes(t, under, distinctSubnets)
			p.server.echo(bulkPort)
			p.a.writeServices("echo.yaml", fmt.Sprintf("services:\n- name: echo\n  vips: [%s, %q]\n  ports: [{protocol: udp, port: %d, targetPort: %d}]\n  %s\n",
				vip(21)[v4], vip(21)[v6], servicePort, bulkPort, remote(p.b, p.server.addr[:]...)))
			p.a.waitForBackends("echo", 2)
			for family := range families {
				for _, size := range []int{1, 1372, 1472, 8000, 30000} {
					c := p.client.mustDial(t, "udp", front(vip(21), family), 0)
					data, buf := pattern(size, 3), make([]byte, 65536)
					eventually(t, 5*time.Second, fmt.Sprintf("%d bytes by %s", size, families[family]), func() error {
						if err := c.SetDeadline(time.Now().Add(patience / 8)); err != nil {
							return err
						}
						_, err := c.Write(data)
						n := 0
						if err == nil {
							n, err = c.Read(buf)
						}
						if err == nil && !bytes.Equal(buf[:n], data) {
							err = fmt.Errorf("%d bytes come back, or others", n)
						}
						return err
					})
					c.Close()
				}
			}
		})
	}
}

// A node that is cut off costs the flows that it had. New ones go elsewhere at once, and some come back with it.
func TestNodeThatIsCutOffCostsItsOwnFlowsOnly(t *testing.T) {
	t.Parallel()
	p := newPairOfNodes(t, v4, distinctSubnets)
	near := p.a.container(t, "near", p.a.bridged())
	near.serve(targetPort)
	p.a.writeServices("web.yaml", service("web", vip(10),
		remote(p.b, p.server.addr[:]...), fmt.Sprintf("- {address: %s}", near.addr[v4]), fmt.Sprintf("- {address: %q}", near.addr[v6])))
	p.a.waitForBackends("web", 8)
	kept := p.client.dialServer(t, near.name)
	p.underlay.ip("link set port1 down")
	// From this moment on: whoever meets the dead node comes by a repeated SYN to the living one.
	for i := range 60 {
		c, err := p.client.dial("tcp", front(vip(10), i%2), 0)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if a, err := c.askWithin(2 * patience); err != nil || a.Server != near.name {
			t.Fatalf("connection %d: %v, %v", i, a, err)
		}
		c.Close()
	}
	p.client.mustConverse(t, kept, 3)
	if row := p.a.row(p.b); row.Reachable {
		t.Errorf("the node counts as reachable: %+v", row)
	}
	p.underlay.ip("link set port1 up")
	eventually(t, 10*time.Second, "the node serves again", func() error {
		if a, err := p.client.ask("tcp", front(vip(10), v4)); err != nil || a.Server != p.server.name {
			return fmt.Errorf("%v, %w", a, err)
		}
		return nil
	})
}

// dialServer connects until it is the server of that name that answers.
func (p *place) dialServer(t *testing.T, name string) *conn {
	t.Helper()
	for range 100 {
		c := p.mustDial(t, "tcp", front(vip(10), v4), 0)
		if a := p.mustHear(t, c); a.Server == name {
			return c
		}
		c.Close()
	}
	t.Fatalf("nobody meets %s", name)
	return nil
}

// Nodes that have seen the same list choose alike: a connection that came by one of them goes on by another,
// which has never seen it.
func TestConnectionGoesOnByAnotherNode(t *testing.T) {
	t.Parallel()
	p, client := newFrontedPair(t)
	second := p.b.container(t, "second", p.b.bridged())
	second.serve(targetPort)
	list := service("both", vip(12), remote(p.b, p.server.addr[v4], p.server.addr[v6], second.addr[v4], second.addr[v6]))
	for _, n := range p.nodes {
		n.writeServices("both.yaml", list)
	}
	for _, n := range p.nodes {
		n.waitForBackends("both", 8)
	}
	routeVIPs(client, p.a, 0)
	var flows []*conn
	var servers []string
	for i := range 20 {
		c := client.mustDial(t, "tcp", front(vip(12), i%2), 0)
		flows, servers = append(flows, c), append(servers, client.mustHear(t, c).Server)
	}
	move := func(to int) {
		client.ip("route replace 192.0.2.0/24 via " + underlayAddress(v4, to).String())
		client.ip("-6 route replace 2001:db8:ff::/64 via " + underlayAddress(v6, to).String())
	}
	for _, to := range []int{1, 0, 1} {
		move(to)
		for i, c := range flows {
			if a, err := c.ask(); err != nil || a.Server != servers[i] {
				t.Fatalf("by node %d: flow %d is answered by %v, was by %s: %v", to, i, a, servers[i], err)
			}
		}
	}
	met := map[string]bool{}
	for _, s := range servers {
		met[s] = true
	}
	if len(met) != 2 {
		t.Errorf("20 flows met %v, want both servers", met)
	}
}
