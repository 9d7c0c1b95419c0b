package datapath

import (
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// There is no way by the host's stack to another node, and none to a VIP for the host itself: in host stack mode these
// flows go as they go without it.
func TestHostStackModeKeepsWaysThatTheHostHasNot(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.settings(datapath.Settings{HostStack: true, AntiSpoof: true})
		vip := netip.AddrPortFrom(vips[family], servicePort)
		fromHost := ask(netip.AddrPortFrom(outside().addr[family], 40000), vip, proto)
		verdict, in := w.send(datapath.FromHost, w.host, fromHost)
		if verdict != redirect || in.DstMAC.String() != w.containerOf(in).mac.String() {
			t.Fatalf("from the host: verdict %d for %v", verdict, in)
		}
		if verdict, back := w.fromContainer(w.containerOf(in), answerTo(in)); verdict != redirect || back.Src != vip || back.Dst != fromHost.Src {
			t.Errorf("to the host: verdict %d for %v", verdict, back)
		}
		w.away(1, elsewhere(1))
		w.settings(datapath.Settings{HostStack: true, AntiSpoof: true})
		s := ask(netip.AddrPortFrom(w.client.addr[family], 40001), vip, proto)
		verdict, out := w.fromContainer(w.client, s)
		if verdict != redirect || out.DstMAC.String() != nodeMAC(1).String() {
			t.Fatalf("to another node: verdict %d for %v", verdict, out)
		}
		if verdict, back := w.send(comesFrom(1), w.abroad.tunnel, answerTo(out)); verdict != redirect || back.Src != vip || back.DstMAC.String() != w.client.mac.String() {
			t.Errorf("back from there: verdict %d for %v", verdict, back)
		}
	})
}

// A backend without programs of ours is a matter of the host's stack in either mode.
func TestHostStackModeAndBackendsWithoutPrograms(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.settings(datapath.Settings{HostStack: true, AntiSpoof: true})
		w.service(serviceID, vips, []container{outside()})
		vip := netip.AddrPortFrom(vips[family], servicePort)
		s := ask(netip.AddrPortFrom(w.client.addr[family], 40000), vip, proto)
		verdict, out := w.fromContainer(w.client, s)
		if verdict != next || out.Dst.Addr() != outside().addr[family] || out.Src != s.Src {
			t.Fatalf("verdict %d for %v", verdict, out)
		}
		if verdict, back := w.send(datapath.ToContainer, w.client, answerTo(out)); verdict != next || back.Src != vip || back.Dst != s.Src {
			t.Errorf("answer: verdict %d for %v", verdict, back)
		}
	})
}

// Neither the node that chose nor the backend's sends direct answers by its stack.
func TestHostStackModeAndDirectAnswers(t *testing.T) {
	eachDSR(t, func(_ *testing.T, w *world, family int, proto lb.Protocol) {
		w.settings(datapath.Settings{HostStack: true, AntiSpoof: true})
		s := visit(family, proto, 40000)
		w.says("the first packet", w.fromClient(s, 0), markTells, s.Dst)
	})
	eachHosted(t, func(_ *testing.T, w *world, h *hosted) {
		w.settings(datapath.Settings{HostStack: true, AntiSpoof: true})
		h.tell(h.sent)
		if h.sent.Protocol == lb.TCP {
			h.back("the handshake", answerTo(h.seen), true)
			h.marked(h.follows(), markDSR)
		}
		h.back("the answer", h.answers(), true)
	})
}

// There is no way by the host's stack into a VLAN, for clients outside neither.
func TestHostStackModeAndClientsOutsideOfAVLAN(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.tagged(100, elsewhere(1), true)
		w.settings(datapath.Settings{HostStack: true, AntiSpoof: true})
		s := visit(family, proto, 40000)
		x := w.carry(w.fromOutside(), s)
		out := w.decode(x.seen)
		if x.verdict != redirect || out.DstMAC.String() != w.abroad.trunk.mac.String() {
			t.Fatalf("verdict %d for %v", x.verdict, out)
		}
		if verdict, back := w.send(withTag(dot1q, 100), w.abroad.trunk, answerTo(out)); verdict != redirect || back.Src != s.Dst || back.Dst != s.Src {
			t.Errorf("verdict %d for %v", verdict, back)
		}
	})
}
