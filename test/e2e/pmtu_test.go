package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// far is a host's address behind a router.
var far = [2]netip.Addr{netip.MustParseAddr("198.51.100.130"), netip.MustParseAddr("2001:db8:b::2")}

// behindRouter makes a host behind a router behind the node. The router's link to the host takes
// packets of mtu bytes, and neither end knows: TCP's segment size does not tell.
func (n *node) behindRouter(t *testing.T, mtu int) (router, host *place) {
	t.Helper()
	router, host = n.outside(t), newPlace(t, n.name+"-far")
	router.sysctl("net/ipv4/ip_forward", "1")
	router.sysctl("net/ipv6/conf/all/forwarding", "1")
	join(router, "far0", host, "eth0",
		[]string{"198.51.100.129/25", "2001:db8:b::1/64"}, []string{far[v4].String() + "/25", far[v6].String() + "/64"})
	router.ip(fmt.Sprintf("link set far0 mtu %d", mtu))
	host.ip("route add default via 198.51.100.129")
	host.ip("-6 route add default via 2001:db8:b::1")
	n.ip(fmt.Sprintf("route add %s via %s", subnetsB[v4], external[v4]))
	n.ip(fmt.Sprintf("-6 route add %s via %s", subnetsB[v6], external[v6]))
	return router, host
}

// How a socket is told to find the path's MTU and never to let its packets be fragmented.
type discovery struct{ level, discover, do, mtu, headers int }

var discoveries = [2]discovery{
	{unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO, unix.IP_MTU, 20 + 8},
	{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, unix.IPV6_MTU, 40 + 8},
}

// A narrow path beyond the node is found by the clients of a VIP, TCP and UDP, whatever their way to
// it is. (In Cilium such errors are lost: cilium#47755, cilium#34380.)
func TestClientsFindThePathsMTU(t *testing.T) {
	t.Parallel()
	for _, path := range []struct {
		mtu      int
		families []int
	}{{1280, []int{v4, v6}}, {1000, []int{v4}}} { // less than 1280 is no IPv6 link
		t.Run(fmt.Sprint(path.mtu), func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.strictReversePath()
			_, host := n.behindRouter(t, path.mtu)
			host.serve(targetPort)
			// A VIP for each protocol: the kernel remembers an MTU by address.
			n.writeServices("far.yaml", "services:\n"+entry("stream", vip(10), backends(far[:]...))+entry("datagram", vip(11), backends(far[:]...)))
			n.start()
			attached, plain := n.container(t, "client", n.bridged()), n.unattached(t, "plain")
			n.waitForBackends("stream", 4)
			n.waitForBackends("datagram", 4)
			hostSource(t, n)
			for _, from := range []*place{attached.place, n.place, plain.place} {
				for _, family := range path.families {
					t.Run(from.name+"/"+families[family], func(t *testing.T) {
						from.mustConverse(t, from.mustDial(t, "tcp", front(vip(10), family), 0), 50)
						from.expectMTU(t, front(vip(11), family), path.mtu)
					})
				}
			}
		})
	}
}

// In userspace mode the path is two, of a connection each, and each is the kernel's to find.
func TestUserspaceConnectionsFindTheirPathsMTU(t *testing.T) {
	t.Parallel()
	const size = 16 << 20
	n := newNode(t, inUserspace)
	_, host := n.behindRouter(t, 1280)
	host.handle(targetPort, bulk(size))
	n.writeServices("far.yaml", "services:\n"+entry("stream", vip(10), backends(far[:]...)))
	n.start()
	client := n.container(t, "client", n.bridged())
	n.waitForBackends("stream", 4)
	for family := range families {
		client.bothWays(t, front(vip(10), family), size)
	}
}

