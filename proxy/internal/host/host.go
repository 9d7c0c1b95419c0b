// Package host is the way by which this host itself, and what it forwards, reaches VIPs.
//
// VIPs are routed to tclb0, one end of a veth pair of ours. The program from_host on its egress
// selects and translates; replies come back through the ingress of the same device, which is why
// strict reverse path filtering agrees. tclb1, the other end, only has to be there and up.
//
// Everything made here carries a mark: the devices' names, and the protocol number of the routes.
package host

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Names and numbers of what is ours.
const (
	Device   = "tclb0"
	Peer     = "tclb1"
	Protocol = 76 // of routes

	// deviceMTU lets through whatever the stack makes; the routes' MTU tells it what to make.
	deviceMTU = 65535
	// queues keep the pair small: packets never wait in it.
	queues = 1
)

// Attacher joins the program from_host to the egress of an interface.
type Attacher func(ifindex int) error

// Host keeps the host path. Not safe for concurrent use.
type Host struct {
	attach Attacher
	log    *slog.Logger
}

// New returns a host path that does not exist yet: call Sync.
func New(attach Attacher, log *slog.Logger) *Host {
	return &Host{attach: attach, log: log}
}

// State is what programs have to know of the host path.
type State struct {
	Ifindex uint32
	MAC     [6]byte
}

// Sync makes the devices as they should be, attaches the program, and makes the routes lead the given
// prefixes to tclb0. address is the source of packets to VIPs, by family; a family without
// one gets no routes. It changes only what differs, and may be called at any time.
func (h *Host) Sync(prefixes []netip.Prefix, address [2]netip.Addr) (State, error) {
	dev, err := h.devices()
	if err != nil {
		return State{}, err
	}
	if err := h.attach(dev.Attrs().Index); err != nil {
		return State{}, fmt.Errorf("attach to %s: %w", Device, err)
	}
	st := State{Ifindex: uint32(dev.Attrs().Index)}
	copy(st.MAC[:], dev.Attrs().HardwareAddr)
	return st, h.routes(dev, prefixes, address)
}

// devices returns tclb0. A pair that is not ours in kind, or half, is made anew.
func (h *Host) devices() (netlink.Link, error) {
	dev, err := netlinksafe.LinkByName(Device)
	peer, peerErr := netlinksafe.LinkByName(Peer)
	missing := isMissing(err) || isMissing(peerErr)
	if err := errors.Join(real(err), real(peerErr)); err != nil {
		return nil, fmt.Errorf("look up %s: %w", Device, err)
	}
	if missing || dev.Type() != "veth" || dev.Attrs().ParentIndex != peer.Attrs().Index {
		for _, l := range []netlink.Link{dev, peer} {
			if err := remove(l); err != nil {
				return nil, err
			}
		}
		if dev, peer, err = create(); err != nil {
			return nil, err
		}
		h.log.Info("made the host's way to VIPs", "device", Device)
	}
	for _, l := range []netlink.Link{peer, dev} {
		if err := repair(l); err != nil {
			return nil, err
		}
	}
	return dev, nil
}

func create() (dev, peer netlink.Link, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = Device
	attrs.MTU = deviceMTU
	attrs.NumTxQueues, attrs.NumRxQueues = queues, queues
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: Peer}
	if err := netlink.LinkAdd(veth); err != nil {
		return nil, nil, fmt.Errorf("create %s: %w", Device, err)
	}
	if dev, err = netlinksafe.LinkByName(Device); err != nil {
		return nil, nil, fmt.Errorf("look up %s: %w", Device, err)
	}
	if peer, err = netlinksafe.LinkByName(Peer); err != nil {
		return nil, nil, fmt.Errorf("look up %s: %w", Peer, err)
	}
	return dev, peer, nil
}

// repair sets what differs: no ARP, because nobody answers; no addresses of its own, which would
// bring router solicitations; up.
func repair(l netlink.Link) error {
	attrs := l.Attrs()
	name := attrs.Name
	if attrs.RawFlags&unix.IFF_NOARP == 0 {
		if err := netlink.LinkSetARPOff(l); err != nil {
			return fmt.Errorf("switch ARP of %s off: %w", name, err)
		}
	}
	if attrs.MTU != deviceMTU {
		if err := netlink.LinkSetMTU(l, deviceMTU); err != nil {
			return fmt.Errorf("set MTU of %s: %w", name, err)
		}
	}
	if err := noLinkLocal(name); err != nil {
		return err
	}
	if attrs.Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	return nil
}

// noLinkLocal keeps the kernel from giving the device a link-local address. Where IPv6 is off there is
// nothing to do.
func noLinkLocal(name string) error {
	path := filepath.Join("/proc/sys/net/ipv6/conf", name, "addr_gen_mode")
	err := os.WriteFile(path, []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("keep addresses off %s: %w", name, err)
	}
	return nil
}

// Remove takes the devices away, and the routes with them. What is not there is no error.
func Remove() error {
	var errs []error
	for _, name := range []string{Device, Peer} {
		l, err := netlinksafe.LinkByName(name)
		if err != nil {
			errs = append(errs, real(err))
			continue
		}
		errs = append(errs, remove(l))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove host path: %w", err)
	}
	return removeRoutes()
}

func remove(l netlink.Link) error {
	if l == nil {
		return nil
	}
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) && !isMissing(err) {
		return fmt.Errorf("delete %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// isMissing says whether a look-up found no such device.
func isMissing(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

// real is err unless it says that a device is missing.
func real(err error) error {
	if isMissing(err) {
		return nil
	}
	return err
}

// Prefixes returns what is to be routed to tclb0: the pool, and VIPs outside it.
func Prefixes(pool []netip.Prefix, vips []netip.Addr) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(pool)+len(vips))
	for _, p := range pool {
		out = append(out, p.Masked())
	}
	for _, v := range vips {
		if !slices.ContainsFunc(pool, func(p netip.Prefix) bool { return p.Contains(v) }) {
			out = append(out, netip.PrefixFrom(v, v.BitLen()))
		}
	}
	slices.SortFunc(out, comparePrefixes)
	return slices.Compact(out)
}
