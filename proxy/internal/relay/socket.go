package relay

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below do not block, so they do not tell Go's scheduler that they might: that, and the addresses
// which the usual wrappers allocate, would be a tenth of a short connection's cost.

// sockaddr is an address as the kernel wants it. It is comparable: a key for maps.
type sockaddr struct {
	raw  [unix.SizeofSockaddrInet6]byte
	size uint32
}

// encode returns a's sockaddr.
func encode(a netip.AddrPort) (s sockaddr) {
	addr := a.Addr().Unmap()
	binary.BigEndian.PutUint16(s.raw[2:], a.Port())
	if addr.Is4() {
		binary.NativeEndian.PutUint16(s.raw[:], unix.AF_INET)
		copy(s.raw[4:], addr.AsSlice())
		s.size = unix.SizeofSockaddrInet4
		return s
	}
	binary.NativeEndian.PutUint16(s.raw[:], unix.AF_INET6)
	bytes := addr.As16()
	copy(s.raw[8:], bytes[:])
	if scope, err := strconv.ParseUint(addr.Zone(), 10, 32); err == nil {
		binary.NativeEndian.PutUint32(s.raw[24:], uint32(scope))
	}
	s.size = unix.SizeofSockaddrInet6
	return s
}

func (s *sockaddr) family() int { return int(binary.NativeEndian.Uint16(s.raw[:])) }

// decode is the inverse of encode.
func (s *sockaddr) decode() netip.AddrPort {
	port := binary.BigEndian.Uint16(s.raw[2:])
	if s.family() == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(s.raw[4:8])), port)
	}
	addr := netip.AddrFrom16([16]byte(s.raw[8:24]))
	if scope := binary.NativeEndian.Uint32(s.raw[24:]); scope != 0 {
		addr = addr.WithZone(strconv.FormatUint(uint64(scope), 10))
	}
	return netip.AddrPortFrom(addr, port)
}

func newSocket(family, kind int) (int, unix.Errno) {
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), uintptr(kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC), 0)
	return int(fd), errno
}

// accept returns the next connection of a listener and who opened it.
func accept(fd int, from *sockaddr) (int, unix.Errno) {
	from.size = uint32(len(from.raw))
	conn, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&from.raw)),
		uintptr(unsafe.Pointer(&from.size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	return int(conn), errno
}

func connect(fd int, to *sockaddr) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&to.raw)), uintptr(to.size))
	return errno
}

func receive(fd int, buf []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))),
		uintptr(len(buf)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func send(fd int, buf []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))),
		uintptr(len(buf)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func splice(from, to, n int) (int, unix.Errno) {
	moved, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n),
		unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	if errno != 0 {
		return 0, errno
	}
	return int(moved), 0
}

// sendEnd tells the peer that no more comes: a FIN behind what was sent.
func sendEnd(fd int) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return errno
}

func closeSocket(fd int) {
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
}

// resetSocket closes a connection so that the peer sees a reset.
func resetSocket(fd int) {
	linger := unix.Linger{Onoff: 1}
	_ = setOption(fd, unix.SOL_SOCKET, unix.SO_LINGER, unsafe.Pointer(&linger), unsafe.Sizeof(linger))
	closeSocket(fd)
}

func setInt(fd, level, option, value int) unix.Errno {
	v := int32(value)
	return setOption(fd, level, option, unsafe.Pointer(&v), unsafe.Sizeof(v))
}

func setOption(fd, level, option int, value unsafe.Pointer, size uintptr) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(value), size, 0)
	runtime.KeepAlive(value)
	return errno
}

// pendingError returns what went wrong with a socket since it was asked last.
func pendingError(fd int) unix.Errno {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return unix.EINVAL
	}
	return unix.Errno(code)
}

// message is one of a batch of datagrams: struct mmsghdr.
type message struct {
	header unix.Msghdr
	n      uint32
}

func receiveBatch(fd int, batch []message) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(batch))),
		uintptr(len(batch)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func sendBatch(fd int, batch []message) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(batch))),
		uintptr(len(batch)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
