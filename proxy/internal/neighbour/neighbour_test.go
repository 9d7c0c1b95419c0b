package neighbour

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

var mac = [6]byte{2, 0, 0, 0, 0, 7}

// asBuilt builds layers anew, lengths and checksums included.
func asBuilt(t *testing.T, all ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestFramesAreAsALibraryBuildsThem(t *testing.T) {
	one, two := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
	one6, two6 := netip.MustParseAddr("2001:db8::ab:cdef"), netip.MustParseAddr("ff02::1")
	for _, tag := range []uint16{0, 100, 4094} {
		head := []gopacket.SerializableLayer{&layers.Ethernet{SrcMAC: mac[:], DstMAC: Everybody[:]}}
		kind := &head[0].(*layers.Ethernet).EthernetType
		if tag != 0 {
			*kind = layers.EthernetTypeDot1Q
			head = append(head, &layers.Dot1Q{VLANIdentifier: tag})
			kind = &head[1].(*layers.Dot1Q).Type
		}
		*kind = layers.EthernetTypeARP
		want := asBuilt(t, append(head, &layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: layers.ARPRequest,
			SourceHwAddress: mac[:], SourceProtAddress: one.AsSlice(), DstHwAddress: make([]byte, 6), DstProtAddress: two.AsSlice(),
		})...)
		got := ARP(Ethernet(Everybody, mac, tag, unix.ETH_P_ARP), mac, one, two)
		if !bytes.HasPrefix(want, got) { // the library pads
			t.Errorf("tag %d: ARP is\n%x, want\n%x", tag, got, want)
		}
		*kind = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, NextHeader: layers.IPProtocolICMPv6, HopLimit: 255, SrcIP: one6.AsSlice(), DstIP: two6.AsSlice()}
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborSolicitation, 0)}
		if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		want = asBuilt(t, append(head, ip, icmp, &layers.ICMPv6NeighborSolicitation{
			TargetAddress: one6.AsSlice(), Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: mac[:]}},
		})...)
		message := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, one6.AsSlice()...)
		got = ICMPv6(Ethernet(Everybody, mac, tag, unix.ETH_P_IPV6), one6.As16(), two6.As16(), append(append(message, 1, 1), mac[:]...))
		if !bytes.Equal(got, want) {
			t.Errorf("tag %d: solicitation is\n%x, want\n%x", tag, got, want)
		}
	}
}
