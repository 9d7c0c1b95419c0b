package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// echo answers each datagram to a port with itself until the place vanishes. prepare sees the socket
// first. The result counts how often the kernel handed out several datagrams as one.
func (p *place) echo(port int, prepare ...func(u *net.UDPConn)) *atomic.Int64 {
	p.t.Helper()
	return p.echoAt(netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(port)), prepare...)
}

// echoAt is echo for one address.
func (p *place) echoAt(at netip.AddrPort, prepare ...func(u *net.UDPConn)) *atomic.Int64 {
	p.t.Helper()
	var u *net.UDPConn
	p.do(func() (err error) {
		u, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	p.keep(func() { u.Close() })
	for _, f := range prepare {
		f(u)
	}
	batches := new(atomic.Int64)
	go func() {
		data, oob := make([]byte, 1<<16), make([]byte, 128)
		for {
			n, m, _, from, err := u.ReadMsgUDPAddrPort(data, oob)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			batch := segmented(oob[:m])
			if batch != nil {
				batches.Add(1)
			}
			_, _, _ = u.WriteMsgUDPAddrPort(data[:n], batch, from) // as it came
		}
	}()
	return batches
}

// segmented turns what the kernel says of datagrams that it received at once into what it wants to
// know of datagrams that it is to send so.
func segmented(oob []byte) []byte {
	messages, _ := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		if m.Header.Level == unix.SOL_UDP && m.Header.Type == unix.UDP_GRO {
			out := make([]byte, unix.CmsgSpace(2))
			binary.NativeEndian.PutUint64(out, uint64(unix.CmsgLen(2)))
			binary.NativeEndian.PutUint32(out[8:], unix.SOL_UDP)
			binary.NativeEndian.PutUint32(out[12:], unix.UDP_SEGMENT)
			binary.NativeEndian.PutUint16(out[16:], binary.NativeEndian.Uint16(m.Data))
			return out
		}
	}
	return nil
}

// pattern is a datagram that is like no other.
func pattern(size int, seed byte) []byte {
	out := make([]byte, size)
	for i := range out {
		out[i] = byte(i>>8) ^ byte(i) ^ seed
	}
	return out
}

// Ways to send and to receive datagrams; each must have its answer from the VIP.
func TestEveryKindOfUDPSocketIsAnswered(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.writeServices("all.yaml", "services:\n"+entry("single", vip(10))+entry("batched", vip(11)))
	n.start()
	n.container(t, "single", n.bridged(conf{"services": []string{"single"}})).echo(targetPort)
	batches := n.container(t, "batched", n.bridged(conf{"services": []string{"batched"}})).echo(targetPort, func(u *net.UDPConn) {
		setOption(t, u, unix.SOL_UDP, unix.UDP_GRO, 1)
	})
	clients := []*place{n.container(t, "client", n.bridged()).place, n.place, n.unattached(t, "plain").place}
	n.waitForBackends("", 2*4)
	hostSource(t, n)
	for i, receiver := range []string{"single", "batched"} {
		for _, from := range clients {
			for family, name := range families {
				to := front(vip(10+i), family)
				t.Run(receiver+"/"+from.name+"/"+name, func(t *testing.T) {
					from.expectEcho(t, to, 1)
					from.expectSegments(t, to, 10, 1200)
					from.expectSegments(t, to, 3, 1)
				})
			}
		}
	}
	if batches.Load() == 0 {
		t.Error("no datagrams came as one: that way was not tested")
	}
}

// expectEcho sends a datagram by a socket that is connected and by one that is not.
func (p *place) expectEcho(t *testing.T, to netip.AddrPort, size int) {
	t.Helper()
	p.exchange(t, p.mustDial(t, "udp", to, 0), pattern(size, 1))
	u := p.listenUDP(t)
	defer u.Close()
	sent, got := pattern(size, 2), make([]byte, 1<<16)
	if _, err := u.WriteToUDPAddrPort(sent, to); err != nil {
		t.Fatal(err)
	}
	n, from, err := u.ReadFromUDPAddrPort(got)
	if err != nil || !bytes.Equal(got[:n], sent) {
		t.Fatalf("%s sends %d bytes to %s: %d come back, %v", p.name, size, to, n, err)
	}
	if from := netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); from != to {
		t.Errorf("the answer comes from %s, want %s", from, to)
	}
}

