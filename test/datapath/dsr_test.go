package datapath

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// markMAC is the destination MAC of frames inside the tunnel that say something (enum mark).
func markMAC(kind byte) net.HardwareAddr { return net.HardwareAddr{2, 't', 'c', 'l', 'b', kind} }

var (
	markDSR   = markMAC(1)
	markTells = markMAC(2)
	markCopy  = markMAC(3)
)

const trailerLen = 24

// trailer is what stands behind an IP packet: what its client asked, in words that add up to zero.
func trailer(asked netip.AddrPort) []byte {
	a := asked.Addr().As16()
	b := append([]byte("tclb"), a[:]...)
	b = binary.BigEndian.AppendUint16(b, asked.Port())
	return binary.BigEndian.AppendUint16(b, ^foldWords(b))
}

// foldWords is a one's complement sum.
func foldWords(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// behind returns what a frame has behind its IP packet.
func behind(frame []byte) []byte {
	end := 14 + int(binary.BigEndian.Uint16(frame[16:]))
	if frame[14]>>4 == 6 {
		end = 14 + 40 + int(binary.BigEndian.Uint16(frame[18:]))
	}
	return frame[end:]
}

// told is a frame with the trailer that who chose puts behind it.
func told(frame []byte, asked netip.AddrPort) []byte {
	out := bytes.Clone(frame)
	copy(out, markTells)
	return append(out, trailer(asked)...)
}

// letDSR lets the nodes of backends answer clients outside, or not.
func (w *world) letDSR(on bool) {
	w.t.Helper()
	all, err := w.d.Frontends()
	w.check(err)
	for k, f := range all {
		if f.Kind == datapath.KindService {
			f.DSR = on
			w.check(w.d.PutFrontends(map[lb.Frontend]datapath.Frontend{k: f}))
		}
	}
	known, err := w.d.Nodes()
	w.check(err)
	for id, n := range known {
		n.DSR = on
		w.check(w.d.PutNode(id, n))
	}
}

// eachDSR is eachAbroad with a service whose backend is on node 1, which may answer by itself.
func eachDSR(t *testing.T, f func(t *testing.T, w *world, family int, proto lb.Protocol)) {
	t.Helper()
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.away(1, elsewhere(1))
		w.letDSR(true)
		f(t, w, family, proto)
	})
}

// fromClient runs a packet of a client outside, padded by what does not belong to it.
func (w *world) fromClient(s packet.Spec, padding int) []byte {
	w.t.Helper()
	s.SrcMAC, s.DstMAC = w.abroad.uplink.mac, w.abroad.mac
	frame, err := s.Build()
	w.check(err)
	verdict, out := w.run(datapath.FromUplink, w.abroad.uplink.ifindex, append(frame, bytes.Repeat([]byte{0xa5}, padding)...))
	family := 0
	if s.Dst.Addr().Is6() {
		family = 1
	}
	if got := w.decode(out); verdict != redirect || got.Dst != netip.AddrPortFrom(elsewhere(1).addr[family], targetPort) {
		w.t.Fatalf("verdict %d for %v", verdict, got)
	}
	return out
}

// says asserts what a frame to another node says of its flow: nothing, that it may be answered there, or with
// a trailer what was asked.
func (w *world) says(what string, frame []byte, mark net.HardwareAddr, asked netip.AddrPort) {
	w.t.Helper()
	if got := net.HardwareAddr(frame[:6]); got.String() != mark.String() {
		w.t.Errorf("%s: to %v, want %v", what, got, mark)
	}
	rest, want := behind(frame), trailer(asked)
	if !bytes.Equal(mark, markTells) {
		if bytes.Contains(rest, want[:4]) {
			w.t.Errorf("%s: with %x behind", what, rest)
		}
		return
	}
	if !bytes.Equal(rest, want) {
		w.t.Errorf("%s: with %x behind, want %x", what, rest, want)
	}
}

