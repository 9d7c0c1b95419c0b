package trunk

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func decode(t *testing.T, q Question) gopacket.Packet {
	t.Helper()
	p := gopacket.NewPacket(q.frame(), layers.LayerTypeEthernet, gopacket.Default)
	if tag, ok := p.Layer(layers.LayerTypeDot1Q).(*layers.Dot1Q); !ok || tag.VLANIdentifier != q.ID || p.ErrorLayer() != nil {
		t.Fatalf("no tag %d:\n%s", q.ID, p.Dump())
	}
	return p
}

func TestQuestionsByARP(t *testing.T) {
	q := Question{Ifindex: 7, ID: 100, MAC: [6]byte{2, 0, 0, 0, 0, 7}, Target: one}
	for _, source := range []netip.Addr{{}, netip.MustParseAddr("198.18.100.200")} {
		for _, to := range [][6]byte{{}, {2, 0, 0, 0, 1, 1}} {
			q.Source, q.To = source, to
			p := decode(t, q)
			a, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
			eth, _ := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
			wantTo, wantFrom := "ff:ff:ff:ff:ff:ff", "0.0.0.0"
			if to != [6]byte{} {
				wantTo = "02:00:00:00:01:01"
			}
			if source.IsValid() {
				wantFrom = source.String()
			}
			if !ok || a.Operation != layers.ARPRequest || eth.DstMAC.String() != wantTo || net.IP(a.SourceProtAddress).String() != wantFrom ||
				net.IP(a.DstProtAddress).String() != one.String() || net.HardwareAddr(a.SourceHwAddress).String() != "02:00:00:00:00:07" {
				t.Errorf("from %s to %s:\n%s", wantFrom, wantTo, p.Dump())
			}
		}
	}
}

func TestQuestionsByND(t *testing.T) {
	target := netip.MustParseAddr("2001:db8:64::ab:cdef")
	q := Question{Ifindex: 7, ID: 100, MAC: [6]byte{2, 0, 0, 0, 0, 7}, Target: target}
	for _, source := range []netip.Addr{{}, netip.MustParseAddr("2001:db8:64::200")} {
		for _, to := range [][6]byte{{}, {2, 0, 0, 0, 1, 1}} {
			q.Source, q.To = source, to
			p := decode(t, q)
			s, ok := p.Layer(layers.LayerTypeICMPv6NeighborSolicitation).(*layers.ICMPv6NeighborSolicitation)
			ip, _ := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
			eth, _ := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
			wantTo, wantIP, wantFrom := "33:33:ff:ab:cd:ef", "ff02::1:ffab:cdef", "fe80::ff:fe00:7"
			if to != [6]byte{} {
				wantTo, wantIP = "02:00:00:00:01:01", target.String()
			}
			if source.IsValid() {
				wantFrom = source.String()
			}
			if !ok || eth.DstMAC.String() != wantTo || ip.DstIP.String() != wantIP || ip.SrcIP.String() != wantFrom || ip.HopLimit != 255 ||
				s.TargetAddress.String() != target.String() || s.Options[0].Type != layers.ICMPv6OptSourceAddress ||
				net.HardwareAddr(s.Options[0].Data).String() != "02:00:00:00:00:07" {
				t.Errorf("from %s to %s:\n%s", wantFrom, wantTo, p.Dump())
			}
		}
	}
}

// What is asked on one end of a link is heard on the other, its tag beside it.
func TestQuestionsOnAWire(t *testing.T) {
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
	if err := space.Do(func(ns.NetNS) error { return onAWire(t) }); err != nil {
		t.Fatal(err)
	}
}

func onAWire(t *testing.T) error {
	near := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "far"}
	near.Name = "near"
	far := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs()}
	far.Name = "far"
	if err := netlink.LinkAdd(near); err != nil {
		return err
	}
	if _, err := (Links{}).Device("near"); err == nil || !strings.Contains(err.Error(), "down") {
		t.Errorf("a device that is down: %v", err)
	}
	own, err := netlink.ParseAddr("198.18.100.200/24")
	if err := errors.Join(err, netlink.LinkSetUp(near), netlink.LinkSetUp(far), netlink.AddrAdd(near, own)); err != nil {
		return err
	}
	d, err := Links{}.Device("near")
	if err != nil || !slices.Equal(d.Prefixes, []netip.Prefix{netip.MustParsePrefix("198.18.100.200/24")}) || d.MTU != 1500 || (Links{}).Name(d.Ifindex) != "near" {
		t.Errorf("device %+v, %v", d, err)
	}
	for _, name := range []string{"lo", "nowhere"} {
		if d, err := (Links{}).Device(name); err == nil {
			t.Errorf("device %s: %+v", name, d)
		}
	}
	other, err := net.InterfaceByName("far")
	if err != nil {
		return err
	}
	const every = 0x0300 // ETH_P_ALL in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, every)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: every, Ifindex: other.Index}),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1)); err != nil {
		return err
	}
	var w Wire
	defer w.Close()
	q := Question{Ifindex: d.Ifindex, ID: 100, MAC: d.MAC, Target: one, Source: netip.MustParseAddr("198.18.100.200")}
	if err := errors.Join(w.Hear(d.Ifindex), w.Hear(d.Ifindex), w.Ask(q)); err != nil {
		return err
	}
	want := slices.Concat(q.frame()[:12], q.frame()[16:]) // without the tag
	for buf, oob := make([]byte, 200), make([]byte, 200); ; {
		n, m, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_DONTWAIT)
		if err != nil {
			t.Errorf("the question is not heard: %v", err)
			return nil
		}
		if slices.Equal(buf[:n], want) {
			if tag := oob[unix.CmsgLen(0)+16:]; m == 0 || tag[0] != 100 || tag[1] != 0 {
				t.Errorf("beside it: %x", oob[:m])
			}
			return nil
		}
	}
}
