package datapath

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// A first fragment says by its ports where the others go: without them it is malformed (RFC 1858 tells what
// it would be good for).
func TestFirstFragmentsWithoutTheirPorts(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		k := w.tap()
		l := leg{datapath.FromContainer, w.client}
		s := packet.Spec{
			Src: netip.AddrPortFrom(w.client.addr[family], 40000), Dst: netip.AddrPortFrom(vips[family], servicePort),
			Protocol: proto, Flags: packet.SYN, Payload: make([]byte, 100), SrcMAC: w.client.mac,
		}
		elsewhere := s
		elsewhere.Dst = netip.AddrPortFrom(outside().addr[family], servicePort)
		for _, size := range map[lb.Protocol][]int{lb.TCP: {0, 8, 16}, lb.UDP: {0}}[proto] {
			for _, padded := range []bool{true, false} {
				want := w.drops("malformed") + 1
				if verdict, _ := k.push(l, w.shortFirst(s, size, padded)); verdict != drop || w.drops("malformed") != want {
					t.Errorf("%d bytes: verdict %d, %d counted, want %d", size, verdict, w.drops("malformed"), want)
				}
				frame := w.shortFirst(elsewhere, size, padded)
				if verdict, seen := k.push(l, frame); verdict != next || !bytes.Equal(seen, frame) {
					t.Errorf("%d bytes to elsewhere: verdict %d, changed %v", size, verdict, !bytes.Equal(seen, frame))
				}
			}
		}
		if n := len(w.pairs()); n != 0 {
			t.Errorf("%d flows began", n)
		}
		k.silent()
	})
}

// shortFirst builds a first fragment with so many bytes behind the IP headers.
func (w *world) shortFirst(s packet.Spec, size int, padded bool) []byte {
	w.t.Helper()
	frame, err := s.Build()
	w.check(err)
	pieces, err := packet.Fragments(frame, 24, datagrams.Add(1))
	w.check(err)
	out := pieces[0][:len(pieces[0])-24+size]
	ip := out[14:]
	if s.Src.Addr().Is4() {
		// The program does not look at the header's checksum.
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	} else {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-40))
	}
	if padded {
		out = append(slices.Clone(out), make([]byte, 100)...)
	}
	return out
}

// wire puts to_container at the client's device, where it meets real packets, of any size: an answer of a backend
// without programs, and how to send frames by the host's stack.
func (k *tap) wire(family int) (answer packet.Spec, send func(frame []byte)) {
	k.w.t.Helper()
	w := k.w
	w.service(serviceID, vips, []container{outside()})
	f := w.talk(netip.AddrPortFrom(w.client.addr[family], 40000), netip.AddrPortFrom(vips[family], servicePort), lb.UDP,
		leg{datapath.FromContainer, w.client}, func(packet.Spec) leg { return leg{datapath.ToContainer, w.client} }, plain)
	outer, err := netlink.LinkByIndex(int(w.client.ifindex))
	w.check(err)
	for _, index := range []int{outer.Attrs().Index, outer.Attrs().ParentIndex} {
		l, err := netlink.LinkByIndex(index)
		w.check(err)
		w.check(netlink.LinkSetMTU(l, 65535))
	}
	on, err := link.AttachTCX(link.TCXOptions{Interface: outer.Attrs().Index, Program: w.d.Program(datapath.ToContainer), Attach: ebpf.AttachTCXEgress})
	w.check(err)
	w.t.Cleanup(func() { on.Close() })
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	w.check(err)
	w.t.Cleanup(func() { unix.Close(fd) })
	return w.decode(f.response.sent), func(frame []byte) {
		w.t.Helper()
		protocol := uint16(frame[13])<<8 | uint16(frame[12]) // in network order
		err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: outer.Attrs().Index})
		if err != nil && err != unix.ENOBUFS { // what sendto says when the program drops the frame
			w.t.Fatal(err)
		}
	}
}

// large returns an answer of 24,000 bytes, its frame, and what sends frames by the wire.
func (k *tap) large(family int) (packet.Spec, []byte, func([]byte)) {
	k.w.t.Helper()
	s, send := k.wire(family)
	s.Payload = bytes.Repeat([]byte("large..."), 3000)
	frame, err := s.Build()
	k.w.check(err)
	return s, frame, send
}

// arrived takes what came to the client.
func (k *tap) arrived(n int) [][]byte {
	k.w.t.Helper()
	var out [][]byte
	for _, a := range k.take(n) {
		if a.exit != (exit{k.w.client.ifindex, true}) {
			k.w.t.Fatalf("a packet went to %+v", a.exit)
		}
		out = append(out, a.frame)
	}
	return out
}

// assertAnswer asserts that fragments are those of an answer of the VIP's.
func (k *tap) assertAnswer(pieces [][]byte, family int, payload []byte) {
	k.w.t.Helper()
	whole, err := packet.Reassemble(pieces)
	k.w.check(err)
	if got := k.w.decode(whole); got.Src != netip.AddrPortFrom(vips[family], servicePort) || !bytes.Equal(got.Payload, payload) {
		k.w.t.Errorf("%v", got)
	}
}

