// Package overlay is this node's end of the tunnel between nodes: a VXLAN device, and what fits
// through it.
//
// The device is in external mode: it has no VNI, no peers and no forwarding table of its own. Programs
// say with each packet where it goes, and are told where each came from. So there is nothing in it to
// keep up to date, and one device does for all nodes.
package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Device is the name of the VXLAN device.
const Device = "tclbvx"

// deviceMTU lets through whatever programs send: what fits is a matter of the node that it goes to.
const deviceMTU = 65535

// ErrPortInUse says that the tunnel's UDP port belongs to somebody else on this host.
var ErrPortInUse = errors.New("the UDP port is in use")

// MAC returns the Ethernet address that the device of the node with that underlay address has. It is a
// function of the address, so that nodes need not tell it to each other.
func MAC(address netip.Addr) [6]byte {
	// FNV-1a over the 16-byte form; the values are part of what nodes agree on: a test pins them.
	h := uint64(0xcbf29ce484222325)
	for _, b := range address.As16() {
		h = (h ^ uint64(b)) * 0x100000001b3
	}
	mac := [6]byte{0x7a}
	for i := 1; i < len(mac); i++ {
		mac[i] = byte(h >> (8 * i))
	}
	return mac
}

// Sync makes the device of the node with that underlay address as it should be, on that UDP port, and
// returns its index. It changes only what differs; a device of another kind or port is made anew. It
// returns ErrPortInUse if the port is somebody else's.
func Sync(port uint16, address netip.Addr) (ifindex uint32, err error) {
	link, err := find()
	if err != nil {
		return 0, err
	}
	if link != nil && !fits(link, port) {
		if err := remove(link); err != nil {
			return 0, err
		}
		link = nil
	}
	made := link == nil
	if made {
		if link, err = create(port); err != nil {
			return 0, err
		}
	}
	if err := repair(link, port, MAC(address)); err != nil {
		if made { // one that cannot be used is not worth keeping
			err = errors.Join(err, remove(link))
		}
		return 0, err
	}
	return uint32(link.Attrs().Index), nil
}

// Remove takes the device away and says whether there was one.
func Remove() (bool, error) {
	link, err := find()
	if link == nil || err != nil {
		return false, err
	}
	return true, remove(link)
}

// find returns the device, or nil.
func find() (netlink.Link, error) {
	link, err := netlinksafe.LinkByName(Device)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", Device, err)
	}
	return link, nil
}

// fits says whether a device is one of ours in what cannot be changed.
func fits(link netlink.Link, port uint16) bool {
	vx, ok := link.(*netlink.Vxlan)
	return ok && vx.FlowBased && !vx.Learning && vx.Port == int(port)
}

func create(port uint16) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = Device
	err := netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: int(port)})
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EADDRINUSE) {
		return nil, portInUse(port)
	}
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", Device, err)
	}
	link, err := find()
	if err == nil && link == nil {
		err = fmt.Errorf("create %s: it is gone at once", Device)
	}
	return link, err
}

func portInUse(port uint16) error {
	return fmt.Errorf("create %s: %w: %d belongs to another VXLAN device or process of this host: set tunnel.port to a free one, the same on all nodes",
		Device, ErrPortInUse, port)
}

// repair sets what differs: no ARP and no addresses of its own, because nobody is on that link; up.
func repair(link netlink.Link, port uint16, mac [6]byte) error {
	attrs := link.Attrs()
	if [6]byte(append(attrs.HardwareAddr, make([]byte, 6)...)[:6]) != mac {
		if err := netlink.LinkSetHardwareAddr(link, net.HardwareAddr(mac[:])); err != nil {
			return fmt.Errorf("set address of %s: %w", Device, err)
		}
	}
	if attrs.RawFlags&unix.IFF_NOARP == 0 {
		if err := netlink.LinkSetARPOff(link); err != nil {
			return fmt.Errorf("switch ARP of %s off: %w", Device, err)
		}
	}
	if attrs.MTU != deviceMTU {
		// Some kernels take less; programs know what fits, so that is no fault.
		if err := netlink.LinkSetMTU(link, deviceMTU); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("set MTU of %s: %w", Device, err)
		}
	}
	if err := noLinkLocal(); err != nil {
		return err
	}
	if attrs.Flags&net.FlagUp != 0 {
		return nil
	}
	err := netlink.LinkSetUp(link) // this is what takes the port
	if errors.Is(err, unix.EADDRINUSE) {
		return portInUse(port)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", Device, err)
	}
	return nil
}

// noLinkLocal keeps the kernel from giving the device a link-local address. Where IPv6 is off there is
// nothing to do.
func noLinkLocal() error {
	path := filepath.Join("/proc/sys/net/ipv6/conf", Device, "addr_gen_mode")
	err := os.WriteFile(path, []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("keep addresses off %s: %w", Device, err)
	}
	return nil
}

func remove(link netlink.Link) error {
	err := netlink.LinkDel(link)
	var missing netlink.LinkNotFoundError
	if err != nil && !errors.Is(err, unix.ENODEV) && !errors.As(err, &missing) {
		return fmt.Errorf("delete %s: %w", Device, err)
	}
	return nil
}
