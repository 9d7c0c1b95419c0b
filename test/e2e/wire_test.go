package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// built is the frame of a packet.
func built(t *testing.T, s packet.Spec) []byte {
	t.Helper()
	frame, err := s.Build()
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

// ipPacket is what a frame carries, without padding.
func ipPacket(frame []byte) []byte {
	const ethernet = 14
	ip := frame[ethernet:]
	if ip[0]>>4 == 4 {
		return ip[:binary.BigEndian.Uint16(ip[2:])]
	}
	return ip[:40+binary.BigEndian.Uint16(ip[4:])]
}

// send puts packets on the wire as they are, in this order, by the place's routes.
func (p *place) send(t *testing.T, frames ...[]byte) {
	t.Helper()
	if err := p.try(func() error {
		for _, f := range frames {
			if err := sendPacket(ipPacket(f)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatalf("%s sends packets: %v", p.name, err)
	}
}

// sendPacket uses a socket that lets its caller write the IP header.
func sendPacket(ip []byte) error {
	family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(ip[16:])})
	if ip[0]>>4 == 6 {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte(ip[24:])}
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("make raw socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, ip, 0, to); err != nil {
		return fmt.Errorf("send %d bytes: %w", len(ip), err)
	}
	return nil
}

// capture collects the IP packets that pass a device. What it returns are the frames since the
// last call.
func (p *place) capture(t *testing.T, device string) (frames func() [][]byte) {
	t.Helper()
	fd := -1
	p.do(func() error {
		l, err := netlinksafe.LinkByName(device)
		if err != nil {
			return err
		}
		all := htons(unix.ETH_P_ALL)
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all)); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index})
	})
	p.keep(func() { _ = unix.Close(fd) })
	return func() (out [][]byte) {
		for {
			buf := make([]byte, 1<<16)
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EAGAIN) {
				return out
			}
			if err != nil {
				t.Errorf("capture on %s: %v", device, err)
				return out
			}
			out = append(out, buf[:n])
		}
	}
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// dropped is a counter of tclb_drops_total.
func (n *node) dropped(t *testing.T, reason string) int {
	t.Helper()
	_, text, err := n.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metric := fmt.Sprintf("tclb_drops_total{reason=%q} ", reason)
	for line := range strings.SplitSeq(text, "\n") {
		if value, ok := strings.CutPrefix(line, metric); ok {
			count, err := strconv.Atoi(value)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			return count
		}
	}
	t.Fatalf("no line %q in the metrics", metric)
	return 0
}

// control lets f at the descriptor of a socket.
func control(t testing.TB, c any, f func(fd int) error) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err == nil {
		var inner error
		err = raw.Control(func(fd uintptr) { inner = f(int(fd)) })
		err = errors.Join(err, inner)
	}
	if err != nil {
		t.Fatalf("control a socket: %v", err)
	}
}

// setOption sets an option of a socket.
func setOption(t testing.TB, c any, level, option, value int) {
	t.Helper()
	control(t, c, func(fd int) error { return unix.SetsockoptInt(fd, level, option, value) })
}

// getOption reads one.
func getOption(t testing.TB, c any, level, option int) (value int) {
	t.Helper()
	control(t, c, func(fd int) (err error) {
		value, err = unix.GetsockoptInt(fd, level, option)
		return err
	})
	return value
}

// addrPort is where a socket address points to.
func addrPort(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}
