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