// expectMTU sends datagrams that must not be fragmented until the sender is told the path's MTU. What
// fits then must be answered.
func (p *place) expectMTU(t *testing.T, to netip.AddrPort, mtu int) {
	t.Helper()
	d := discoveries[familyOf(to.Addr())]
	c := p.mustDial(t, "udp", to, 0)
	setOption(t, c.Conn, d.level, d.discover, d.do)
	eventually(t, patience, "a datagram is too big", func() error {
		if _, err := c.Write(make([]byte, 1500-d.headers)); !errors.Is(err, unix.EMSGSIZE) {
			return errors.Join(errors.New("it is sent"), err)
		}
		return nil
	})
	if got := getOption(t, c.Conn, d.level, d.mtu); got != mtu {
		t.Errorf("the MTU of %s's path to %s is %d, want %d", p.name, to, got, mtu)
	}
	getOption(t, c.Conn, unix.SOL_SOCKET, unix.SO_ERROR) // the same error may be told twice
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Write(bytes.Repeat([]byte{'x'}, mtu-d.headers))
	if err == nil {
		_, err = c.Read(make([]byte, 2048))
	}
	if err != nil {
		t.Errorf("%s sends what fits %s's path: %v", p.name, to, err)
	}
}

// The other way round: a backend's answers meet a narrow path to a client far away. The errors go to the
// VIP, by tclb0 to whoever answered for it.
func TestBackendsFindThePathsMTU(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.strictReversePath()
	const mtu = 1280
	_, client := n.behindRouter(t, mtu)
	attached, plain := n.container(t, "web", n.bridged(conf{"services": []string{"on-container"}})), n.unattached(t, "plain")
	n.writeServices("all.yaml", "services:\n"+entry("on-container", vip(10))+
		entry("on-host", vip(11), backends(uplink[:]...))+entry("on-plain", vip(12), backends(plain.addr[:]...)))
	n.start()
	n.waitForBackends("", 3*4)
	hostSource(t, n)
	for i, s := range []struct {
		server *place
		at     [2]netip.Addr
	}{{attached.place, attached.addr}, {n.place, uplink}, {plain.place, plain.addr}} {
		const size = 3 << 20
		s.server.handle(targetPort, func(c net.Conn) { _, _ = c.Write(make([]byte, size)) })
		for family, name := range families {
			to := front(vip(10+i), family)
			t.Run(s.server.name+"/"+name, func(t *testing.T) {
				s.server.expectMTUOfClient(t, netip.AddrPortFrom(s.at[family], targetPort), client, to, mtu)
				c := client.mustDial(t, "tcp", to, 0)
				if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if got, err := io.Copy(io.Discard, c); err != nil || got != size {
					t.Errorf("%d of %d bytes arrive: %v", got, size, err)
				}
			})
		}
	}
}

