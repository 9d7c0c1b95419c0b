package overlay

import (
	"errors"
	"fmt"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolValue is struct ethtool_value.
type ethtoolValue struct {
	cmd, data uint32
}

// ethtoolRequest is struct ifreq with a pointer in its union.
type ethtoolRequest struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [24 - unsafe.Sizeof(uintptr(0))]byte
}

// offloads are the commands that switch off what a device leaves to others, those that need others first.
var offloads = [...]struct {
	name string
	cmd  uint32
}{
	{"TSO", unix.ETHTOOL_STSO},
	{"GSO", unix.ETHTOOL_SGSO},
	{"checksums", unix.ETHTOOL_STXCSUM},
}

// DisableOffloads lets the kernel finish packets before the tunnel device wraps them: checksums and
// segments are made in software, on whatever the underlay's devices then need not understand.
func DisableOffloads(ifindex uint32) error {
	device, err := net.InterfaceByIndex(int(ifindex))
	if err != nil {
		return fmt.Errorf("switch offloads off: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("switch offloads of %s off: %w", device.Name, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var errs []error
	for _, o := range offloads {
		if err := ethtool(fd, device.Name, &ethtoolValue{cmd: o.cmd}); err != nil {
			errs = append(errs, fmt.Errorf("switch %s of %s off: %w", o.name, device.Name, err))
		}
	}
	return errors.Join(errs...)
}

// ethtool gives a command to a device's driver.
func ethtool(fd int, device string, value *ethtoolValue) error {
	request := ethtoolRequest{data: unsafe.Pointer(value)}
	copy(request.name[:], device)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return errno
	}
	return nil
}
