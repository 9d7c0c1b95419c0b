package announce

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// group is a solicited-node multicast group on a link: where questions for an IPv6 address go.
type group struct {
	ifindex uint32
	address [16]byte
}

// groupOf returns the group of a VIP (RFC 4291, 2.7.1).
func groupOf(ifindex uint32, vip netip.Addr) group {
	a := vip.As16()
	return group{ifindex, [16]byte{0xff, 2, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]}}
}

// groups are the ones that this process is in. The kernel takes a socket into so many and no more.
type groups struct {
	in      map[group]int // by socket
	sockets []int
}

// sync joins what is missing and leaves what nobody needs.
func (g *groups) sync(wanted map[place]bool) error {
	need := make(map[group]bool)
	for p := range wanted {
		if p.vip.Is6() {
			need[groupOf(p.ifindex, p.vip)] = true
		}
	}
	for at, fd := range g.in {
		if !need[at] {
			// The device may be gone, and the membership with it.
			_ = unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_LEAVE_GROUP, at.request())
			delete(g.in, at)
		}
	}
	for at := range need {
		if _, in := g.in[at]; in {
			continue
		}
		if err := g.join(at); err != nil {
			return fmt.Errorf("listen for questions on interface %d: %w", at.ifindex, err)
		}
	}
	return nil
}

func (at group) request() *unix.IPv6Mreq {
	return &unix.IPv6Mreq{Multiaddr: at.address, Interface: at.ifindex}
}

// join uses the newest socket, or another one when that is full.
func (g *groups) join(at group) error {
	if g.in == nil {
		g.in = make(map[group]int)
	}
	err := error(unix.ENOBUFS)
	if n := len(g.sockets); n > 0 {
		err = g.joinBy(g.sockets[n-1], at)
	}
	if !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ENOMEM) {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	g.sockets = append(g.sockets, fd)
	return g.joinBy(fd, at)
}

func (g *groups) joinBy(fd int, at group) error {
	err := unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, at.request())
	if err == nil || errors.Is(err, unix.EADDRINUSE) { // it is in already
		g.in[at] = fd
		return nil
	}
	return err
}

func (g *groups) close() {
	for _, fd := range g.sockets {
		_ = unix.Close(fd)
	}
	g.in, g.sockets = nil, nil
}
