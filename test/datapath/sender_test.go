package datapath

import (
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// own records an address of a container, with whose it is.
func (w *world) own(c container, family int, owner uint32) {
	w.t.Helper()
	w.check(w.d.PutEndpoint(datapath.EndpointKey{Address: c.addr[family], Ifindex: c.ifindex}, datapath.Endpoint{UpIfindex: 1, Owner: owner}))
}

// elsewhere sends the flow's next packet from another veth.
func (f *flow) elsewhere(on container) (uint32, packet.Spec) {
	f.w.t.Helper()
	return f.w.fromContainer(on, packet.Spec{
		Src: f.client, Dst: f.vip, Protocol: f.proto, Flags: packet.ACK, Seq: f.seq + 1, Ack: backendISN + 1, Payload: []byte("request"),
	})
}

// A flow that exists is no way around antiSpoof: neither for its requests nor for its answers.
func TestFlowsAreTheirOwnersAlone(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		f := w.flow(vips[family], family, proto, 40000)
		f.establish()
		other := w.containers[0]
		if other.ifindex == f.backend.ifindex {
			other = w.containers[1]
		}
		before := w.pairs()[0]
		if verdict, got := f.elsewhere(other); verdict != drop || w.drops("spoofed") != 1 {
			t.Errorf("a request of somebody else's: verdict %d, %v", verdict, got)
		}
		answer := reply(f.target)
		answer.Flags, answer.Seq, answer.Ack = packet.ACK, backendISN+1, f.seq+1
		if verdict, got := w.fromContainer(other, answer); verdict != drop || w.drops("spoofed") != 2 {
			t.Errorf("an answer of somebody else's: verdict %d, %v", verdict, got)
		}
		if after := w.pairs()[0]; after.Packets != before.Packets {
			t.Errorf("spoofed packets count: %v, before %v", after.Packets, before.Packets)
		}
		f.out(packet.ACK, f.seq+1, backendISN+1)
		f.back(packet.ACK, backendISN+1, f.seq+1)

		w.settings(datapath.Settings{AntiSpoof: false})
		if verdict, _ := f.elsewhere(other); verdict != redirect {
			t.Errorf("without antiSpoof: verdict %d", verdict)
		}
	})
}

// Nobody has the unspecified address.
func TestTheUnspecifiedAddressIsNobodys(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		nobody := [2]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[family]
		spoofed := packet.Spec{Src: netip.AddrPortFrom(nobody, 40000), Dst: netip.AddrPortFrom(vips[family], servicePort), Protocol: lb.UDP}
		if verdict, got := w.fromContainer(w.client, spoofed); verdict != drop || w.drops("spoofed") != 1 {
			t.Errorf("verdict %d, %v", verdict, got)
		}
	}
}

// A container answers by whichever of its interfaces its routes say.
func TestAContainersOtherInterfaceIsItsOwn(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		f := w.flow(vips[family], family, proto, 40000)
		f.establish()
		second := w.addContainer(60)
		w.own(f.backend, family, 7)
		w.own(second, family, 7)
		answer := reply(f.target)
		answer.Flags, answer.Seq, answer.Ack = packet.ACK, backendISN+1, f.seq+1
		verdict, got := w.fromContainer(second, answer)
		if verdict != redirect || got.Src != f.vip || got.Dst != f.client {
			t.Errorf("verdict %d, %v", verdict, got)
		}
		w.own(second, family, 8)
		if verdict, _ := w.fromContainer(second, answer); verdict != drop {
			t.Errorf("another container's interface: verdict %d", verdict)
		}
	})
}

// The next container that gets an address of a client's, and happens to send from the same port, gets the
// answers: those to the one before would go to a veth that is gone.
func TestAnswersFollowAClientsAddress(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		f := w.flow(vips[family], family, proto, 40000)
		f.establish()
		next := w.addContainer(61)
		next.addr[family] = w.client.addr[family]
		w.own(next, family, 9)
		w.check(w.d.DeleteEndpoint(datapath.EndpointKey{Address: w.client.addr[family], Ifindex: w.client.ifindex}))
		if verdict, _ := f.elsewhere(next); verdict != redirect {
			t.Fatalf("verdict %d", verdict)
		}
		f.from = next
		if h := f.halves()[1]; h.ifindex != next.ifindex {
			t.Errorf("answers go to device %d, want %d", h.ifindex, next.ifindex)
		}
		f.back(packet.ACK, backendISN+1, f.seq+1)
		if n := len(w.pairs()); n != 1 {
			t.Errorf("%d pairs, want the one that there was", n)
		}
	})
}
