package announce

import (
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	vip4 = netip.MustParseAddr("192.0.2.10")
	vip6 = netip.MustParseAddr("2001:db8:ff::ab:cdef")
	mac  = [6]byte{2, 0, 0, 0, 0, 7}
)

func TestFramesSayWhoHasTheVIP(t *testing.T) {
	p := gopacket.NewPacket(arp(mac, vip4), layers.LayerTypeEthernet, gopacket.Default)
	a, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
	if !ok || a.Operation != layers.ARPRequest || net.IP(a.SourceProtAddress).String() != vip4.String() ||
		net.IP(a.DstProtAddress).String() != vip4.String() || net.HardwareAddr(a.SourceHwAddress).String() != "02:00:00:00:00:07" {
		t.Errorf("ARP:\n%s", p.Dump())
	}
	p = gopacket.NewPacket(advertisement(mac, vip6), layers.LayerTypeEthernet, gopacket.Default)
	na, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
	ip, _ := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	if !ok || ip.HopLimit != 255 || ip.DstIP.String() != "ff02::1" || na.TargetAddress.String() != vip6.String() ||
		!na.Override() || na.Solicited() || na.Router() || hex.EncodeToString(na.Options[0].Data) != "020000000007" {
		t.Errorf("advertisement:\n%s", p.Dump())
	}
}

// link is a veth pair in a namespace of its own; what is sent on one end is heard on the other.
type link struct {
	near, far *netlink.Veth
	heard     int // socket
}

func onLink(t *testing.T, f func(l link)) {
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
	err = space.Do(func(ns.NetNS) error {
		l := link{near: &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs()}, far: &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs()}}
		l.near.Name, l.near.PeerName, l.far.Name = "near", "far", "far"
		if err := errors.Join(netlink.LinkAdd(l.near), netlink.LinkSetUp(l.near), netlink.LinkSetUp(l.far)); err != nil {
			return err
		}
		far, err := net.InterfaceByName("far")
		if err != nil {
			return err
		}
		all := uint16(unix.ETH_P_ALL)
		if l.heard, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(all<<8|all>>8)); err != nil {
			return err
		}
		defer func() { _ = unix.Close(l.heard) }()
		if err := unix.Bind(l.heard, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: far.Index}); err != nil {
			return err
		}
		l.open(t)
		f(l)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// open waits until the kernel lets frames through, which it begins to do in its own time after both ends are up.
func (l link) open(t *testing.T) {
	t.Helper()
	var out sender
	defer out.close()
	end := time.Now().Add(10 * time.Second)
	for time.Now().Before(end) {
		if err := out.say(place{uint32(l.near.Attrs().Index), mac, vip4}); err != nil {
			t.Fatal(err)
		}
		if l.hear() > 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("nothing arrives at the other end of the link")
}

// hear counts the announcements that arrived.
func (l link) hear() (n int) {
	buf := make([]byte, 200)
	for {
		size, _, err := unix.Recvfrom(l.heard, buf, unix.MSG_DONTWAIT)
		if err != nil {
			return n
		}
		got := string(buf[:size])
		if got == string(arp(mac, vip4)) || got == string(advertisement(mac, vip6)) {
			n++
		}
	}
}

// memberOf says whether the kernel delivers a group on a device.
func memberOf(t *testing.T, device, group string) bool {
	t.Helper()
	data, err := os.ReadFile("/proc/thread-self/net/igmp6")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); fields[1] == device && fields[2] == group {
			return true
		}
	}
	return false
}

func TestAVIPIsSaidTwiceWhenItComes(t *testing.T) {
	onLink(t, func(l link) {
		a := New()
		defer a.Close()
		up := map[uint32][6]byte{uint32(l.near.Attrs().Index): mac}
		const group = "ff0200000000000000000001ffabcdef"
		steps := []struct {
			what  string
			vips  []netip.Addr
			heard int
			done  bool
			in    bool
		}{
			{"it comes", []netip.Addr{vip4, vip6}, 2, false, true},
			{"once more", []netip.Addr{vip4, vip6}, 2, true, true},
			{"nothing happens", []netip.Addr{vip4, vip6}, 0, true, true},
			{"one goes", []netip.Addr{vip4}, 0, true, false},
			{"it is back", []netip.Addr{vip4, vip6}, 1, false, true},
		}
		for _, s := range steps {
			if done, err := a.Sync(up, s.vips); done != s.done || err != nil {
				t.Fatalf("%s: done %v, %v", s.what, done, err)
			}
			if got := l.hear(); got != s.heard {
				t.Errorf("%s: %d announcements, want %d", s.what, got, s.heard)
			}
			if in := memberOf(t, "near", group); in != s.in {
				t.Errorf("%s: in the group: %v", s.what, in)
			}
		}
	})
}

func TestALinkThatComesBackHearsAllAgain(t *testing.T) {
	onLink(t, func(l link) {
		a := New()
		defer a.Close()
		up := map[uint32][6]byte{uint32(l.near.Attrs().Index): mac}
		vips := []netip.Addr{vip4}
		for _, want := range []bool{false, true} {
			if done, err := a.Sync(up, vips); done != want || err != nil {
				t.Fatalf("done %v, %v", done, err)
			}
		}
		if err := netlink.LinkSetDown(l.near); err != nil {
			t.Fatal(err)
		}
		if done, err := a.Sync(up, vips); done || err != nil {
			t.Errorf("down: done %v, %v", done, err)
		}
		if err := netlink.LinkSetUp(l.near); err != nil {
			t.Fatal(err)
		}
		l.open(t)
		l.hear()
		if done, err := a.Sync(up, vips); done || err != nil {
			t.Errorf("up again: done %v, %v", done, err)
		}
		if got := l.hear(); got != 1 {
			t.Errorf("up again: %d announcements, want 1", got)
		}
	})
}

func TestManyVIPsAreSaidBitByBit(t *testing.T) {
	onLink(t, func(l link) {
		a := New()
		defer a.Close()
		up := map[uint32][6]byte{uint32(l.near.Attrs().Index): mac}
		var vips []netip.Addr
		for i := range 2 * burst {
			vips = append(vips, netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i >> 8), 15: byte(i)}))
		}
		calls := 0
		for done := false; !done; calls++ {
			var err error
			if done, err = a.Sync(up, vips); err != nil || calls > 2*times {
				t.Fatalf("call %d: done %v, %v", calls, done, err)
			}
		}
		if calls < 2*times {
			t.Errorf("all at once, in %d calls", calls)
		}
		if len(a.groups.in) != len(vips) {
			t.Errorf("in %d groups, want %d", len(a.groups.in), len(vips))
		}
	})
}

func TestADeviceThatIsGoneIsSaid(t *testing.T) {
	onLink(t, func(l link) {
		a := New()
		defer a.Close()
		up := map[uint32][6]byte{uint32(l.near.Attrs().Index): mac}
		if err := netlink.LinkDel(l.near); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Sync(up, []netip.Addr{vip4, vip6}); err == nil {
			t.Error("no error")
		}
		if _, err := a.Sync(nil, []netip.Addr{vip4, vip6}); err != nil {
			t.Error(err)
		}
	})
}
