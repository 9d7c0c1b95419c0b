package e2e

import (
	"fmt"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/overlay"
)

// Who receives may merge segments, on the underlay's device, the tunnel's and the container's, or none of them.
func TestTunnelCarriesBulkMergedOrNot(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	for _, merge := range []uint32{0, 1} {
		t.Run(fmt.Sprintf("GRO %d", merge), func(t *testing.T) {
			t.Parallel()
			p := newPairOfNodes(t, v4, distinctSubnets)
			p.withBulk(t, size)
			for i, n := range p.nodes {
				n.setGRO(t, underlayDevice, merge)
				n.setGRO(t, overlay.Device, merge)
				[]*container{p.client, p.server}[i].setGRO(t, "eth0", merge)
			}
			for family := range families {
				p.bothWays(t, family, size)
			}
		})
	}
}

// setGRO switches the merging of received segments on (1) or off (0).
func (p *place) setGRO(t *testing.T, device string, on uint32) {
	t.Helper()
	p.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		const sgro = 0x2c              // ETHTOOL_SGRO
		value := [...]uint32{sgro, on} // struct ethtool_value
		request := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [24 - unsafe.Sizeof(uintptr(0))]byte
		}{data: unsafe.Pointer(&value)}
		copy(request.name[:], device)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return fmt.Errorf("set GRO of %s: %w", device, errno)
		}
		return nil
	})
}
