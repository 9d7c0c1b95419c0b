package datapath

import (
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// Cilium documents the next three as a limitation (cilium/cilium#42632, #47396): after
// translation both flows are the same to the backend.

func TestTwoVIPsOnOneBackendFromOnePort(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		only := w.containers[:1]
		w.service(1, vips, only)
		w.service(2, vips2, only)
		a, b := w.flow(vips[family], family, proto, 40000), w.flow(vips2[family], family, proto, 40000)
		a.establish()
		b.establish()
		if a.target.Src == b.target.Src {
			t.Fatalf("the backend sees %v twice", a.target.Src)
		}
		a.back(packet.ACK, backendISN+1, a.seq+1)
		b.back(packet.ACK, backendISN+1, b.seq+1)
		a.out(packet.ACK, a.seq+1, backendISN+1)
		b.out(packet.ACK, b.seq+1, backendISN+1)
	})
}

// direct is a flow to the backend's own address, from the port that a VIP flow uses too.
type direct struct {
	*flow
}

func (d direct) out(flags packet.Flags) {
	d.w.t.Helper()
	verdict, got := d.w.fromContainer(d.from, packet.Spec{Src: d.client, Dst: d.vip, Protocol: d.proto, Flags: flags, Seq: 1, Ack: backendISN + 1})
	if verdict != next || got.Dst != d.vip || got.DstMAC.String() != "02:00:00:00:00:02" {
		d.w.t.Fatalf("direct packet: verdict %d for %v", verdict, got)
	}
	d.target = got
}

// back returns what becomes of the answer at the backend's veth.
func (d direct) back(flags packet.Flags) (uint32, packet.Spec) {
	d.w.t.Helper()
	answer := reply(d.target)
	answer.Flags, answer.Seq, answer.Ack = flags, backendISN, 2
	return d.w.fromContainer(d.w.containers[0], answer)
}

func (w *world) direct(family int, proto lb.Protocol, port uint16) direct {
	f := w.flow(vips[family], family, proto, port)
	f.vip = netip.AddrPortFrom(w.containers[0].addr[family], targetPort)
	return direct{f}
}

func TestDirectFlowFirstThenVIP(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.service(1, vips, w.containers[:1])
		d := w.direct(family, proto, 40000)
		d.out(packet.SYN)
		f := w.flow(vips[family], family, proto, 40000)
		f.establish()
		if f.target.Src == d.target.Src {
			t.Fatal("the backend sees both flows from one port")
		}
		f.back(packet.ACK, backendISN+1, f.seq+1)
		if verdict, got := d.back(packet.SYN | packet.ACK); verdict != next || got.Src != d.vip || got.Dst != d.client {
			t.Errorf("direct answer: verdict %d for %v", verdict, got)
		}
	})
}

func TestVIPFirstThenDirectFlow(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.service(1, vips, w.containers[:1])
		f := w.flow(vips[family], family, proto, 40000)
		f.establish()
		d := w.direct(family, proto, 40000)
		d.out(packet.SYN)
		if f.target.Src == d.target.Src {
			t.Fatal("the backend sees both flows from one port")
		}
		if verdict, got := d.back(packet.SYN | packet.ACK); verdict != redirect || got.Src != d.vip || got.Dst != d.client {
			t.Errorf("direct answer: verdict %d for %v, want it delivered past to_container", verdict, got)
		}
		f.back(packet.ACK, backendISN+1, f.seq+1)
	})
}

func TestPortOfAClosedFlowIsTakenOver(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.service(1, vips, w.containers[:1])
		w.service(2, vips2, w.containers[:1])
		a, b := w.flow(vips[family], family, lb.TCP, 40000), w.flow(vips2[family], family, lb.TCP, 40000)
		a.establish()
		a.close()
		b.establish()
		if b.target.Src != b.client {
			t.Errorf("the backend sees %v, though nobody uses %v any more", b.target.Src, b.client)
		}
	}
}
