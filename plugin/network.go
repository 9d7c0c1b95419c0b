package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernelNetwork resolves interfaces by netlink.
type kernelNetwork struct{}

// inside is what can be seen of an interface in the container's namespace.
type inside struct {
	veth      // its inner half
	index int // there
	peer  int // index of the other end, in the other end's namespace
}

// Resolve finds the host side of the veth ifname. The peer's index is read inside the container
// and counts only if that host interface names the container's interface as its own peer:
// results list interfaces in any order, and an index alone may be an unrelated device's here.
func (kernelNetwork) Resolve(path, ifname string) (veth, error) {
	space, err := ns.GetNS(path)
	if err != nil {
		return veth{}, failure(types.ErrInvalidNetNS, err, "the container's network namespace cannot be opened")
	}
	defer func() { _ = space.Close() }()
	if same, err := isCurrent(space); err != nil || same {
		return veth{}, failure(types.ErrInvalidNetNS, err, "CNI_NETNS %s is the host's own namespace", path)
	}
	var in inside
	err = space.Do(func(ns.NetNS) (err error) {
		in, err = lookInside(ifname)
		return err
	})
	if err != nil {
		return veth{}, err
	}
	host, err := hostSide(in, int(space.Fd()))
	if err != nil {
		return veth{}, failure(codePeer, err, "the host side of the veth %s is not in the runtime's network namespace, "+
			"so packets cannot be balanced there; run the plugin where the network's bridge is", ifname)
	}
	out := in.veth
	out.HostName, out.HostIfindex, out.UpMAC = host.Attrs().Name, uint32(host.Attrs().Index), host.Attrs().HardwareAddr
	return out, addMaster(&out, host)
}

func isCurrent(space ns.NetNS) (bool, error) {
	host, err := ns.GetCurrentNS()
	if err != nil {
		return false, err
	}
	defer func() { _ = host.Close() }()
	var a, b unix.Stat_t
	err = errors.Join(unix.Fstat(int(space.Fd()), &a), unix.Fstat(int(host.Fd()), &b))
	return a.Dev == b.Dev && a.Ino == b.Ino, err
}

// lookInside runs in the container's namespace.
func lookInside(ifname string) (inside, error) {
	dev, err := netlinksafe.LinkByName(ifname)
	if err != nil {
		return inside{}, failure(codeInterface, err, "the container has no interface %s; "+
			"put tclb-cni after the plugin that makes it", ifname)
	}
	attrs := dev.Attrs()
	if dev.Type() != "veth" {
		return inside{}, failure(codeInterface, nil, "%s", whyNotVeth(ifname, dev.Type()))
	}
	in := inside{index: attrs.Index, peer: attrs.ParentIndex, veth: veth{MAC: attrs.HardwareAddr, NetnsCookie: netnsCookie()}}
	addrs, err := netlinksafe.AddrList(dev, netlink.FAMILY_ALL)
	if err != nil {
		return inside{}, failure(codeInterface, err, "the addresses of %s cannot be read", ifname)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && usable(ip.Unmap()) {
			in.Addresses = append(in.Addresses, ip.Unmap())
		}
	}
	routes, err := netlinksafe.RouteList(dev, netlink.FAMILY_ALL)
	if err != nil {
		return inside{}, failure(codeInterface, err, "the routes of %s cannot be read", ifname)
	}
	for _, r := range routes {
		if r.Dst == nil || isZero(r.Dst) {
			in.DefaultRoute = true
		}
	}
	return in, nil
}

func isZero(n *net.IPNet) bool {
	ones, _ := n.Mask.Size()
	return ones == 0 && n.IP.IsUnspecified()
}

// hostSide returns the other end of in, having made sure that it is.
func hostSide(in inside, netnsFD int) (netlink.Link, error) {
	host, err := netlink.LinkByIndex(in.peer)
	if err != nil {
		return nil, fmt.Errorf("look for interface %d: %w", in.peer, err)
	}
	// Asked after the interface: describing a peer gives its namespace an id.
	id, err := netlink.GetNetNsIdByFd(netnsFD)
	if err != nil {
		return nil, fmt.Errorf("look for the namespace's id: %w", err)
	}
	a := host.Attrs()
	if host.Type() != "veth" || a.ParentIndex != in.index || a.NetNsID < 0 || a.NetNsID != id {
		return nil, fmt.Errorf("interface %d here is %s, a %s, and not the other end", in.peer, a.Name, host.Type())
	}
	return host, nil
}

// addMaster records the bridge that host is a port of. Under any other master (a VRF, say) and
// without one the host side's own MAC is the one that the host's stack listens to.
func addMaster(v *veth, host netlink.Link) error {
	index := host.Attrs().MasterIndex
	if index == 0 {
		return nil
	}
	master, err := netlink.LinkByIndex(index)
	if err != nil {
		return failure(codePeer, err, "the bridge of %s cannot be read", host.Attrs().Name)
	}
	v.Master = master.Attrs().Name
	if master.Type() == "bridge" {
		v.UpIfindex, v.UpMAC = uint32(index), master.Attrs().HardwareAddr
	}
	return nil
}

// netnsCookie returns the kernel's number of the current namespace, 0 if it has none (before 5.14).
func netnsCookie() uint64 {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer func() { _ = unix.Close(fd) }()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return cookie
}

// whyNotVeth says why a container's interface cannot be balanced, and what to do.
func whyNotVeth(ifname, kind string) string {
	const instead = "; use the bridge or ptp plugin for networks whose containers need services, or take tclb-cni out of this conflist"
	var why string
	switch kind {
	case "macvlan", "macvtap", "ipvlan", "ipvtap", "vlan":
		why = "its packets leave through the parent device: there is no host-side veth for tclb's programs"
	case "device":
		why = "it is a device that was moved into the container (host-device or SR-IOV) and has no host side"
	case "tun", "tuntap", "tap":
		why = "what is behind it is a program or a virtual machine, not a host-side veth"
	default:
		why = "tclb attaches to the host side of a veth, which it does not have"
	}
	return fmt.Sprintf("%s is a %s interface: %s%s", ifname, kind, why, instead)
}
