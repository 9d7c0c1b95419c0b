package datapath

import (
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// outside is a backend without our programs: a host process, an external address, a container
// that was there before tclb.
func outside() container {
	return container{addr: [2]netip.Addr{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8:77::7")}}
}

func TestAnswersOfAnUnattachedBackendAreTranslatedOnTheWayIn(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.service(1, vips, []container{outside()})
		f := w.flow(vips[family], family, proto, 40000)
		out := packet.Spec{Src: f.client, Dst: f.vip, Protocol: proto, Flags: packet.SYN, Seq: 1}
		verdict, got := w.fromContainer(w.client, out)
		if verdict != next || got.Dst != netip.AddrPortFrom(outside().addr[family], targetPort) || got.Src != f.client {
			t.Fatalf("verdict %d for %v", verdict, got)
		}
		answer := reply(got)
		answer.Flags, answer.Ack = packet.SYN|packet.ACK, 2
		verdict, got = w.send(datapath.ToContainer, w.client, answer)
		if verdict != next || got.Src != f.vip || got.Dst != f.client {
			t.Errorf("answer: verdict %d for %v", verdict, got)
		}
		verdict, got = w.send(datapath.ToContainer, w.client, out)
		if verdict != next || got.Dst != out.Dst {
			t.Errorf("to_container changed a packet that is no answer: %v", got)
		}
	})
}

func TestHostReachesAnAttachedBackend(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		client := netip.AddrPortFrom(outside().addr[family], 50000)
		vip := netip.AddrPortFrom(vips[family], servicePort)
		verdict, got := w.send(datapath.FromHost, w.host, packet.Spec{Src: client, Dst: vip, Protocol: proto, Flags: packet.SYN, Seq: 1})
		backend := w.containerOf(got)
		if verdict != redirect || got.Src != client || got.DstMAC.String() != backend.mac.String() {
			t.Fatalf("verdict %d for %v", verdict, got)
		}
		answer := reply(got)
		answer.Flags, answer.Ack = packet.SYN|packet.ACK, 2
		verdict, got = w.fromContainer(backend, answer)
		if verdict != redirect || got.Src != vip || got.Dst != client || got.DstMAC.String() != w.host.mac.String() {
			t.Errorf("answer: verdict %d for %v", verdict, got)
		}
	})
}

func TestHostReachesAHostProcessByTheVIPsAddress(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.service(1, vips, []container{outside()})
		client := netip.AddrPortFrom(outside().addr[family], 50000)
		vip := netip.AddrPortFrom(vips[family], servicePort)
		verdict, got := w.send(datapath.FromHost, w.host, packet.Spec{Src: client, Dst: vip, Protocol: proto, Flags: packet.SYN, Seq: 1})
		if verdict != redirect || got.Src.Addr() != vip.Addr() || got.Dst.Port() != targetPort || got.DstMAC.String() != w.host.mac.String() {
			t.Fatalf("verdict %d for %v", verdict, got)
		}
		answer := reply(got)
		answer.Flags, answer.Ack = packet.SYN|packet.ACK, 2
		verdict, got = w.send(datapath.FromHost, w.host, answer)
		if verdict != redirect || got.Src != vip || got.Dst != client {
			t.Errorf("answer: verdict %d for %v", verdict, got)
		}
	})
}

func TestAContainerReachesItself(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.service(1, vips, []container{w.client})
		f := w.flow(vips[family], family, proto, 40000)
		f.establish()
		if f.backend.ifindex != w.client.ifindex || f.target.Src.Addr() == f.client.Addr() {
			t.Errorf("went to %v from %v", f.target.Dst, f.target.Src)
		}
	})
}

// A container on two networks is a backend with its other address: to the kernel there, a packet from
// the container's first address would be a martian.
func TestAContainerReachesItselfByItsOtherInterface(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		other := w.containers[0]
		w.service(1, vips, []container{other})
		w.change(other, func(b *datapath.Backend) { b.Owner = 77 })
		w.check(w.d.PutEndpoint(datapath.EndpointKey{Address: w.client.addr[family], Ifindex: w.client.ifindex}, datapath.Endpoint{Owner: 77}))
		f := w.flow(vips[family], family, proto, 40000)
		f.establish()
		if f.backend.ifindex != other.ifindex || f.target.Src.Addr() == f.client.Addr() {
			t.Errorf("went to %v from %v", f.target.Dst, f.target.Src)
		}
	})
}

func TestHostStackModeLeavesTheWayToTheHost(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.settings(datapath.Settings{HostStack: true})
		f := w.flow(vips[family], family, proto, 40000)
		verdict, got := w.fromContainer(w.client, packet.Spec{Src: f.client, Dst: f.vip, Protocol: proto, Flags: packet.SYN, Seq: 1})
		if verdict != next || got.Dst.Port() != targetPort {
			t.Fatalf("verdict %d for %v", verdict, got)
		}
		backend := w.containerOf(got)
		answer := reply(got)
		answer.Flags, answer.Ack = packet.SYN|packet.ACK, 2
		verdict, onWay := w.fromContainer(backend, answer)
		if verdict != next || onWay.Src != answer.Src || onWay.DstMAC.String() != "02:00:00:00:09:09" {
			t.Fatalf("answer at the backend's veth: verdict %d for %v, want it untranslated to the bridge", verdict, onWay)
		}
		verdict, got = w.send(datapath.ToContainer, w.client, answer)
		if verdict != next || got.Src != f.vip {
			t.Errorf("answer at the client's veth: verdict %d for %v", verdict, got)
		}
	})
}

func TestSpoofedAndUnwantedSourcesAreRefused(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		vip := netip.AddrPortFrom(vips[family], servicePort)
		spoofed := packet.Spec{Src: netip.AddrPortFrom(w.containers[0].addr[family], 40000), Dst: vip, Protocol: proto, Flags: packet.SYN}
		if verdict, _ := w.fromContainer(w.client, spoofed); verdict != drop || w.drops("spoofed") != 1 {
			t.Errorf("spoofed: verdict %d", verdict)
		}
		key := lb.Frontend{VIP: vip.Addr(), Port: servicePort, Protocol: proto}
		all, err := w.d.Frontends()
		w.check(err)
		limited := all[key]
		limited.Allow = true
		w.check(w.d.PutFrontends(map[lb.Frontend]datapath.Frontend{key: limited}))
		own := packet.Spec{Src: netip.AddrPortFrom(w.client.addr[family], 40000), Dst: vip, Protocol: proto, Flags: packet.SYN}
		if verdict, _ := w.fromContainer(w.client, own); verdict != drop || w.drops("not-allowed") != 1 {
			t.Errorf("not allowed: verdict %d", verdict)
		}
		prefix, err := w.client.addr[family].Prefix(24)
		w.check(err)
		w.check(w.d.PutAllow(datapath.AllowKey{Service: serviceID, Prefix: prefix}))
		if verdict, _ := w.fromContainer(w.client, own); verdict != redirect {
			t.Errorf("allowed: verdict %d", verdict)
		}
	})
}
