package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// wires are a VXLAN device and the underlay's wire, on whose other end there is a peer.
type wires struct {
	w         *world
	underlay  netlink.Link // the world's side
	peer      uint32
	container netlink.Link // the client's veth
	inside    uint32
	fd        int
	within    int // a socket in the container
}

// wires replaces what stands for the tunnel by the real thing.
func (w *world) wires() *wires {
	w.t.Helper()
	w.goAbroad()
	k := &wires{w: w}
	w.check(os.WriteFile("/proc/sys/net/ipv6/conf/all/accept_dad", []byte("0"), 0o644))
	w.check(os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644))
	w.check(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "under"}, PeerName: "peer"}))
	w.check(netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "over"}, FlowBased: true, Port: 4789, UDPCSum: true, UDP6ZeroCSumTx: true, UDP6ZeroCSumRx: true}))
	links := map[string]netlink.Link{}
	for _, name := range []string{"lo", "under", "peer", "over"} {
		link, err := netlink.LinkByName(name)
		w.check(err)
		w.check(netlink.LinkSetUp(link))
		links[name] = link
	}
	k.underlay, k.peer = links["under"], uint32(links["peer"].Attrs().Index)
	for family := range families {
		for _, own := range []uint16{50, 100} { // routing would take the first one as source
			addr, err := netlink.ParseAddr(netip.PrefixFrom(vtep(family, own), underlays[family].Bits()).String())
			w.check(err)
			addr.Flags = unix.IFA_F_NODAD
			w.check(netlink.AddrAdd(k.underlay, addr))
		}
		w.check(netlink.NeighAdd(&netlink.Neigh{
			LinkIndex: k.underlay.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: vtep(family, 1).AsSlice(), HardwareAddr: links["peer"].Attrs().HardwareAddr,
		}))
	}
	w.abroad.settings.Ifindex = uint32(links["over"].Attrs().Index)
	w.settings(datapath.Settings{AntiSpoof: true})
	var err error
	k.container, err = netlink.LinkByIndex(int(w.client.ifindex))
	w.check(err)
	k.inside = uint32(k.container.Attrs().ParentIndex)
	w.check(netlink.LinkSetUp(k.container))
	k.fd = w.sniffer()
	k.moveInside()
	for program, at := range map[string]netlink.Link{datapath.FromContainer: k.container, datapath.FromOverlay: links["over"]} {
		l := w.attach(at, w.d.Program(program), ebpf.AttachTCXIngress)
		w.t.Cleanup(func() { l.Close() })
	}
	return k
}

// moveInside gives the client's end of its veth a namespace of its own, without which nothing is redirected to it.
func (k *wires) moveInside() {
	k.w.t.Helper()
	here, err := netns.Get()
	k.w.check(err)
	defer here.Close()
	there, err := netns.New()
	k.w.check(err)
	defer there.Close()
	k.w.check(netns.Set(here))
	inner, err := netlink.LinkByIndex(int(k.inside))
	k.w.check(err)
	k.w.check(netlink.LinkSetNsFd(inner, int(there)))
	k.w.check(netns.Set(there))
	inner, err = netlink.LinkByName(inner.Attrs().Name)
	k.w.check(err)
	k.inside = uint32(inner.Attrs().Index)
	k.w.check(netlink.LinkSetUp(inner))
	k.within = k.w.sniffer()
	k.w.check(netns.Set(here))
}

// sniffer opens a socket that sees all frames of the namespace.
func (w *world) sniffer() int {
	w.t.Helper()
	const every = 0x0300 // ETH_P_ALL in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, every)
	w.check(err)
	w.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// arrives waits for a frame that comes in by a device and is wanted.
func (k *wires) arrives(fd int, ifindex uint32, wanted func(frame []byte) bool) []byte {
	k.w.t.Helper()
	buffer := make([]byte, 1<<16)
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		n, from, err := unix.Recvfrom(fd, buffer, 0)
		if err == unix.EAGAIN {
			time.Sleep(time.Millisecond)
			continue
		}
		k.w.check(err)
		at := from.(*unix.SockaddrLinklayer)
		if at.Ifindex == int(ifindex) && at.Pkttype != unix.PACKET_OUTGOING && wanted(buffer[:n]) {
			return bytes.Clone(buffer[:n])
		}
	}
	all, err := k.w.d.Drops()
	k.w.t.Fatalf("nothing came in by device %d; drops %v, %v", ifindex, all, err)
	return nil
}

