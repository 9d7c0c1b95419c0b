package datapath

import (
	"bytes"
	"net/netip"
	"os"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// exit is where a packet is when a program has sent it on by itself.
type exit struct {
	ifindex uint32 // the host's side of a veth
	into    bool   // it left by this device and is in the container, else the host's stack got it there
}

// arrival is a frame that a program sent on by itself.
type arrival struct {
	exit
	frame []byte
}

// tap sees what programs send by the world's devices besides the packet that they return.
type tap struct {
	w       *world
	fd      int
	devices map[uint32]uint32 // a veth's inner side -> its host's side
	id      uint32            // of the last datagram
}

// datagrams counts those of all tests: an identification is never used again by chance.
var datagrams atomic.Uint32

// tap brings the devices of the world up. They have no addresses, so nobody else sends.
func (w *world) tap() *tap {
	w.t.Helper()
	w.check(os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0o644))
	k := &tap{w: w, devices: map[uint32]uint32{}, id: datagrams.Add(1)}
	links, err := netlink.LinkList()
	w.check(err)
	for _, link := range links {
		if link.Type() == "veth" {
			w.check(netlink.LinkSetUp(link))
			k.devices[uint32(link.Attrs().ParentIndex)] = uint32(link.Attrs().Index)
		}
	}
	for _, c := range append([]container{w.client, w.host, w.abroad.uplink, w.abroad.tunnel, w.abroad.trunk}, w.containers...) {
		if c.ifindex == 0 {
			continue // nothing of this world's is abroad
		}
		inside := uint32(0)
		for in, out := range k.devices {
			if out == c.ifindex {
				inside = in
			}
		}
		delete(k.devices, c.ifindex)
		if inside == 0 {
			w.t.Fatalf("device %d has no other side", c.ifindex)
		}
	}
	const every = 0x0300 // ETH_P_ALL in network order
	k.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, every)
	w.check(err)
	w.t.Cleanup(func() { unix.Close(k.fd) })
	w.check(unix.SetsockoptInt(k.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	return k
}

// read returns the next arrival, or false if there is none.
func (k *tap) read() (arrival, bool) {
	k.w.t.Helper()
	frame := make([]byte, 1<<16)
	for {
		n, from, err := unix.Recvfrom(k.fd, frame, 0)
		if err == unix.EAGAIN {
			return arrival{}, false
		}
		k.w.check(err)
		at := from.(*unix.SockaddrLinklayer)
		if at.Pkttype == unix.PACKET_OUTGOING {
			continue // it is seen again where it comes in
		}
		out := arrival{exit{ifindex: uint32(at.Ifindex)}, frame[:n]}
		if host, is := k.devices[out.ifindex]; is {
			out.exit = exit{host, true}
		}
		return out, true
	}
}

// take waits for n arrivals.
func (k *tap) take(n int) []arrival {
	k.w.t.Helper()
	var out []arrival
	for deadline := time.Now().Add(3 * time.Second); len(out) < n; {
		if a, ok := k.read(); ok {
			out = append(out, a)
		} else if time.Now().After(deadline) {
			k.w.t.Fatalf("%d packets were sent on, want %d", len(out), n)
		}
	}
	return out
}

// silent asserts that nothing was sent on that nobody took.
func (k *tap) silent() {
	k.w.t.Helper()
	time.Sleep(20 * time.Millisecond)
	if a, ok := k.read(); ok {
		s, err := packet.Parse(a.frame)
		k.w.t.Errorf("nobody expected %v at %+v (%v)", s, a.exit, err)
	}
}

// push runs a frame by a leg. Unlike what run returns, the frame may have become a longer one.
func (k *tap) push(l leg, frame []byte) (uint32, []byte) {
	k.w.t.Helper()
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, 1<<14), Context: skbContext{Ifindex: l.on.ifindex}}
	verdict, err := k.w.program(l.program).Run(&opts)
	k.w.check(err)
	return verdict, opts.DataOut
}

// pieces cuts a frame into fragments with an identification that was never used.
func (k *tap) pieces(frame []byte, size int) [][]byte {
	k.w.t.Helper()
	k.id = datagrams.Add(1)
	out, err := packet.Fragments(frame, size, k.id)
	k.w.check(err)
	return out
}

// exit is where a packet goes that leaves like this one.
func (p passage) exit(w *world) exit {
	w.t.Helper()
	to := w.decode(p.seen)
	if p.verdict == next {
		return exit{p.on.ifindex, p.program == datapath.ToContainer || p.program == datapath.ToUplink}
	}
	switch to.DstMAC.String() {
	case w.host.mac.String():
		return exit{w.host.ifindex, false}
	case w.abroad.tunnel.mac.String():
		return exit{w.abroad.tunnel.ifindex, true}
	case w.abroad.uplink.mac.String():
		return exit{w.abroad.uplink.ifindex, true}
	case w.abroad.trunk.mac.String():
		return exit{w.abroad.trunk.ifindex, true}
	}
	return exit{w.containerOf(to).ifindex, true}
}

