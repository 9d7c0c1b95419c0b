package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Clients that the kernel holds until they are accepted; net.core.somaxconn may make it fewer.
const backlog = 4096

// receiveRoom is what a UDP listener asks for: all its clients share one queue.
const receiveRoom = 4 << 20

// listener is a bound frontend.
type listener interface {
	remove() // and let what it began go on
}

// Sync makes the listeners equal to fronts. It leaves alone those that stay, and connections and sessions of those
// that go. What cannot be bound is returned with the reason and tried again by the next Sync.
func (r *Relay) Sync(fronts []lb.Frontend) map[lb.Frontend]error {
	r.mu.Lock()
	defer r.mu.Unlock()
	failed := map[lb.Frontend]error{}
	if r.closed {
		for _, front := range fronts {
			failed[front] = errClosed
		}
		return failed
	}
	wanted := make(map[lb.Frontend]bool, len(fronts))
	for _, front := range fronts {
		wanted[front] = true
	}
	// First those that go: one that comes may want their address.
	for front, l := range r.listeners {
		if !wanted[front] {
			l.remove()
			delete(r.listeners, front)
		}
	}
	for front := range wanted {
		if r.listeners[front] != nil {
			continue
		}
		l, err := r.listen(front)
		if err != nil {
			failed[front] = err
			continue
		}
		r.listeners[front] = l
	}
	return failed
}

func (r *Relay) listen(front lb.Frontend) (listener, error) {
	switch front.Protocol {
	case lb.TCP:
		return r.listenTCP(front)
	case lb.UDP:
		return r.listenUDP(front)
	}
	return nil, fmt.Errorf("listen on %s: only tcp and udp can be carried", front)
}

// bind returns a socket at the frontend's address.
func (r *Relay) bind(front lb.Frontend, kind int) (int, error) {
	at := encode(netip.AddrPortFrom(front.VIP, front.Port))
	fd, errno := newSocket(at.family(), kind)
	if errno != 0 {
		return 0, fmt.Errorf("open a socket for %s: %w", front, errno)
	}
	var err error
	if at.family() == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
		if err == nil && r.routed {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
		}
	}
	if err == nil && kind == unix.SOCK_STREAM {
		// Connections of an earlier listener may still be there. It allows no second listener.
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = unix.Bind(fd, at.std())
	}
	if err != nil {
		closeSocket(fd)
		return 0, bindError(front, err)
	}
	return fd, nil
}

// bindError says what to do about an address that cannot be bound.
func bindError(front lb.Frontend, err error) error {
	advice := ""
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		advice = fmt.Sprintf("this node does not have the address: add it (ip address add %s dev lo), "+
			"or let the proxy make a local route for it (CAP_NET_ADMIN)", netip.PrefixFrom(front.VIP, front.VIP.BitLen()))
	case errors.Is(err, unix.EADDRINUSE):
		advice = fmt.Sprintf("another process has this port: ss -lnp%c 'sport = %d' shows which; stop it, or change the service's port",
			front.Protocol.String()[0], front.Port)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		advice = fmt.Sprintf("ports below %s need CAP_NET_BIND_SERVICE, or a lower net.ipv4.ip_unprivileged_port_start", privilegedBelow())
	case errors.Is(err, unix.EAFNOSUPPORT):
		advice = "this node has no IPv6"
	default:
		return fmt.Errorf("listen on %s: %w", front, err)
	}
	return fmt.Errorf("listen on %s: %w: %s", front, err, advice)
}

func privilegedBelow() string {
	start, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		return "1024"
	}
	return strings.TrimSpace(string(start))
}

// std returns s for the calls that are not made often.
func (s *sockaddr) std() unix.Sockaddr {
	at := s.decode()
	if at.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
}
