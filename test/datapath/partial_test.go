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

const (
	virtioHeader  = 10 // struct virtio_net_hdr, before each frame of a socket with packetVnetHdr
	packetVnetHdr = 15
)

// complete does what a device does to a frame whose checksum is partial: it adds up all of it.
func complete(header, frame []byte) {
	if header[0]&1 == 0 {
		return
	}
	start := int(binary.NativeEndian.Uint16(header[6:]))
	at := start + int(binary.NativeEndian.Uint16(header[8:]))
	var sum uint32
	for i := start; i < len(frame); i += 2 {
		word := uint32(frame[i]) << 8
		if i+1 < len(frame) {
			word |= uint32(frame[i+1])
		}
		sum += word
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(frame[at:], ^uint16(sum))
}

// partial makes a TCP frame's checksum one that the device is to complete, as containers send it.
func partial(frame []byte) []byte {
	l4, addrs := 14+20, frame[26:34]
	if frame[14]>>4 == 6 {
		l4, addrs = 14+40, frame[22:54]
	}
	length := int(binary.BigEndian.Uint16(frame[16:])) - 20
	if frame[14]>>4 == 6 {
		length = int(binary.BigEndian.Uint16(frame[18:]))
	}
	sum := uint32(6 + length)
	for i := 0; i < len(addrs); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(addrs[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	out := append(make([]byte, virtioHeader), frame...)
	out[0] = 1
	binary.NativeEndian.PutUint16(out[6:], uint16(l4))
	binary.NativeEndian.PutUint16(out[8:], 16)
	binary.BigEndian.PutUint16(out[virtioHeader+l4+16:], uint16(sum))
	return out
}

// vnetSocket is a sniffer that tells of partial checksums, and sends them.
func (w *world) vnetSocket() int {
	w.t.Helper()
	fd := w.sniffer()
	w.check(unix.SetsockoptInt(fd, unix.SOL_PACKET, packetVnetHdr, 1))
	return fd
}

// realUplink gives the world's uplink addresses, and the client outside as its neighbour. It returns the
// device of the wire's other end.
func (w *world) realUplink() uint32 {
	w.t.Helper()
	w.goAbroad()
	link, err := netlink.LinkByIndex(int(w.abroad.uplink.ifindex))
	w.check(err)
	far, err := netlink.LinkByIndex(link.Attrs().ParentIndex)
	w.check(err)
	w.check(netlink.LinkSetUp(link))
	w.check(netlink.LinkSetUp(far))
	for _, client := range beyond {
		addr, err := netlink.ParseAddr(netip.PrefixFrom(client.Next(), client.BitLen()-16).String()) // a subnet's first address is anycast
		w.check(err)
		addr.Flags = unix.IFA_F_NODAD
		w.check(netlink.AddrAdd(link, addr))
		w.check(netlink.NeighAdd(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: client.AsSlice(), HardwareAddr: w.abroad.uplink.mac,
		}))
	}
	return uint32(far.Attrs().Index)
}

// Containers leave checksums to the device. A reset made of such a segment, which leaves by a real device, is
// completed by it: whole already, it would become a wrong one.
func TestAResetOutsideIsCompletedByTheDevice(t *testing.T) {
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			far := w.realUplink()
			s := visit(family, lb.TCP, 40000)
			x := w.carry(w.fromOutside(), s)
			c := w.containers[0]
			answer := answerTo(w.decode(x.seen))
			w.fromContainer(c, answer)
			w.carry(w.fromOutside(), more(s))
			_, err := w.d.RetireEndpoint(c.ifindex, nil)
			w.check(err)
			veth, err := netlink.LinkByIndex(int(c.ifindex))
			w.check(err)
			inner, err := netlink.LinkByIndex(veth.Attrs().ParentIndex)
			w.check(err)
			w.check(netlink.LinkSetUp(veth))
			w.check(netlink.LinkSetUp(inner))
			l := w.attach(veth, w.d.Program(datapath.FromContainer), ebpf.AttachTCXIngress)
			defer l.Close()
			fd := w.vnetSocket()
			answer.Flags, answer.Seq, answer.Payload, answer.SrcMAC = packet.ACK, backendISN+1, bytes.Repeat([]byte("late"), 20), c.mac
			frame, err := answer.Build()
			w.check(err)
			got := w.completed(fd, far, s.Src, func() error {
				return unix.Sendto(fd, partial(frame), 0, &unix.SockaddrLinklayer{Ifindex: inner.Attrs().Index, Halen: 6})
			})
			if got.Src != s.Dst || got.Flags != packet.RST || got.Seq != backendISN+1 || got.DstMAC.String() != w.abroad.uplink.mac.String() || got.SrcMAC.String() != w.abroad.mac.String() {
				t.Errorf("got %v", got)
			}
		})
	}
}

// completed sends until a frame to a client comes, on the wire's other end, and completes it. Devices that have
// just come up lose what is sent before the kernel has noticed.
func (w *world) completed(fd int, at uint32, to netip.AddrPort, send func() error) packet.Spec {
	w.t.Helper()
	buffer := make([]byte, 1<<16)
	for tries := range 5000 {
		if tries%100 == 0 {
			w.check(send())
		}
		n, from, err := unix.Recvfrom(fd, buffer, 0)
		if err == unix.EAGAIN {
			time.Sleep(time.Millisecond)
			continue
		}
		w.check(err)
		link := from.(*unix.SockaddrLinklayer)
		got, _ := packet.Parse(buffer[virtioHeader:n])
		if link.Ifindex != int(at) || link.Pkttype == unix.PACKET_OUTGOING || got.Dst != to {
			continue
		}
		if buffer[0]&1 == 0 {
			w.t.Error("the checksum was whole: the test shows nothing")
		}
		complete(buffer[:virtioHeader], buffer[virtioHeader:n])
		return w.decode(buffer[virtioHeader:n])
	}
	w.t.Fatalf("nothing came to %v", to)
	return packet.Spec{}
}