// listenUDP is a socket that is not connected; it waits for answers no longer than patience.
func (p *place) listenUDP(t *testing.T) (u *net.UDPConn) {
	t.Helper()
	err := p.try(func() (err error) {
		u, err = net.ListenUDP("udp", nil)
		return err
	})
	if err == nil {
		err = u.SetDeadline(time.Now().Add(patience))
	}
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// exchange sends a datagram that must come back.
func (p *place) exchange(t *testing.T, c *conn, data []byte) {
	t.Helper()
	got, n := make([]byte, 1<<16), 0
	err := c.SetDeadline(time.Now().Add(patience))
	if err == nil {
		_, err = c.Write(data)
	}
	if err == nil {
		n, err = c.Read(got)
	}
	if err != nil || !bytes.Equal(got[:n], data) {
		t.Fatalf("%s sends %d bytes to %s: %d come back, %v", p.name, len(data), c.RemoteAddr(), n, err)
	}
}

// expectSegments hands the kernel many datagrams of one size at once, all of which must come back.
func (p *place) expectSegments(t *testing.T, to netip.AddrPort, count, size int) {
	t.Helper()
	c := p.mustDial(t, "udp", to, 0)
	setOption(t, c.Conn, unix.SOL_UDP, unix.UDP_SEGMENT, size)
	var all []byte
	for i := range count {
		all = append(all, pattern(size, byte(i))...)
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(all); err != nil {
		t.Fatal(err)
	}
	for i := range count {
		got := make([]byte, 1<<16)
		n, err := c.Read(got)
		if err != nil || !bytes.Equal(got[:n], pattern(size, byte(i))) {
			t.Fatalf("%s sends %d datagrams of %d bytes to %s: of number %d, %d bytes come back, %v", p.name, count, size, to, i, n, err)
		}
	}
}

// A datagram without a checksum arrives without: a wrong one, made of nothing, would be fatal. (IPv6 allows
// it where the receiver does, RFC 6936.)
func TestDatagramWithoutChecksumStaysSo(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	server := n.container(t, "web", n.bridged(conf{"services": []string{"web"}}))
	server.echo(targetPort, func(u *net.UDPConn) { withoutChecksum(t, u) })
	clients := []*place{n.container(t, "client", n.bridged()).place, n.place, n.unattached(t, "plain").place}
	n.waitForBackends("web", 4)
	hostSource(t, n)
	for _, from := range clients {
		for family, name := range families {
			t.Run(from.name+"/"+name, func(t *testing.T) {
				frames := server.capture(t, "eth0")
				c := from.mustDial(t, "udp", front(vip(10), family), 0)
				withoutChecksum(t, c.Conn)
				from.exchange(t, c, pattern(100, 0))
				seen := 0
				for _, f := range frames() {
					s, err := packet.Parse(f)
					if s.Dst != server.at(family, targetPort) && s.Src != server.at(family, targetPort) {
						continue
					}
					if seen++; !s.NoChecksum {
						t.Errorf("a datagram has a checksum: %s, %v", s, err)
					}
				}
				if seen != 2 {
					t.Errorf("the server's device saw %d datagrams, want a request and its answer", seen)
				}
			})
		}
	}
}

// withoutChecksum makes a socket send datagrams without, and take them.
func withoutChecksum(t *testing.T, c any) {
	t.Helper()
	setOption(t, c, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
	if getOption(t, c, unix.SOL_SOCKET, unix.SO_DOMAIN) == unix.AF_INET6 {
		setOption(t, c, unix.SOL_UDP, unix.UDP_NO_CHECK6_TX, 1)
		setOption(t, c, unix.SOL_UDP, unix.UDP_NO_CHECK6_RX, 1)
	}
}

// A flow of datagrams has no end that anyone could see: it must leave a backend that is gone with its
// next packet, and keep one that is only to get no new flows. (Cilium and Docker leave it in the dark:
// cilium#48244, cilium#48288, moby#36878.)
func TestUDPFlowLeavesARemovedBackend(t *testing.T) { eachMode(t, testUDPFlowLeavesARemovedBackend) }

func testUDPFlowLeavesARemovedBackend(t *testing.T, mode string) {
	n := newNode(t, mode)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	members := n.bridged(conf{"services": []string{"web"}})
	servers := map[string]*container{}
	for i := range 3 {
		c := n.container(t, fmt.Sprintf("web%d", i), members)
		c.serve(targetPort)
		servers[c.name] = c
	}
	clients := []*place{n.container(t, "client", n.bridged()).place, n.place, n.unattached(t, "plain").place}
	n.waitForBackends("web", 3*4)
	hostSource(t, n)
	type flow struct {
		from   *place
		c      *conn
		server string
	}
	var flows []flow
	for _, from := range clients {
		for family := range families {
			for range 4 {
				c := from.mustDial(t, "udp", front(vip(10), family), 0)
				flows = append(flows, flow{from, c, from.mustHear(t, c).Server})
			}
		}
	}
	draining, removed := servers[flows[0].server], ""
	for _, f := range flows {
		if f.server != draining.name {
			removed = f.server
		}
	}
	for family := range families {
		n.mustTclb("backend", "drain", "web", draining.addr[family].String())
	}
	if err := servers[removed].del(members, "eth0"); err != nil {
		t.Fatal(err)
	}
	for _, f := range flows {
		a := f.from.mustHear(t, f.c)
		if f.server == removed && (a.Server == removed || a.Server == draining.name) {
			t.Errorf("a flow of %s, which is gone, went to %s", removed, a.Server)
		}
		if f.server != removed && a.Server != f.server {
			t.Errorf("a flow of %s went to %s", f.server, a.Server)
		}
	}
}