// expectMTUOfClient is expectMTU for a server at an address, which a client reaches at another.
func (p *place) expectMTUOfClient(t *testing.T, at netip.AddrPort, client *place, to netip.AddrPort, mtu int) {
	t.Helper()
	d := discoveries[familyOf(to.Addr())]
	var server *net.UDPConn
	p.do(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	defer server.Close()
	setOption(t, server, d.level, d.discover, d.do)
	c := client.mustDial(t, "udp", to, 0)
	var seen netip.AddrPort
	answer := func(size int) (err error) {
		_, err = c.Write([]byte("who\n"))
		err = errors.Join(err, server.SetDeadline(time.Now().Add(patience)))
		if err == nil {
			if _, seen, err = server.ReadFromUDPAddrPort(make([]byte, 64)); err == nil {
				_, err = server.WriteToUDPAddrPort(make([]byte, size), seen)
			}
		}
		return err
	}
	eventually(t, patience, "an answer is too big", func() error {
		if err := answer(1500 - d.headers); !errors.Is(err, unix.EMSGSIZE) {
			return errors.Join(errors.New("it is sent"), err)
		}
		return nil
	})
	back := p.mustDial(t, "udp", seen, 0)
	if got := getOption(t, back.Conn, d.level, d.mtu); got != mtu {
		t.Errorf("the MTU of %s's path to its client %s is %d, want %d", p.name, seen, got, mtu)
	}
	err := errors.Join(answer(mtu-d.headers), c.SetDeadline(time.Now().Add(patience)))
	if err == nil {
		_, err = c.Read(make([]byte, 2048))
	}
	if err != nil {
		t.Errorf("%s answers what fits the path: %v", p.name, err)
	}
}

// Who asks a backend for a port that nobody listens on is told so, whatever stands between.
func TestClosedPortOfABackendRefuses(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.strictReversePath()
	_, host := n.behindRouter(t, 1500)
	attached, plain := n.container(t, "web", n.bridged(conf{"services": []string{"on-container"}})), n.unattached(t, "web-plain")
	n.writeServices("all.yaml", "services:\n"+entry("on-container", vip(10))+entry("on-host", vip(11), backends(uplink[:]...))+
		entry("on-plain", vip(12), backends(plain.addr[:]...))+entry("far", vip(13), backends(far[:]...)))
	n.start()
	n.waitForBackends("", 4*4)
	clients := []*place{n.container(t, "client", n.bridged()).place, n.place, n.unattached(t, "plain").place, host}
	hostSource(t, n)
	for i, server := range []*place{attached.place, n.place, plain.place, host} {
		for _, from := range clients {
			if from == server && from == host {
				continue
			}
			t.Run(server.name+" asked by "+from.name, func(t *testing.T) {
				eachWay(t, func(t *testing.T, family int, proto string) { expectRefusal(t, from, proto, front(vip(10+i), family)) })
			})
		}
	}
}

// Errors of routers on the way to a backend are about a packet to the VIP, so that traceroute works: the client
// knows nobody else. What comes by tclb0 also comes from the VIP: a strict host takes nothing else from there.
func TestTimeExceededNamesTheVIP(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.strictReversePath()
	_, host := n.behindRouter(t, 1500)
	host.serve(targetPort)
	n.writeServices("far.yaml", service("far", vip(10), backends(far[:]...)))
	n.start()
	attached, plain := n.container(t, "client", n.bridged()), n.unattached(t, "plain")
	n.waitForBackends("far", 4)
	hostSource(t, n)
	for _, client := range []struct {
		from   *place
		router int           // how many hops away it is
		is     [2]netip.Addr // who it is to the client
	}{
		{attached.place, 2, external}, // the node forwards
		{n.place, 2, vip(10)},         // the node forwards what comes out of tclb0
		{plain.place, 3, vip(10)},     // it forwards to tclb0, and again
	} {
		for family, name := range families {
			t.Run(client.from.name+"/"+name, func(t *testing.T) {
				to := front(vip(10), family)
				var offender netip.Addr
				for hops := 1; hops <= client.router; hops++ {
					offender = client.from.traceHop(t, to, hops)
				}
				if offender != client.is[family] {
					t.Errorf("hop %d is %s, want %s", client.router, offender, client.is[family])
				}
				client.from.mustAsk(t, "udp", to)
			})
		}
	}
}

// traceHop sends a datagram that lives for so many hops, and returns who reported its end.
func (p *place) traceHop(t *testing.T, to netip.AddrPort, hops int) (offender netip.Addr) {
	t.Helper()
	c := p.mustDial(t, "udp", to, 0)
	level, ttl, wanted, kind := unix.SOL_IP, unix.IP_TTL, unix.IP_RECVERR, byte(11)
	if to.Addr().Is6() {
		level, ttl, wanted, kind = unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_RECVERR, 3
	}
	setOption(t, c.Conn, level, ttl, hops)
	setOption(t, c.Conn, level, wanted, 1)
	if _, err := c.Write([]byte("who\n")); err != nil {
		t.Fatal(err)
	}
	oob, n, named := make([]byte, 512), 0, unix.Sockaddr(nil)
	eventually(t, patience, fmt.Sprintf("a datagram of %d hops to %s is reported", hops, to), func() (err error) {
		control(t, c.Conn, func(fd int) error {
			_, n, _, named, err = unix.Recvmsg(fd, make([]byte, 64), oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			return nil
		})
		return err
	})
	if got := addrPort(named); got != to {
		t.Errorf("the error is about a datagram to %s, want %s", got, to)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		// struct sock_extended_err: errno 4, origin 1, type 1, code 1, ...; 16 bytes, then who it was.
		if m.Header.Level != int32(level) || m.Header.Type != int32(wanted) {
			continue
		}
		if errno := binary.NativeEndian.Uint32(m.Data); syscall.Errno(errno) != unix.EHOSTUNREACH || m.Data[5] != kind {
			t.Errorf("the error is %v, ICMP type %d", syscall.Errno(errno), m.Data[5])
		}
		offender, _ = netip.AddrFromSlice(m.Data[16+4 : 16+4+4])
		if to.Addr().Is6() {
			offender, _ = netip.AddrFromSlice(m.Data[16+8 : 16+8+16])
		}
	}
	return offender
}
