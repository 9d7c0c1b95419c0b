package datapath

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// visit is the first packet of a client outside.
func visit(family int, proto lb.Protocol, port uint16) packet.Spec {
	return ask(netip.AddrPortFrom(beyond[family], port), netip.AddrPortFrom(vips[family], servicePort), proto)
}

func TestAClientOutsideReachesAContainer(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		s := visit(family, proto, 40000)
		x := w.carry(w.fromOutside(), s)
		in := w.decode(x.seen)
		c := w.containerOf(in)
		if x.verdict != redirect || in.Src != s.Src || in.Dst.Port() != targetPort || in.DstMAC.String() != c.mac.String() || in.TTL != 64 {
			t.Fatalf("verdict %d for %v", x.verdict, in)
		}
		verdict, back := w.fromContainer(c, answerTo(in))
		if verdict != redirect || back.Src != s.Dst || back.Dst != s.Src || back.TTL != 64 {
			t.Fatalf("verdict %d for %v", verdict, back)
		}
		w.carry(w.fromOutside(), more(s))
		if p := w.pairs()[0]; p.State != datapath.FlowEstablished || p.Packets != [2]uint64{2, 1} || !p.Active || len(w.pairs()) != 1 {
			t.Errorf("pair %+v", p)
		}
		if verdict, _ := w.send(datapath.ToUplink, w.abroad.uplink, back); verdict != next {
			t.Errorf("at the uplink's egress: verdict %d", verdict)
		}
	})
}

func TestAClientOutsideReachesAHostProcess(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.service(serviceID, vips, []container{outside()})
		s := visit(family, proto, 40000)
		x := w.carry(w.fromOutside(), s)
		in := w.decode(x.seen)
		if x.verdict != next || in.Src != s.Src || in.Dst != netip.AddrPortFrom(outside().addr[family], targetPort) || in.DstMAC.String() != w.abroad.mac.String() {
			t.Fatalf("verdict %d for %v", x.verdict, in)
		}
		if verdict, back := w.send(datapath.ToUplink, w.abroad.uplink, answerTo(in)); verdict != next || back.Src != s.Dst || back.Dst != s.Src {
			t.Errorf("verdict %d for %v", verdict, back)
		}
	})
}

// In host stack mode both directions pass the host's firewall, and are translated at the uplink.
func TestAClientOutsideByTheHostsStack(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.settings(datapath.Settings{HostStack: true, AntiSpoof: true})
		s := visit(family, proto, 40000)
		x := w.carry(w.fromOutside(), s)
		in := w.decode(x.seen)
		c := w.containerOf(in)
		if x.verdict != next || in.Src != s.Src || in.DstMAC.String() != w.abroad.mac.String() {
			t.Fatalf("verdict %d for %v", x.verdict, in)
		}
		answer := answerTo(in)
		if verdict, got := w.fromContainer(c, answer); verdict != next || got.Src != in.Dst {
			t.Errorf("at the container: verdict %d for %v", verdict, got)
		}
		if verdict, back := w.send(datapath.ToUplink, w.abroad.uplink, answer); verdict != next || back.Src != s.Dst || back.Dst != s.Src {
			t.Errorf("at the uplink: verdict %d for %v", verdict, back)
		}
		// There is no way by the stack to another node.
		w.away(1, elsewhere(1))
		w.settings(datapath.Settings{HostStack: true, AntiSpoof: true})
		if x := w.carry(w.fromOutside(), visit(family, proto, 40001)); x.verdict != redirect || w.decode(x.seen).DstMAC.String() != nodeMAC(1).String() {
			t.Errorf("to another node: verdict %d for %v", x.verdict, w.decode(x.seen))
		}
	})
}

func TestClientsOutsideAreRefused(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		s := visit(family, proto, 40000)
		s.Payload = []byte("twenty bytes or more")
		s.Dst = netip.AddrPortFrom(vips[family], 81)
		w.refused(datapath.FromUplink, w.abroad.uplink, s, "no-frontend")
		s.Dst = netip.AddrPortFrom(vips[family], servicePort)
		all, err := w.d.Frontends()
		w.check(err)
		key := lb.Frontend{VIP: vips[family], Port: servicePort, Protocol: proto}
		only := all[key]
		only.Allow = true
		w.check(w.d.PutFrontends(map[lb.Frontend]datapath.Frontend{key: only}))
		w.dropped(w.fromOutside(), s, "not-allowed")
		allowed := datapath.AllowKey{Service: serviceID, Prefix: netip.PrefixFrom(beyond[family], beyond[family].BitLen()-8).Masked()}
		w.check(w.d.PutAllow(allowed))
		defer func() { w.check(w.d.DeleteAllow(allowed)) }()
		if x := w.carry(w.fromOutside(), s); x.verdict != redirect {
			t.Errorf("allowed: verdict %d", x.verdict)
		}
	})
}

