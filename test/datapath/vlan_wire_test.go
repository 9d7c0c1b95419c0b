package datapath

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// untaggedFrame is what hears returns for a frame without a tag.
const untaggedFrame = -1

// hears waits for a frame that comes in by a device and is wanted, and returns the tag that is beside it. A test
// run does not show tags: devices do.
func (k *wires) hears(fd int, ifindex uint32, wanted func(frame []byte) bool) (frame []byte, tag int) {
	k.w.t.Helper()
	buffer, oob := make([]byte, 1<<16), make([]byte, 256)
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		n, m, _, from, err := unix.Recvmsg(fd, buffer, oob, 0)
		if err == unix.EAGAIN {
			time.Sleep(time.Millisecond)
			continue
		}
		k.w.check(err)
		at := from.(*unix.SockaddrLinklayer)
		if at.Ifindex != int(ifindex) || at.Pkttype == unix.PACKET_OUTGOING || !wanted(buffer[:n]) {
			continue
		}
		return bytes.Clone(buffer[:n]), k.tagOf(oob[:m])
	}
	all, err := k.w.d.Drops()
	k.w.t.Fatalf("nothing came in by device %d; drops %v, %v", ifindex, all, err)
	return nil, 0
}

func (k *wires) tagOf(oob []byte) int {
	k.w.t.Helper()
	messages, err := unix.ParseSocketControlMessage(oob)
	k.w.check(err)
	for _, m := range messages {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA {
			const status, tag = 0, 16 // of struct tpacket_auxdata
			if binary.NativeEndian.Uint32(m.Data[status:])&unix.TP_STATUS_VLAN_VALID == 0 {
				return untaggedFrame
			}
			return int(binary.NativeEndian.Uint16(m.Data[tag:]))
		}
	}
	k.w.t.Fatal("the kernel does not say which tag a frame has")
	return 0
}

// trunkWires lets the world's client and trunk be real devices, with from_container and from_trunk on them.
func (w *world) trunkWires() (k *wires, far uint32) {
	w.t.Helper()
	w.tagged(100, elsewhere(1), true)
	k = &wires{w: w}
	var err error
	k.container, err = netlink.LinkByIndex(int(w.client.ifindex))
	w.check(err)
	trunk, err := netlink.LinkByIndex(int(w.abroad.trunk.ifindex))
	w.check(err)
	peer, err := netlink.LinkByIndex(trunk.Attrs().ParentIndex)
	w.check(err)
	k.inside, far = uint32(k.container.Attrs().ParentIndex), uint32(peer.Attrs().Index)
	for _, l := range []netlink.Link{k.container, trunk, peer} {
		w.check(netlink.LinkSetUp(l))
	}
	k.fd = w.sniffer()
	k.moveInside()
	for _, fd := range []int{k.fd, k.within} {
		w.check(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1))
	}
	for program, at := range map[string]netlink.Link{datapath.FromContainer: k.container, datapath.FromTrunk: trunk} {
		l := w.attach(at, w.d.Program(program), ebpf.AttachTCXIngress)
		w.t.Cleanup(func() { l.Close() })
	}
	return k, far
}

// cut returns a frame's fragments in an order, or with nil the frame as it is.
func (w *world) cut(frame []byte, order []int) [][]byte {
	w.t.Helper()
	if order == nil {
		return [][]byte{frame}
	}
	pieces, err := packet.Fragments(frame, 600, datagrams.Add(1))
	w.check(err)
	out := make([][]byte, len(order))
	for i, piece := range order {
		out[i] = pieces[piece]
	}
	return out
}

// goesTo says whether a frame goes from anywhere to an address.
func goesTo(a netip.Addr) func(frame []byte) bool {
	return func(frame []byte) bool {
		got, _ := packet.Parse(frame)
		return got.Dst.Addr() == a && got.Src.Addr().Is4() == a.Is4() && (got.Protocol == lb.UDP || got.Fragment != nil)
	}
}

// What goes into a VLAN has its tag and no other, whole or in fragments, whatever their order; what comes from there
// reaches the container without one.
func TestTagsOnTheWire(t *testing.T) {
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			k, far := w.trunkWires()
			target := netip.AddrPortFrom(elsewhere(1).addr[family], targetPort)
			s := ask(netip.AddrPortFrom(w.client.addr[family], 40000), netip.AddrPortFrom(vips[family], servicePort), lb.UDP)
			s.Payload, s.SrcMAC, s.DstMAC = bytes.Repeat([]byte("request."), 150), w.client.mac, k.container.Attrs().HardwareAddr
			whole, err := s.Build()
			w.check(err)
			var request packet.Spec
			for _, order := range [][]int{nil, {0, 1, 2}, {2, 1, 0}} {
				frames := w.cut(whole, order)
				for _, frame := range frames {
					w.check(unix.Sendto(k.within, frame, 0, &unix.SockaddrLinklayer{Ifindex: int(k.inside), Halen: 6}))
				}
				for range frames {
					frame, tag := k.hears(k.fd, far, goesTo(target.Addr()))
					if tag != 100 {
						t.Errorf("a frame has the tag %d", tag)
					}
					if got, _ := packet.Parse(frame); len(frames) == 1 {
						request = got
					}
				}
			}
			if request.Dst != target || request.Src.Addr() != sources[family] {
				t.Errorf("the request is %v", request)
			}
			tagger := w.tagger(100)
			peer, err := netlink.LinkByIndex(int(far))
			w.check(err)
			defer w.attach(peer, tagger, ebpf.AttachTCXEgress).Close()
			answer := reply(request)
			answer.SrcMAC, answer.DstMAC, answer.Payload = w.abroad.trunk.mac, w.abroad.trunkMAC, bytes.Repeat([]byte("answer.."), 150)
			back, err := answer.Build()
			w.check(err)
			for _, order := range [][]int{nil, {2, 0, 1}} {
				frames := w.cut(back, order)
				for _, frame := range frames {
					w.transmit(int(far), frame)
				}
				for range frames {
					frame, tag := k.hears(k.within, k.inside, goesTo(s.Src.Addr()))
					if got, _ := packet.Parse(frame); tag != untaggedFrame || got.Src.Addr() != s.Dst.Addr() {
						t.Errorf("with tag %d the container gets %v", tag, got)
					}
				}
			}
			w.noDrops()
		})
	}
}
