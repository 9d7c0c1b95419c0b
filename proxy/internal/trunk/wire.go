package trunk

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Wire is the packet socket by which hosts in VLANs are asked. The zero value is ready to use; not safe for
// concurrent use.
type Wire struct {
	fd    int
	hears map[uint32]bool // devices that let all groups through
}

func (w *Wire) open() error {
	if w.fd != 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	w.fd, w.hears = fd, make(map[uint32]bool)
	return nil
}

// Hear implements Asker. It lasts as long as the socket.
func (w *Wire) Hear(ifindex uint32) error {
	if err := w.open(); err != nil || w.hears[ifindex] {
		return err
	}
	all := unix.PacketMreq{Ifindex: int32(ifindex), Type: unix.PACKET_MR_ALLMULTI}
	if err := unix.SetsockoptPacketMreq(w.fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &all); err != nil {
		return err
	}
	w.hears[ifindex] = true
	return nil
}

// Ask implements Asker.
func (w *Wire) Ask(q Question) error {
	if err := w.open(); err != nil {
		return err
	}
	return unix.Sendto(w.fd, q.frame(), 0, &unix.SockaddrLinklayer{Ifindex: int(q.Ifindex)})
}

// Close ends the socket, and what devices let through for it.
func (w *Wire) Close() {
	if w.fd != 0 {
		_ = unix.Close(w.fd)
		w.fd, w.hears = 0, nil
	}
}

// Links looks up the devices of this network namespace.
type Links struct{}

// Device implements Devices.
func (Links) Device(name string) (Device, error) {
	dev, err := net.InterfaceByName(name)
	switch {
	case err != nil:
		return Device{}, fmt.Errorf("device %s is not there", name)
	case len(dev.HardwareAddr) != 6 || dev.Flags&net.FlagLoopback != 0:
		return Device{}, fmt.Errorf("device %s is no Ethernet device", name)
	case dev.Flags&net.FlagUp == 0:
		return Device{}, fmt.Errorf("device %s is down", name)
	}
	out := Device{Ifindex: uint32(dev.Index), MAC: [6]byte(dev.HardwareAddr), MTU: uint32(dev.MTU)}
	addrs, err := dev.Addrs()
	if err != nil {
		return Device{}, fmt.Errorf("read the addresses of device %s: %w", name, err)
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && !p.Addr().IsLinkLocalUnicast() {
			out.Prefixes = append(out.Prefixes, p)
		}
	}
	return out, nil
}

// Name implements Devices.
func (Links) Name(ifindex uint32) string {
	dev, err := net.InterfaceByIndex(int(ifindex))
	if err != nil {
		return ""
	}
	return dev.Name
}