// released takes what a first fragment has sent on: all where the packet itself went. They meet a program
// there again, which must see that they are done.
func (k *tap) released(like passage, n int) [][]byte {
	k.w.t.Helper()
	var out [][]byte
	for _, a := range k.take(n) {
		if want := like.exit(k.w); a.exit != want {
			k.w.t.Fatalf("a fragment of %v went to %+v, want %+v", k.w.decode(like.seen), a.exit, want)
		}
		if got := k.w.decode(a.frame); a.exit == (exit{k.w.abroad.uplink.ifindex, true}) && like.verdict == redirect &&
			got.SrcMAC.String() != k.w.abroad.mac.String() {
			k.w.t.Errorf("a frame on the uplink has %v as its source", got.SrcMAC)
		}
		again, is := k.w.meets(a.exit)
		if is {
			if verdict, seen := k.push(again, a.frame); verdict != next || !bytes.Equal(seen, a.frame) {
				got, _ := packet.Parse(seen)
				k.w.t.Fatalf("%s changed what was sent on: verdict %d for %v, now %v", again.program, verdict, k.w.decode(a.frame), got)
			}
		}
		out = append(out, a.frame)
	}
	return out
}

// deliver sends the fragments of a packet in an order and returns all that come out. They must leave
// like the packet.
func (k *tap) deliver(like passage, pieces [][]byte, order []int) [][]byte {
	k.w.t.Helper()
	var out [][]byte
	waiting, noted := 0, false
	for _, i := range order {
		verdict, seen := k.push(like.leg, pieces[i])
		if !noted && i != 0 && !like.passesEarly(k.w, verdict) {
			if verdict != drop {
				k.w.t.Fatalf("fragment %d of %v came first: verdict %d", i, order, verdict)
			}
			waiting++
			continue
		}
		if verdict != like.verdict {
			k.w.t.Fatalf("fragment %d of %v: verdict %d, want %d", i, order, verdict, like.verdict)
		}
		out = append(out, seen)
		if i == 0 {
			noted = true
			out = append(out, k.released(like, waiting)...)
		}
	}
	return out
}

// passesEarly says whether a later fragment need not wait: only the port changes, and it has none.
func (p passage) passesEarly(w *world, verdict uint32) bool {
	sent, seen := w.decode(p.sent), w.decode(p.seen)
	return verdict == next && sent.Src.Addr() == seen.Src.Addr() && sent.Dst.Addr() == seen.Dst.Addr()
}

// assertWhole asserts that fragments are those of the packet as it leaves whole.
func (k *tap) assertWhole(like passage, pieces [][]byte, what any) {
	k.w.t.Helper()
	want := k.w.decode(like.seen)
	for _, piece := range pieces {
		got := k.w.decode(piece) // the IPv4 header's checksum, too
		if got.DstMAC.String() != want.DstMAC.String() || got.TTL != want.TTL || got.TOS != want.TOS {
			k.w.t.Errorf("%v: fragment %v of %v", what, got, want)
		}
	}
	whole, err := packet.Reassemble(pieces)
	if err != nil {
		k.w.t.Fatalf("%v: %d fragments of %v: %v", what, len(pieces), want, err)
	}
	got, err := packet.Parse(whole)
	if k.w.abroad.uplink.ifindex != 0 && want.DstMAC.String() == k.w.abroad.uplink.mac.String() {
		got.SrcMAC = want.SrcMAC // the neighbours' table has the right one, or who was released
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		k.w.t.Fatalf("%v: %v\n got %+v\nwant %+v", what, err, got, want)
	}
}

// orders are those in which three fragments come.
var orders = [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {2, 0, 1}, {1, 2, 0}, {2, 1, 0}}

// pieceSize is one that cuts the packets of talk into three, with dressed headers or without.
const pieceSize = 72

func TestFragmentsInOrder(t *testing.T) {
	eachRoad(t, func(w *world, _ int, _ lb.Protocol, _ func(*packet.Spec), f talk) {
		k := w.tap()
		for _, way := range []passage{f.request, f.response} {
			for _, size := range []int{48, pieceSize, 128} {
				pieces := k.pieces(way.sent, size)
				order := make([]int, len(pieces))
				for i := range order {
					order[i] = i
				}
				k.assertWhole(way, k.deliver(way, pieces, order), size)
			}
		}
		k.silent()
	})
}

