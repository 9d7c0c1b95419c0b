package overlay

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	own  = netip.MustParseAddr("192.0.2.11")
	peer = netip.MustParseAddr("192.0.2.12")
)

// inNamespace runs f in a new network namespace, on one thread.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	space, err := ns.TempNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = space.Close() }()
	if err := space.Do(func(ns.NetNS) error { f(); return nil }); err != nil {
		t.Fatal(err)
	}
}

func mustSync(t *testing.T, port uint16) uint32 {
	t.Helper()
	ifindex, err := Sync(port, own)
	if err != nil {
		t.Fatal(err)
	}
	return ifindex
}

func device(t *testing.T) *netlink.Vxlan {
	t.Helper()
	l, err := netlink.LinkByName(Device)
	if err != nil {
		t.Fatal(err)
	}
	return l.(*netlink.Vxlan)
}

func TestSyncMakesTheDeviceOnce(t *testing.T) {
	inNamespace(t, func() {
		first := mustSync(t, 4789)
		d := device(t)
		if !d.FlowBased || d.Learning || d.Port != 4789 || d.Attrs().MTU != deviceMTU {
			t.Errorf("external %v, learning %v, port %d, MTU %d", d.FlowBased, d.Learning, d.Port, d.Attrs().MTU)
		}
		if mac := MAC(own); d.Attrs().HardwareAddr.String() != net.HardwareAddr(mac[:]).String() {
			t.Errorf("address %s, want %x", d.Attrs().HardwareAddr, mac)
		}
		if d.Attrs().Flags&net.FlagUp == 0 || d.Attrs().RawFlags&unix.IFF_NOARP == 0 {
			t.Errorf("flags %v", d.Attrs().Flags)
		}
		addrs, err := netlink.AddrList(d, netlink.FAMILY_ALL)
		if err != nil || len(addrs) != 0 {
			t.Errorf("addresses %v, %v; want none", addrs, err)
		}
		if again := mustSync(t, 4789); again != first {
			t.Errorf("made anew: %d, then %d", first, again)
		}
	})
}

func TestSyncRepairsWhatDiffers(t *testing.T) {
	inNamespace(t, func() {
		first := mustSync(t, 4789)
		d := device(t)
		for _, err := range []error{
			netlink.LinkSetDown(d), netlink.LinkSetMTU(d, 1450), netlink.LinkSetARPOn(d),
			netlink.LinkSetHardwareAddr(d, net.HardwareAddr{2, 0, 0, 0, 0, 1}),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if again := mustSync(t, 4789); again != first {
			t.Errorf("made anew: %d, then %d", first, again)
		}
		d = device(t)
		if mac := MAC(own); d.Attrs().HardwareAddr.String() != net.HardwareAddr(mac[:]).String() || d.Attrs().MTU != deviceMTU ||
			d.Attrs().RawFlags&unix.IFF_NOARP == 0 || d.Attrs().Flags&net.FlagUp == 0 {
			t.Errorf("after repair: %+v", d.Attrs())
		}
	})
}

func TestSyncReplacesADeviceOfAnotherKindOrPort(t *testing.T) {
	inNamespace(t, func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = Device
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "other"}); err != nil {
			t.Fatal(err)
		}
		mustSync(t, 4789)
		mustSync(t, 8472)
		if d := device(t); d.Port != 8472 {
			t.Errorf("port %d, want 8472", d.Port)
		}
	})
}

func TestAPortOfSomebodyElseIsSaid(t *testing.T) {
	for name, occupy := range map[string]func(t *testing.T){
		"process": func(t *testing.T) {
			u, err := net.ListenPacket("udp", ":4789")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = u.Close() })
		},
		"device in external mode": func(t *testing.T) {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "other"
			if err := netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: 4789}); err != nil {
				t.Fatal(err)
			}
		},
		"device with a VNI": func(t *testing.T) {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "other"
			d := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 7, Port: 4789}
			if err := errors.Join(netlink.LinkAdd(d), netlink.LinkSetUp(d)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inNamespace(t, func() {
				occupy(t)
				if _, err := Sync(4789, own); !errors.Is(err, ErrPortInUse) {
					t.Errorf("got %v", err)
				}
				if _, err := netlink.LinkByName(Device); err == nil {
					t.Error("a device that cannot be used is left")
				}
			})
		})
	}
}

func TestRemoveIsIdempotent(t *testing.T) {
	inNamespace(t, func() {
		mustSync(t, 4789)
		for _, want := range []bool{true, false} {
			if there, err := Remove(); err != nil || there != want {
				t.Errorf("Remove: %v, %v; want %v", there, err, want)
			}
		}
	})
}

func TestPathSaysWhatFits(t *testing.T) {
	inNamespace(t, func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "under", 1400
		d := &netlink.Veth{LinkAttrs: attrs, PeerName: "far"}
		far := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "far"}}
		address, _ := netlink.ParseAddr("192.0.2.11/24")
		if err := errors.Join(netlink.LinkAdd(d), netlink.LinkSetUp(d), netlink.LinkSetUp(far), netlink.AddrAdd(d, address)); err != nil {
			t.Fatal(err)
		}
		got, err := PathTo(own, peer)
		if err != nil || got.MTU != 1400 || !got.OnLink || got.Device != d.Attrs().Index {
			t.Errorf("on the link: %+v, %v", got, err)
		}
		if !Local(own) || Local(peer) {
			t.Errorf("local: own address %v, peer's %v", Local(own), Local(peer))
		}
		beyond := netip.MustParseAddr("198.51.100.1")
		if _, err := PathTo(own, beyond); err == nil {
			t.Error("a way where there is none")
		}
		err = netlink.RouteAdd(&netlink.Route{
			Dst: &net.IPNet{IP: beyond.AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: peer.AsSlice(), LinkIndex: d.Attrs().Index, MTU: 1300,
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err = PathTo(own, beyond)
		if err != nil || got.MTU != 1300 || got.OnLink {
			t.Errorf("behind a router: %+v, %v", got, err)
		}
	})
}

func TestOffloadsGoOff(t *testing.T) {
	inNamespace(t, func() {
		ifindex := mustSync(t, 4789)
		if err := DisableOffloads(ifindex); err != nil {
			t.Fatal(err)
		}
		if err := DisableOffloads(ifindex); err != nil {
			t.Errorf("again: %v", err)
		}
		features, err := ethtoolGet(Device)
		if err != nil {
			t.Fatal(err)
		}
		for name, on := range features {
			if on {
				t.Errorf("%s is still on", name)
			}
		}
	})
}

// ethtoolGet reads what DisableOffloads switches off.
func ethtoolGet(device string) (map[string]bool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	out := make(map[string]bool)
	for name, cmd := range map[string]uint32{"TSO": unix.ETHTOOL_GTSO, "GSO": unix.ETHTOOL_GGSO, "checksums": unix.ETHTOOL_GTXCSUM} {
		v := ethtoolValue{cmd: cmd}
		if err := ethtool(fd, device, &v); err != nil {
			return nil, err
		}
		out[name] = v.data != 0
	}
	return out, nil
}
