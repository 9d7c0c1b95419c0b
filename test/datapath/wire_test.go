package datapath

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// A short frame is filled up behind its IP packet. What lies there is no part of a quote.
func TestErrorsInPaddedFrames(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		k := w.talkTo(family, proto, 40000, plain)
		padding := bytes.Repeat([]byte{0xa5}, 40)
		for _, m := range failures[family] {
			for _, way := range [][2]passage{{k.request, k.response}, {k.response, k.request}} {
				s := failure(way[0], w.decode(way[1].sent).Src.Addr(), 8, m)
				exact := w.carry(way[1].leg, s)
				verdict, out := w.run(way[1].program, way[1].on.ifindex, append(bytes.Clone(exact.sent), padding...))
				if verdict != exact.verdict || !bytes.Equal(out, append(bytes.Clone(exact.seen), padding...)) {
					t.Errorf("verdict %d for\n%x, without padding %d for\n%x", verdict, out, exact.verdict, exact.seen)
				}
			}
		}
	})
}

// A tag that the device took off is not in the frame any more but beside it, and the frame looks like
// ours. It belongs to another network all the same. A test run cannot set such a tag, a device can.
func TestTaggedFramesOnTheWireAreUntouched(t *testing.T) {
	for family, name := range families {
		w := newWorld(t, 1)
		outer, err := netlink.LinkByIndex(int(w.client.ifindex))
		w.check(err)
		inner, err := netlink.LinkByIndex(outer.Attrs().ParentIndex)
		w.check(err)
		w.check(netlink.LinkSetUp(outer))
		w.check(netlink.LinkSetUp(inner))
		defer w.attach(outer, w.d.Program(datapath.FromContainer), ebpf.AttachTCXIngress).Close()
		send := func(port uint16) {
			frame, err := packet.Spec{
				Src: netip.AddrPortFrom(w.client.addr[family], port), Dst: netip.AddrPortFrom(vips[family], servicePort),
				Protocol: lb.UDP, SrcMAC: w.client.mac, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2},
			}.Build()
			w.check(err)
			w.transmit(inner.Attrs().Index, frame)
		}
		tags := w.attach(inner, w.tagger(5), ebpf.AttachTCXEgress)
		send(40000)
		w.check(tags.Close())
		send(40001) // frames of one sender do not overtake each other
		for deadline := time.Now().Add(3 * time.Second); len(w.pairs()) == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not even the frame without a tag was balanced", name)
			}
		}
		if p := w.pairs(); len(p) != 1 || p[0].Client.Port() != 40001 {
			t.Errorf("%s: %+v, want the flow of the frame without a tag alone", name, p)
		}
	}
}

// tagger returns a program that gives each frame a tag as a device does, beside it.
func (w *world) tagger(tag int32) *ebpf.Program {
	w.t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "tagger", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, 0x0081), // 802.1Q in network order
			asm.Mov.Imm(asm.R3, tag),
			asm.FnSkbVlanPush.Call(),
			asm.Mov.Imm(asm.R0, -1),
			asm.Return(),
		},
	})
	w.check(err)
	w.t.Cleanup(func() { p.Close() })
	return p
}

func (w *world) attach(to netlink.Link, p *ebpf.Program, at ebpf.AttachType) link.Link {
	w.t.Helper()
	l, err := link.AttachTCX(link.TCXOptions{Interface: to.Attrs().Index, Program: p, Attach: at})
	w.check(err)
	return l
}

// transmit sends a frame out of a device.
func (w *world) transmit(ifindex int, frame []byte) {
	w.t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	w.check(err)
	defer unix.Close(fd)
	w.check(unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: ifindex, Halen: 6}))
}
