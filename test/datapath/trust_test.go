package datapath

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// Only nodes that are known are believed, in this cluster's network.
func TestStrangersInTheTunnel(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.goAbroad()
		s := ask(netip.AddrPortFrom(elsewhere(1).addr[family], 40000), netip.AddrPortFrom(w.containers[0].addr[family], targetPort), lb.TCP)
		believed := func(program string, want bool) {
			t.Helper()
			before := w.drops("tunnel-source")
			verdict, _ := w.send(program, w.abroad.tunnel, s)
			if n := w.drops("tunnel-source") - before; (verdict == redirect) != want || (n == 0) != want {
				t.Errorf("%s: verdict %d, %d drops", program, verdict, n)
			}
		}
		believed(comesFrom(1), true)
		believed(datapath.FromOverlay, false) // without any metadata
		believed(tunnelled(vtep(0, 1), otherVNI), false)
		believed(tunnelled(vtep(0, 9), vni), false)
		believed(tunnelled(vtep(1, 1), vni), false)
		w.node(1, 1, datapath.SNATNever) // it moves to another address
		believed(tunnelled(vtep(1, 1), vni), true)
		believed(tunnelled(vtep(1, 1), otherVNI), false)
		believed(tunnelled(vtep(0, 1), vni), false)
		w.check(w.d.DeleteNode(1))
		believed(tunnelled(vtep(1, 1), vni), false)
		believed(comesFrom(2), true)
	}
}

// cargo are frames that nobody of ours would send by tunnel.
func (w *world) cargo(family int) map[string][]byte {
	w.t.Helper()
	other := w.frame(w.containers[0].addr[family], family, lb.TCP)
	proto := 14 + 9
	if family == 1 {
		proto = 14 + 6
	}
	other[proto] = 132 // SCTP
	arp := make([]byte, 60)
	binary.BigEndian.PutUint16(arp[12:], 0x0806)
	echo, err := ping(elsewhere(1).addr[family], w.containers[0].addr[family], family, 20).Build()
	w.check(err)
	toVIP, err := ping(elsewhere(1).addr[family], vips[family], family, 20).Build()
	w.check(err)
	return map[string][]byte{"another protocol": other, "ARP": arp, "a ping": echo, "a ping of a VIP": toVIP}
}

func TestOtherCargoInTheTunnel(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.goAbroad()
		for name, frame := range w.cargo(family) {
			before := w.drops("tunnel-cargo")
			if verdict, _ := w.run(comesFrom(1), w.abroad.tunnel.ifindex, frame); verdict != drop || w.drops("tunnel-cargo") != before+1 {
				t.Errorf("%s: verdict %d, %d drops", name, verdict, w.drops("tunnel-cargo")-before)
			}
		}
	}
}

// probing is a probe of a host's proxy for a node.
func probing(family int, node uint32, from uint16) packet.Spec {
	return packet.Spec{
		Src: netip.AddrPortFrom(outside().addr[family], from), Dst: netip.AddrPortFrom(hairpins[family], 7), Protocol: lb.UDP,
		Payload: binary.BigEndian.AppendUint32([]byte("tclb"), node),
	}
}

func TestProbesGoThereAndBack(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.goAbroad()
		for _, more := range []int{0, 1, 1000} {
			s := probing(family, 1, 33000)
			s.Payload = append(s.Payload, bytes.Repeat([]byte{9}, more)...)
			verdict, out := w.send(datapath.FromHost, w.host, s)
			if verdict != redirect || out.Src != s.Src || out.Dst != s.Dst || out.DstMAC.String() != nodeMAC(1).String() || out.TTL != 63 || !bytes.Equal(out.Payload, s.Payload) {
				t.Fatalf("out: verdict %d for %v", verdict, out)
			}
			verdict, turned := w.send(comesFrom(2), w.abroad.tunnel, out)
			if verdict != redirect || turned.Src != s.Dst || turned.Dst != s.Src || turned.DstMAC.String() != out.SrcMAC.String() || !bytes.Equal(turned.Payload, s.Payload) {
				t.Fatalf("turned: verdict %d for %v", verdict, turned)
			}
			verdict, up := w.send(comesFrom(1), w.abroad.tunnel, turned)
			if verdict != redirect || up.Src != s.Dst || up.Dst != s.Src || up.DstMAC.String() != w.host.mac.String() {
				t.Fatalf("up: verdict %d for %v", verdict, up)
			}
		}
		if n := len(w.pairs()); n != 0 {
			t.Errorf("probes made %d pairs", n)
		}
		w.noDrops()
	}
}

// What looks like a probe and is none goes the way of everything else.
func TestWhatIsNoProbe(t *testing.T) {
	changes := map[string]func(s *packet.Spec, family int){
		"another magic":    func(s *packet.Spec, _ int) { s.Payload[3]++ },
		"too short":        func(s *packet.Spec, _ int) { s.Payload = s.Payload[:7] },
		"another port":     func(s *packet.Spec, _ int) { s.Dst = netip.AddrPortFrom(s.Dst.Addr(), 8) },
		"another address":  func(s *packet.Spec, family int) { s.Dst = netip.AddrPortFrom(elsewhere(9).addr[family], 7) },
		"echo to echo":     func(s *packet.Spec, _ int) { s.Src = netip.AddrPortFrom(s.Src.Addr(), 7) }, // two nodes would send it for ever
		"in pieces":        func(s *packet.Spec, _ int) { s.Fragment = &packet.Fragment{ID: 9, More: true} },
		"by another way":   func(s *packet.Spec, _ int) { s.Protocol, s.Flags = lb.TCP, packet.SYN },
		"for nobody":       func(s *packet.Spec, _ int) { binary.BigEndian.PutUint32(s.Payload[4:], 0) },
		"for a stranger":   func(s *packet.Spec, _ int) { binary.BigEndian.PutUint32(s.Payload[4:], 77) },
		"for the 65537th":  func(s *packet.Spec, _ int) { binary.BigEndian.PutUint32(s.Payload[4:], 1<<16+1) },
		"at its last hop":  func(s *packet.Spec, _ int) { s.TTL = 1 },
		"of ours, answers": func(s *packet.Spec, _ int) { s.Src, s.Dst = s.Dst, s.Src },
	}
	for family := range families {
		w := newWorld(t, 1)
		w.goAbroad()
		for name, change := range changes {
			s := probing(family, 1, 33000)
			change(&s, family)
			if verdict, out := w.send(datapath.FromHost, w.host, s); verdict != drop {
				t.Errorf("%s: verdict %d for %v", name, verdict, out)
			}
			switch name {
			case "for nobody", "for a stranger", "for the 65537th", "of ours, answers":
				continue // the other node answers whatever is for it, or they go up
			}
			if verdict, out := w.send(comesFrom(1), w.abroad.tunnel, s); verdict == redirect && out.Src == s.Dst && out.Dst == s.Src {
				t.Errorf("%s: turned round, %v", name, out)
			}
		}
	}
}
