package datapath

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// clones sees what programs send besides their packet.
type clones struct{ fd int }

func newClones(f *testing.F) clones {
	f.Helper()
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { unix.Close(fd) })
	return clones{fd}
}

// sent is a frame on a device.
type sent struct {
	ifindex uint32
	egress  bool
	frame   []byte
}

// read returns what was sent on the devices since it was asked last, waiting for n frames at most for
// a moment. What comes out at a veth's other end is not counted again.
func (t clones) read(n int, count func(sent) bool) ([]sent, error) {
	var out []sent
	buf := make([]byte, 1<<16)
	for end := time.Now().Add(time.Second); ; {
		size, from, err := unix.Recvfrom(t.fd, buf, 0)
		if errors.Is(err, syscall.EAGAIN) {
			if len(out) >= n || time.Now().After(end) {
				return out, nil
			}
			time.Sleep(20 * time.Microsecond)
			continue
		}
		if err != nil {
			return nil, err
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if !ok {
			continue
		}
		s := sent{uint32(ll.Ifindex), ll.Pkttype == unix.PACKET_OUTGOING, append([]byte(nil), buf[:size]...)}
		if count(s) {
			out = append(out, s)
		}
	}
}
