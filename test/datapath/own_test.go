package datapath

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// ownVIP makes the VIPs addresses of the world's node.
func (w *world) ownVIP() {
	w.t.Helper()
	w.goAbroad()
	lo, err := netlink.LinkByName("lo")
	w.check(err)
	w.check(netlink.LinkSetUp(lo))
	for _, vip := range vips {
		w.check(w.d.PutFrontends(map[lb.Frontend]datapath.Frontend{{VIP: vip}: {Kind: datapath.KindVIP, Own: true, Announce: true}}))
		addr, err := netlink.ParseAddr(netip.PrefixFrom(vip, vip.BitLen()).String())
		w.check(err)
		addr.Flags = unix.IFA_F_NODAD
		w.check(netlink.AddrReplace(lo, addr))
	}
}

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	if to.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}

// socket opens one that is bound to an address, of a family of the kernel's, until the function is called.
func (w *world) socket(domain int, proto lb.Protocol, at unix.Sockaddr) (int, func()) {
	w.t.Helper()
	kind := unix.SOCK_STREAM
	if proto == lb.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	w.check(err)
	w.check(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	w.check(unix.Bind(fd, at))
	if proto == lb.TCP {
		w.check(unix.Listen(fd, 5))
	}
	return fd, func() { unix.Close(fd) }
}

func domainOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func TestAnOwnAddressKeepsWhatIsItsOwn(t *testing.T) {
	w := newWorld(t, 1)
	w.ownVIP()
	for family, name := range families {
		for _, proto := range []lb.Protocol{lb.TCP, lb.UDP} {
			w.inside(t, name+"/"+proto.String(), func(w *world) {
				at := netip.AddrPortFrom(vips[family], servicePort)
				port := uint16(40000)
				stays := func(what string, want bool) {
					w.t.Helper()
					port++
					x := w.carry(w.fromOutside(), visit(family, proto, port))
					if stays := x.verdict == next && string(x.seen) == string(x.sent); stays != want {
						w.t.Errorf("%s: verdict %d", what, x.verdict)
					}
				}
				stays("nobody listens", false)
				_, done := w.socket(domainOf(vips[family]), proto, sockaddr(at))
				stays("a socket of that name", true)
				done()
				any := [2]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[family]
				_, done = w.socket(domainOf(any), proto, sockaddr(netip.AddrPortFrom(any, servicePort)))
				stays("a socket for all addresses", false)
				done()
				if family == 0 {
					_, done = w.socket(unix.AF_INET6, proto, &unix.SockaddrInet6{Port: servicePort, Addr: at.Addr().As16()})
					stays("a socket of that name, mapped", true)
					done()
					_, done = w.socket(unix.AF_INET6, proto, &unix.SockaddrInet6{Port: servicePort})
					stays("a socket for all addresses of both families", false)
					done()
				}
				s := visit(family, proto, 41000)
				s.Dst = netip.AddrPortFrom(vips[family], 22)
				w.untouched(w.fromOutside(), s)
				if verdict, _ := w.fromContainer(w.client, ask(netip.AddrPortFrom(w.client.addr[family], 40000), s.Dst, proto)); verdict != redirect {
					w.t.Errorf("from a container: verdict %d", verdict)
				}
			})
		}
	}
}

// connect waits for the kernel to make the routes of addresses that it was just given.
func connect(fd int, to netip.AddrPort) (err error) {
	for range 2000 {
		if err = unix.Connect(fd, sockaddr(to)); err != unix.ENETUNREACH {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return err
}

// A connection that a process here has goes on, though its listener hears all addresses and a service has its port now.
func TestAnOwnAddressKeepsItsConnections(t *testing.T) {
	w := newWorld(t, 1)
	w.ownVIP()
	for family, name := range families {
		w.inside(t, name, func(w *world) {
			at := netip.AddrPortFrom(vips[family], servicePort)
			any := [2]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[family]
			_, done := w.socket(domainOf(any), lb.TCP, sockaddr(netip.AddrPortFrom(any, servicePort)))
			defer done()
			fd, err := unix.Socket(domainOf(any), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			w.check(err)
			defer unix.Close(fd)
			client := netip.AddrPortFrom(vips2[family], 45000)
			lo, err := netlink.LinkByName("lo")
			w.check(err)
			addr, err := netlink.ParseAddr(netip.PrefixFrom(client.Addr(), client.Addr().BitLen()).String())
			w.check(err)
			addr.Flags = unix.IFA_F_NODAD
			w.check(netlink.AddrReplace(lo, addr))
			w.check(unix.Bind(fd, sockaddr(client)))
			w.check(connect(fd, at)) // over lo, where no program is
			s := packet.Spec{Src: client, Dst: at, Protocol: lb.TCP, Flags: packet.ACK, Seq: 1, Ack: 1}
			w.untouched(w.fromOutside(), s)
			s.Src = netip.AddrPortFrom(client.Addr(), 45001)
			if x := w.carry(w.fromOutside(), s); x.verdict == next {
				w.t.Error("another connection's packet stayed here")
			}
		})
	}
}

// Errors about the node's own connections come to its address as well: a path with a small MTU would else be
// a black hole for whoever logs in there.
func TestAnOwnAddressKeepsItsErrors(t *testing.T) {
	w := newWorld(t, 1)
	w.ownVIP()
	for family, name := range families {
		w.inside(t, name, func(w *world) {
			mine := packet.Spec{
				Src: netip.AddrPortFrom(vips[family], 22), Dst: netip.AddrPortFrom(beyond[family], 50000),
				Protocol: lb.TCP, Flags: packet.ACK, Seq: 1, Ack: 1, Payload: make([]byte, 100),
			}
			for _, m := range failures[family] {
				w.untouched(w.fromOutside(), w.failureAbout(mine, 8, m))
			}
			w.noDrops()
		})
	}
}