func TestANodeIsToldWhatAClientAsked(t *testing.T) {
	eachDSR(t, func(_ *testing.T, w *world, family int, proto lb.Protocol) {
		port := uint16(40000)
		for _, size := range []int{0, 1, 2, 7, 100, 101} {
			port++
			s := visit(family, proto, port)
			if s.Payload = bytes.Repeat([]byte{0x5a}, size); proto == lb.TCP {
				s.Payload = nil
			}
			w.says("the first packet", w.fromClient(s, 0), markTells, s.Dst)
			w.says("again, in a padded frame", w.fromClient(s, size), markTells, s.Dst)
			next := more(s)
			next.Payload = bytes.Repeat([]byte{0x5a}, size)
			if proto == lb.UDP {
				w.says("a datagram", w.fromClient(next, 0), markTells, s.Dst)
			} else {
				w.says("a segment", w.fromClient(next, 0), markDSR, s.Dst)
			}
		}
		for _, p := range w.pairs() {
			if !p.DSR || p.Return {
				w.t.Errorf("pair %+v", p)
			}
		}
	})
}

// A flow that another node began here goes on, and the backend's node may learn it anew.
func TestANodeIsToldOfAFlowThatMovesHere(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.away(1, elsewhere(1))
		w.letDSR(true)
		s := more(visit(family, lb.TCP, 40000))
		for range 8 {
			w.says("one of the first packets", w.fromClient(s, 0), markTells, s.Dst)
			s.Seq += uint32(len(s.Payload))
		}
		w.says("one of the others", w.fromClient(s, 0), markDSR, s.Dst)
	}
}

func TestWhoIsToldNothing(t *testing.T) {
	eachDSR(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		s := visit(family, proto, 40000)
		inside := ask(netip.AddrPortFrom(w.client.addr[family], 40000), s.Dst, proto)
		x := w.carry(leg{datapath.FromContainer, w.client}, inside)
		w.says("of a container's flow", x.seen, nodeMAC(1), s.Dst)
		plain := datapath.Node{VTEP: vtep(0, 1), MAC: [6]byte(nodeMAC(1)), MTU: nodeMTU}
		w.check(w.d.PutNode(1, plain))
		w.says("a node without programs", w.fromClient(s, 0), nodeMAC(1), s.Dst)
		plain.DSR, plain.SNAT = true, datapath.SNATAlways
		w.check(w.d.PutNode(1, plain))
		s.Src = netip.AddrPortFrom(s.Src.Addr(), 40001)
		w.says("where the client's address is not its own", w.fromClient(s, 0), nodeMAC(1), s.Dst)
		plain.SNAT = datapath.SNATNever
		w.check(w.d.PutNode(1, plain))
		w.service(2, vips2, []container{elsewhere(1)})
		w.change(elsewhere(1), func(b *datapath.Backend) { b.Zone = 1 })
		w.letDSR(true)
		for i, want := range []net.HardwareAddr{markTells, nodeMAC(1)} { // both VIPs lead to one address
			s := visit(family, proto, 40002)
			s.Dst = netip.AddrPortFrom([2]netip.Addr{vips[family], vips2[family]}[i], servicePort)
			w.says("another flow of the same client", w.fromClient(s, 0), want, s.Dst)
		}
		w.letDSR(false)
		s.Src = netip.AddrPortFrom(s.Src.Addr(), 40003)
		w.says("of a service without dsr", w.fromClient(s, 0), nodeMAC(1), s.Dst)
		for _, p := range w.pairs() {
			if want := p.Client.Port() == 40002 && p.VIP.Addr() == vips[family]; p.DSR != want {
				t.Errorf("pair %+v", p)
			}
		}
	})
}