// In cilium/cilium#25709 and #43781, both open, it is different: a later fragment that
// comes before the first one is dropped.
func TestFragmentsInAnyOrder(t *testing.T) {
	eachRoad(t, func(w *world, _ int, _ lb.Protocol, _ func(*packet.Spec), f talk) {
		k := w.tap()
		for _, way := range []passage{f.request, f.response} {
			for _, order := range orders {
				pieces := k.pieces(way.sent, pieceSize)
				if len(pieces) != len(order) {
					w.t.Fatalf("%d fragments", len(pieces))
				}
				k.assertWhole(way, k.deliver(way, pieces, order), order)
			}
		}
		k.silent()
		k.assertNoneWaits()
	})
}

// ring returns the cursor of what waits.
func (k *tap) ring() bpf.MapsHeldCursor {
	k.w.t.Helper()
	var c bpf.MapsHeldCursor
	k.w.check(k.w.openMap(bpf.MapsMapHeldRing).Lookup(uint32(0), &c))
	return c
}

func (k *tap) assertNoneWaits() {
	k.w.t.Helper()
	if c := k.ring(); c.Waiting != 0 || c.Held != c.Released {
		k.w.t.Errorf("after all is sent on: %+v", c)
	}
}

// A datagram may be a flow's first packet, and the backend's answer to it a fragmented one as well.
func TestFragmentsBeginAFlow(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		k := w.tap()
		for i, order := range orders {
			s := packet.Spec{
				Src: netip.AddrPortFrom(w.client.addr[family], uint16(50000+i)), Dst: netip.AddrPortFrom(vips[family], servicePort),
				Protocol: proto, Flags: packet.SYN, Seq: 1, Payload: bytes.Repeat([]byte("x"), 150), SrcMAC: w.client.mac,
			}
			frame, err := s.Build()
			w.check(err)
			var out [][]byte
			early := 0
			for _, piece := range order {
				verdict, seen := k.push(leg{datapath.FromContainer, w.client}, k.piece(frame, piece))
				switch {
				case verdict == redirect:
					out = append(out, seen)
				case verdict == drop && piece != 0:
					early++
				default:
					t.Fatalf("%v, fragment %d: verdict %d", order, piece, verdict)
				}
			}
			for _, a := range k.take(early) {
				out = append(out, a.frame)
			}
			k.id = datagrams.Add(1)
			whole, err := packet.Reassemble(out)
			w.check(err)
			got := w.decode(whole)
			if got.Src != s.Src || got.Dst.Port() != targetPort || got.DstMAC.String() != w.containerOf(got).mac.String() || !bytes.Equal(got.Payload, s.Payload) {
				t.Errorf("%v: %v", order, got)
			}
		}
		if n := len(w.pairs()); n != len(orders) {
			t.Errorf("%d pairs for %d flows", n, len(orders))
		}
		k.silent()
		w.noDrops()
	})
}

// piece cuts the i-th of three fragments, with the present identification.
func (k *tap) piece(frame []byte, i int) []byte {
	k.w.t.Helper()
	out, err := packet.Fragments(frame, pieceSize, k.id)
	k.w.check(err)
	return out[i]
}

// In host stack mode answers pass the backend's veth untranslated, whatever their order.
func TestFragmentsInHostStackMode(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.settings(datapath.Settings{HostStack: true, AntiSpoof: true})
		f := w.talk(netip.AddrPortFrom(w.client.addr[family], 40000), netip.AddrPortFrom(vips[family], servicePort), proto,
			leg{datapath.FromContainer, w.client}, func(packet.Spec) leg { return leg{datapath.ToContainer, w.client} }, plain)
		backend := w.containerOf(w.decode(f.request.seen))
		k := w.tap()
		onWay := w.carry(leg{datapath.FromContainer, backend}, w.decode(f.response.sent))
		for _, way := range []passage{f.request, onWay, f.response} {
			for _, order := range orders {
				k.assertWhole(way, k.deliver(way, k.pieces(way.sent, pieceSize), order), order)
			}
		}
		k.silent()
		k.assertNoneWaits()
		w.noDrops()
	})
}

// Every fragment is a packet of its flow, whether it waited or not.
func TestFragmentsAreCounted(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		f := w.talkTo(family, proto, 40000, plain)
		k := w.tap()
		before := w.pairs()[0]
		for _, order := range orders {
			k.deliver(f.request, k.pieces(f.request.sent, pieceSize), order)
			k.deliver(f.response, k.pieces(f.response.sent, pieceSize), order)
		}
		want := uint64(3 * len(orders))
		if got := w.pairs()[0]; got.Packets[0]-before.Packets[0] != want || got.Packets[1]-before.Packets[1] != want {
			t.Errorf("%v packets counted, before %v, want %d more each way", got.Packets, before.Packets, want)
		}
	})
}