// encapsulated says whether a frame of the underlay is a VXLAN packet, and where its cargo begins.
func encapsulated(family int) (int, func(frame []byte) bool) {
	udp := 14 + 20 + 20*family
	return udp + 16, func(frame []byte) bool {
		return len(frame) > udp+16 && binary.BigEndian.Uint16(frame[12:]) == [2]uint16{0x0800, 0x86dd}[family] &&
			frame[[2]int{23, 20}[family]] == 17 && binary.BigEndian.Uint16(frame[udp+2:]) == 4789
	}
}

// encapsulate builds what a peer sends.
func (k *wires) encapsulate(family int, from netip.Addr, network uint32, cargo []byte) []byte {
	k.w.t.Helper()
	frame, err := packet.Spec{
		Src: netip.AddrPortFrom(from, 50000), Dst: netip.AddrPortFrom(vtep(family, 100), 4789), Protocol: lb.UDP,
		SrcMAC: net.HardwareAddr{2, 0, 0, 0, 6, 6}, DstMAC: k.underlay.Attrs().HardwareAddr,
		Payload: append([]byte{8, 0, 0, 0, byte(network >> 16), byte(network >> 8), byte(network), 0}, cargo...),
	}.Build()
	k.w.check(err)
	return frame
}

// All by a real VXLAN device: what a container sends is on the underlay's wire, and an answer from there comes
// into the container.
func TestARealTunnel(t *testing.T) {
	for underlay, name := range families {
		t.Run("over "+name, func(t *testing.T) {
			w := newWorld(t, 1)
			k := w.wires()
			w.away(1, elsewhere(1))
			w.node(1, underlay, datapath.SNATNever)
			for family := range families {
				k.roundTrip(underlay, family)
			}
		})
	}
}

func (k *wires) roundTrip(underlay, family int) {
	k.w.t.Helper()
	s := ask(netip.AddrPortFrom(k.w.client.addr[family], 40000), netip.AddrPortFrom(vips[family], servicePort), lb.UDP)
	s.Payload, s.SrcMAC = []byte("a request of some length"), k.w.client.mac
	frame, err := s.Build()
	k.w.check(err)
	k.w.check(unix.Sendto(k.within, frame, 0, &unix.SockaddrLinklayer{Ifindex: int(k.inside), Halen: 6}))
	cargo, is := encapsulated(underlay)
	outer := k.arrives(k.fd, k.peer, is)
	got, err := packet.Parse(outer)
	var unfinished packet.ChecksumError // the wire is none, so nobody completes it
	if err != nil && !errors.As(err, &unfinished) || got.Src.Addr() != vtep(underlay, 100) || got.Dst.Addr() != vtep(underlay, 1) || got.TTL != 64 {
		k.w.t.Fatalf("outside: %v, %v", got, err)
	}
	if sum := binary.BigEndian.Uint16(outer[cargo-10:]); (sum == 0) != (underlay == 0) {
		k.w.t.Errorf("outer checksum %#x", sum) // IPv6 needs one, IPv4 does better without
	}
	if network := binary.BigEndian.Uint32(outer[cargo-4:]) >> 8; network != vni || outer[cargo-8] != 8 {
		k.w.t.Errorf("network %d", network)
	}
	in := k.w.decode(outer[cargo:])
	if in.Src != s.Src || in.Dst != netip.AddrPortFrom(elsewhere(1).addr[family], targetPort) || in.DstMAC.String() != nodeMAC(1).String() || in.TTL != 63 {
		k.w.t.Errorf("inside: %v", in)
	}
	answer := answerTo(in)
	answer.Payload = []byte("an answer")
	back, err := answer.Build()
	k.w.check(err)
	before := k.w.drops("tunnel-source")
	k.w.transmit(int(k.peer), k.encapsulate(underlay, vtep(underlay, 9), vni, back))
	k.w.transmit(int(k.peer), k.encapsulate(underlay, vtep(underlay, 1), otherVNI, back))
	k.w.transmit(int(k.peer), k.encapsulate(underlay, vtep(underlay, 1), vni, back))
	seen := k.w.decode(k.arrives(k.within, k.inside, func(frame []byte) bool {
		got, err := packet.Parse(frame)
		return err == nil && got.Dst == s.Src
	}))
	if seen.Src != s.Dst || seen.DstMAC.String() != k.w.client.mac.String() || string(seen.Payload) != "an answer" {
		k.w.t.Errorf("the answer: %v", seen)
	}
	if n := k.w.drops("tunnel-source") - before; n != 2 {
		k.w.t.Errorf("%d strangers were dropped, want 2", n)
	}
}