// A trailer makes no packet too large, and none is put behind what is cut into segments or is a fragment.
func TestTrailersFit(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.away(1, elsewhere(1))
		w.letDSR(true)
		from := w.fromOutside()
		for i, c := range []struct {
			size int
			mark net.HardwareAddr
		}{{nodeMTU - trailerLen, markTells}, {nodeMTU - trailerLen + 1, markDSR}, {nodeMTU, markDSR}} {
			s := visit(family, lb.UDP, uint16(40000+i))
			verdict, out := w.run(from.program, from.on.ifindex, w.sized(from, s, c.size, true))
			if w.says("of a size that counts", out, c.mark, s.Dst); verdict != redirect {
				t.Errorf("%d bytes: verdict %d", c.size, verdict)
			}
		}
		s := visit(family, lb.UDP, 40010)
		verdict, out := w.runAs(from.program, skbContext{Ifindex: from.on.ifindex, GSOSegs: 3, GSOSize: 100}, w.sized(from, s, 300, true))
		if w.says("a bundle", out, markDSR, s.Dst); verdict != redirect {
			t.Errorf("a bundle: verdict %d", verdict)
		}
		k := w.tap()
		s = visit(family, lb.UDP, 40011)
		s.SrcMAC, s.DstMAC, s.Payload = w.abroad.uplink.mac, w.abroad.mac, bytes.Repeat([]byte{1}, 1000)
		frame, err := s.Build()
		w.check(err)
		for _, piece := range k.pieces(frame, 400) {
			verdict, out := w.run(from.program, from.on.ifindex, piece)
			if w.says("a fragment", out, markDSR, s.Dst); verdict != redirect {
				t.Errorf("a fragment: verdict %d", verdict)
			}
		}
	}
}

// Nothing that a client puts behind its packets reaches anybody.
func TestAClientForgesNoTrailer(t *testing.T) {
	eachDSR(t, func(_ *testing.T, w *world, family int, proto lb.Protocol) {
		s := visit(family, proto, 40000)
		s.SrcMAC, s.DstMAC = w.abroad.uplink.mac, w.abroad.mac
		frame, err := s.Build()
		w.check(err)
		forged := append(frame, trailer(netip.AddrPortFrom(vips2[family], 99))...)
		_, out := w.run(datapath.FromUplink, w.abroad.uplink.ifindex, forged)
		w.says("of a forger's flow", out, markTells, s.Dst)
	})
}

// Whose checksum a device has to complete, it adds up to the frame's end, a trailer with it.
func TestATrailerLeavesPartialChecksumsRight(t *testing.T) {
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			far := w.realUplink()
			w.away(1, elsewhere(1))
			w.letDSR(true)
			peers := map[uint32]uint32{}
			for _, c := range []container{w.abroad.uplink, w.abroad.tunnel} {
				link, err := netlink.LinkByIndex(int(c.ifindex))
				w.check(err)
				peer, err := netlink.LinkByIndex(link.Attrs().ParentIndex)
				w.check(err)
				w.check(netlink.LinkSetUp(link))
				w.check(netlink.LinkSetUp(peer))
				peers[c.ifindex] = uint32(peer.Attrs().Index)
				if c.ifindex == w.abroad.uplink.ifindex {
					l := w.attach(link, w.d.Program(datapath.FromUplink), ebpf.AttachTCXIngress)
					defer l.Close()
				}
			}
			fd := w.vnetSocket()
			for i, payload := range []string{"", "odd", "even", "longer than the smallest frame, by far as one can see"} {
				s := visit(family, lb.TCP, uint16(40000+i))
				s.SrcMAC, s.DstMAC, s.Payload = w.abroad.uplink.mac, w.abroad.mac, []byte(payload)
				frame, err := s.Build()
				w.check(err)
				frame = frame[:len(frame)-len(behind(frame))]
				target := netip.AddrPortFrom(elsewhere(1).addr[family], targetPort)
				got := w.completed(fd, peers[w.abroad.tunnel.ifindex], target, func() error {
					return unix.Sendto(fd, partial(frame), 0, &unix.SockaddrLinklayer{Ifindex: int(far), Halen: 6})
				})
				if got.Src != s.Src || got.DstMAC.String() != markTells.String() || string(got.Payload) != payload {
					t.Errorf("got %v", got)
				}
			}
		})
	}
}
