// Package announce lets the hosts on an uplink's link find the VIPs that this node answers for.
//
// The answers themselves are the datapath's. What is left for the proxy is to say unasked that a VIP is
// here now, because it may have been elsewhere a moment ago, and to have the network deliver the
// questions: those for IPv6 go to a multicast group that depends on the address.
package announce

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// times is how often a VIP is said (RFC 5227, 2.3, says two seconds apart; here it is one call of Sync): a frame
// may be lost, and nothing tells.
const times = 2

// burst is how many VIPs are said at once; the others wait for the next call. A switch learns thousands a
// second, but the queue of a device is short.
const burst = 512

// place is a VIP at an uplink.
type place struct {
	ifindex uint32
	mac     [6]byte
	vip     netip.Addr
}

// Announcer remembers what was said. Not safe for concurrent use.
type Announcer struct {
	said   map[place]int // how often
	groups groups
}

// New returns an announcer that has said nothing.
func New() *Announcer { return &Announcer{said: make(map[place]int)} }

// Sync makes the announced VIPs those given, on each of the uplinks, which are MAC addresses by index. It returns whether all is
// said as often as it has to be: if not, call it again in a second. What fails is tried again then. On a device that is down nothing
// was ever said: when it is up again, its link may be another one.
func (a *Announcer) Sync(uplinks map[uint32][6]byte, vips []netip.Addr) (done bool, err error) {
	wanted := make(map[place]bool, len(uplinks)*len(vips))
	for ifindex, mac := range uplinks {
		for _, v := range vips {
			wanted[place{ifindex, mac, v}] = true
		}
	}
	down := make(map[uint32]bool, len(uplinks))
	for ifindex := range uplinks {
		device, err := net.InterfaceByIndex(int(ifindex))
		down[ifindex] = err == nil && device.Flags&net.FlagRunning == 0
	}
	maps.DeleteFunc(a.said, func(p place, _ int) bool { return !wanted[p] || down[p.ifindex] })
	errs := []error{a.groups.sync(wanted)}
	var out sender
	defer out.close()
	done = true
	left := burst
	for p := range wanted {
		if a.said[p] == times {
			continue
		}
		if down[p.ifindex] {
			done = false
			continue
		}
		if left--; left < 0 {
			done = false
			break
		}
		if err := out.say(p); err != nil {
			errs = append(errs, fmt.Errorf("announce %s on interface %d: %w", p.vip, p.ifindex, err))
			break // the next one would fail for the same reason
		}
		a.said[p]++
		done = done && a.said[p] == times
	}
	return done, errors.Join(errs...)
}

// Close leaves the multicast groups.
func (a *Announcer) Close() { a.groups.close() }

// sender sends frames. The zero value is ready to use.
type sender struct{ fd int }

func (s *sender) say(p place) error {
	if s.fd == 0 {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		s.fd = fd
	}
	frame := arp(p.mac, p.vip)
	if p.vip.Is6() {
		frame = advertisement(p.mac, p.vip)
	}
	return unix.Sendto(s.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: int(p.ifindex)})
}

func (s *sender) close() {
	if s.fd != 0 {
		_ = unix.Close(s.fd)
	}
}
