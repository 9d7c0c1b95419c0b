package reach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Transport carries probes. Send is safe for concurrent use.
type Transport interface {
	// Send sends a datagram to the hairpin address of a family. With a segment size it is a burst of
	// datagrams of that size, which whoever sends it at last has to make.
	Send(v4 bool, data []byte, segment int) error
	// Answers is where probes arrive that came back whole.
	Answers() <-chan Answer
	// Close ends it.
	Close()
}

// probePort is what the datapath knows probes by, besides their content.
const probePort = 7

const (
	// reopenAfter is how long a socket that failed is left alone.
	reopenAfter = time.Second
	// queued is how many answers wait for the prober; more are lost, as in a socket's buffer.
	queued = 1024
)

// Sockets is the Transport through the tunnel: one socket a family, bound to the device by which this host
// reaches VIPs. Sockets are opened when they are needed and again after an error, for the device may come
// later, or another one in its place.
type Sockets struct {
	device  string
	hairpin func() [2]netip.Addr // IPv4, IPv6
	answers chan Answer

	mu     sync.Mutex
	conns  [2]*net.UDPConn // guarded by mu
	failed [2]failure      // guarded by mu
	closed bool            // guarded by mu
}

// failure is why a socket was not opened, or was closed.
type failure struct {
	err error
	at  time.Time
}

// NewSockets returns a transport by a device to the hairpin addresses of IPv4 and IPv6, which may change.
// Nothing is opened before the first Send.
func NewSockets(device string, hairpin func() [2]netip.Addr) *Sockets {
	return &Sockets{device: device, hairpin: hairpin, answers: make(chan Answer, queued)}
}

// Answers implements Transport.
func (s *Sockets) Answers() <-chan Answer { return s.answers }

// Close implements Transport.
func (s *Sockets) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for family, conn := range s.conns {
		if conn != nil {
			_ = conn.Close()
		}
		s.conns[family] = nil
	}
}

// Send implements Transport.
func (s *Sockets) Send(v4 bool, data []byte, segment int) error {
	family := 1
	if v4 {
		family = 0
	}
	conn, err := s.open(family)
	if err != nil {
		return err
	}
	_, _, err = conn.WriteMsgUDPAddrPort(data, segmentSize(segment), netip.AddrPortFrom(s.hairpin()[family], probePort))
	if err == nil {
		return nil
	}
	err = fmt.Errorf("send probe by %s: %w", s.device, err)
	// Errors of size say nothing about the socket.
	if segment == 0 && !errors.Is(err, unix.EMSGSIZE) {
		s.drop(family, conn, err)
	}
	return err
}

// open returns the socket of a family.
func (s *Sockets) open(family int) (*net.UDPConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[family] != nil {
		return s.conns[family], nil
	}
	if s.closed {
		return nil, net.ErrClosed
	}
	if f := s.failed[family]; f.err != nil && time.Since(f.at) < reopenAfter {
		return nil, f.err
	}
	conn, err := listen(family, s.device)
	if err != nil {
		err = fmt.Errorf("open socket on %s: %w", s.device, err)
		s.failed[family] = failure{err, time.Now()}
		return nil, err
	}
	s.conns[family], s.failed[family] = conn, failure{}
	go s.read(conn, family)
	return conn, nil
}

// drop closes a socket that failed.
func (s *Sockets) drop(family int, conn *net.UDPConn, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[family] != conn {
		return
	}
	_ = conn.Close()
	s.conns[family], s.failed[family] = nil, failure{err, time.Now()}
}

// read hands answers on until the socket is closed. Others than the hairpin address answer nothing.
func (s *Sockets) read(conn *net.UDPConn, family int) {
	buf := make([]byte, 1<<16)
	for {
		n, addr, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(grain) // an error of the device; Send finds out if it stays
			continue
		}
		if addr.Port() != probePort || addr.Addr().Unmap() != s.hairpin()[family] {
			continue
		}
		if a, ok := ParseAnswer(buf[:n], time.Now()); ok {
			select {
			case s.answers <- a:
			default:
			}
		}
	}
}

// listen opens a socket that sends by a device and hears what comes from it only. Its packets have DF set
// and ignore what was learned about paths: all nodes share the destination.
func listen(family int, device string) (*net.UDPConn, error) {
	network, level, option := "udp4", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	value := unix.IP_PMTUDISC_PROBE
	if family == 1 {
		network, level, option, value = "udp6", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE
	}
	var failed error
	set := func(fd uintptr) {
		failed = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device)
		if failed == nil {
			failed = unix.SetsockoptInt(int(fd), level, option, value)
		}
	}
	conn, err := net.ListenUDP(network, nil)
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		err = raw.Control(set)
	}
	if err = errors.Join(err, failed); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// segmentSize returns the control message that makes a datagram a burst; nil for 0.
func segmentSize(size int) []byte {
	if size == 0 {
		return nil
	}
	oob := make([]byte, unix.CmsgSpace(2))
	header := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	header.Level, header.Type = syscall.IPPROTO_UDP, unix.UDP_SEGMENT
	header.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(oob[unix.CmsgLen(0):], uint16(size))
	return oob
}