// A fragment that is larger than a place cannot wait. In order it need not, nor does it stop others.
func TestFragmentsThatAreTooLargeToWait(t *testing.T) {
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			k := w.tap()
			s, frame, send := k.large(family)
			for size, fits := range map[int]bool{9160: true, 12000: false} {
				before := w.drops("fragment")
				pieces := k.pieces(frame, size)
				for _, i := range []int{1, 0, 2} {
					send(pieces[i])
				}
				if fits {
					k.assertAnswer(k.arrived(3), family, s.Payload)
				} else if k.arrived(2); w.drops("fragment") != before+1 {
					t.Errorf("%d dropped", w.drops("fragment")-before)
				}
				k.silent()
			}
		})
	}
}

// A fragment that waits for good must not cost other datagrams anything.
func TestLargeFirstFragmentsPassWhateverWaits(t *testing.T) {
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			k := w.tap()
			s, frame, send := k.large(family)
			k.holds(leg{datapath.ToContainer, w.client}, k.pieces(frame, 800)[1])
			for _, piece := range k.pieces(frame, 12000) {
				send(piece)
			}
			k.assertAnswer(k.arrived(3), family, s.Payload)
			k.silent()
			w.noDrops()
		})
	}
}

// Packets that are not ours stay as they are, byte for byte, whatever else waits.
func TestShortFirstFragmentsPassWhateverWaits(t *testing.T) {
	w := newWorld(t, 1)
	f := w.talkTo(0, lb.UDP, 40000, plain)
	k := w.tap()
	k.holds(f.request.leg, k.pieces(f.request.sent, pieceSize)[1])
	s := packet.Spec{
		Src: netip.AddrPortFrom(w.client.addr[0], 5), Dst: netip.AddrPortFrom(outside().addr[0], 6),
		Protocol: lb.UDP, Payload: make([]byte, 50),
	}
	frame, err := s.Build()
	w.check(err)
	first := k.pieces(frame, 8)[0]
	for _, program := range []string{datapath.FromContainer, datapath.ToContainer} {
		if verdict, seen := k.push(leg{program, w.client}, first); verdict != next || !bytes.Equal(seen, first) {
			t.Errorf("%s: verdict %d\n got %x\nwant %x", program, verdict, seen, first)
		}
	}
	k.silent()
}

// meeting is the fragments of one datagram that come on two CPUs at once.
type meeting struct {
	frames [2][][]byte
	out    [2][][]byte
}

// On two CPUs, the first fragment looks for those that wait while another one is about to: one of them must see
// the other.
func TestFragmentsMeetOnTwoCPUs(t *testing.T) {
	rounds := 4000
	if testing.Short() {
		rounds = 800
	}
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		f := w.talkTo(family, proto, 40000, plain)
		k := w.tap()
		meetings := make([]meeting, rounds)
		for i := range meetings {
			pieces := k.pieces(f.request.sent, pieceSize)
			meetings[i].frames = [2][][]byte{pieces[:1], pieces[1:]}
		}
		k.meet(f.request, meetings)
		c := k.ring()
		all := map[uint32][][]byte{}
		for _, m := range meetings {
			for _, frame := range append(m.out[0], m.out[1]...) {
				id := w.decode(frame).Fragment.ID
				all[id] = append(all[id], frame)
			}
		}
		for _, frame := range k.released(f.request, int(c.Released)) {
			id := w.decode(frame).Fragment.ID
			all[id] = append(all[id], frame)
		}
		for id, frames := range all {
			k.assertWhole(f.request, frames, id)
		}
		if len(all) != rounds || c.Waiting != 0 {
			t.Errorf("%d datagrams of %d; %+v", len(all), rounds, c)
		}
		t.Logf("of %d later fragments %d waited for a moment and %d until the first one came", 2*rounds, c.Held, c.Released)
		k.silent()
		w.noDrops()
	})
}

// meet sends both parts of every meeting at the same moment, give or take what a packet takes.
func (k *tap) meet(like passage, meetings []meeting) {
	k.w.t.Helper()
	var ready [2]atomic.Int64
	k.w.parallel(2, func(worker int) {
		r := rand.New(rand.NewPCG(3, uint64(worker)))
		for i := range meetings {
			ready[worker].Store(int64(i + 1))
			for spins := 0; ready[1-worker].Load() < int64(i+1); spins++ {
				if spins > 1000 {
					runtime.Gosched()
				}
			}
			for range r.IntN(3000) {
				_ = ready[worker].Load()
			}
			for _, frame := range meetings[i].frames[worker] {
				opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, 512), Context: skbContext{Ifindex: like.on.ifindex}}
				verdict, err := k.w.d.Program(like.program).Run(&opts)
				if err != nil {
					k.w.t.Error(err)
				} else if verdict != drop {
					meetings[i].out[worker] = append(meetings[i].out[worker], opts.DataOut)
				}
			}
		}
	})
}