func TestPingsFromOutside(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.goAbroad()
		request := ping(beyond[family], vips[family], family, 56)
		x := w.carry(w.fromOutside(), request)
		if got := w.decode(x.seen); x.verdict != redirect || got.DstMAC.String() != w.abroad.uplink.mac.String() || got.SrcMAC.String() != w.abroad.mac.String() {
			t.Errorf("verdict %d for %v", x.verdict, got)
		}
		w.pong(request, w.decode(x.seen), family)
	}
}

// What is not for a VIP, or not for this host, passes both ways as it is.
func TestWhatIsNotForUsPassesTheUplink(t *testing.T) {
	for family, name := range families {
		w := newWorld(t, 1)
		w.goAbroad()
		for _, proto := range []lb.Protocol{lb.TCP, lb.UDP} {
			w.carry(w.fromOutside(), visit(family, proto, 40000))
			s := visit(family, proto, 40000)
			s.Dst = netip.AddrPortFrom(elsewhere(7).addr[family], servicePort)
			w.untouched(w.fromOutside(), s)
			w.untouched(leg{datapath.ToUplink, w.abroad.uplink}, s)
			w.untouched(leg{datapath.ToUplink, w.abroad.uplink}, visit(family, proto, 40000)) // of a process here
			flooded := visit(family, proto, 40001)
			flooded.SrcMAC, flooded.DstMAC = w.abroad.uplink.mac, []byte{2, 0, 0, 0, 7, 7}
			frame, err := flooded.Build()
			w.check(err)
			if verdict, out := w.run(datapath.FromUplink, w.abroad.uplink.ifindex, frame); verdict != next || !bytes.Equal(out, frame) {
				t.Errorf("%s: a frame for somebody else: verdict %d", name, verdict)
			}
		}
		w.untouched(w.fromOutside(), ping(beyond[family], elsewhere(7).addr[family], family, 20))
		if n := len(w.pairs()); n != 2 {
			t.Errorf("%s: %d pairs", name, n)
		}
		w.noDrops()
	}
}

// Containers that are attached here do not send from outside: neither a new flow, nor into one.
func TestNobodyOutsideIsAContainer(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		f := w.flow(vips[family], family, proto, 40000)
		f.establish()
		s := packet.Spec{Src: f.client, Dst: f.vip, Protocol: proto, Flags: packet.ACK, Seq: 1001, Ack: backendISN + 1}
		before := w.pairs()[0]
		w.dropped(w.fromOutside(), s, "spoofed")
		w.dropped(w.fromOutside(), reply(f.target), "spoofed")
		if after := w.pairs()[0]; after.Packets != before.Packets {
			t.Errorf("they count: %v, before %v", after.Packets, before.Packets)
		}
		s.Src, s.Flags = netip.AddrPortFrom(f.client.Addr(), 40001), packet.SYN
		w.dropped(w.fromOutside(), s, "spoofed")
		w.settings(datapath.Settings{})
		if x := w.carry(w.fromOutside(), s); x.verdict != redirect {
			t.Errorf("without antiSpoof: verdict %d", x.verdict)
		}
	})
}

// What a removed backend still answers becomes a reset for its client, outside too.
func TestARemovedBackendsAnswerResetsItsClientOutside(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.goAbroad()
		s := visit(family, lb.TCP, 40000)
		x := w.carry(w.fromOutside(), s)
		c := w.containers[0]
		answer := answerTo(w.decode(x.seen))
		w.fromContainer(c, answer)
		w.carry(w.fromOutside(), more(s))
		_, err := w.d.RetireEndpoint(c.ifindex, nil)
		w.check(err)
		answer.Flags, answer.Seq = packet.ACK, backendISN+1
		verdict, got := w.fromContainer(c, answer)
		if verdict != redirect || got.Src != s.Dst || got.Dst != s.Src || got.Flags != packet.RST || got.Seq != backendISN+1 || got.DstMAC.String() != w.abroad.uplink.mac.String() {
			t.Errorf("verdict %d for %v", verdict, got)
		}
	}
}

// A test run shows where a packet goes by its MAC address alone: the pair says by which way.
func TestRoadsOutsideLeaveByTheUplink(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.goAbroad()
		w.carry(w.fromOutside(), visit(family, lb.TCP, 40000))
		w.edit(w.pairs()[0].Index, func(p *rawPair) {
			if h := p.Half[1]; h.Deliver != uint8(bpf.MapsDeliverDELIVER_UPLINK) || h.Ifindex != w.abroad.uplink.ifindex {
				t.Errorf("answers leave by way %d, device %d", h.Deliver, h.Ifindex)
			}
		})
	}
}
