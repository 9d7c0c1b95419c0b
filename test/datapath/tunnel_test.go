package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// ask is the first packet of a client to a server.
func ask(client, server netip.AddrPort, proto lb.Protocol) packet.Spec {
	return packet.Spec{Src: client, Dst: server, Protocol: proto, Flags: packet.SYN, Seq: 1000}
}

// next of a flow: the answer to its first packet as it was seen.
func answerTo(seen packet.Spec) packet.Spec {
	s := reply(seen)
	s.Flags, s.Seq, s.Ack, s.TTL = packet.SYN|packet.ACK, backendISN, seen.Seq+1, 64
	return s
}

// more is a packet in the middle of a flow that began with ask.
func more(s packet.Spec) packet.Spec {
	s.Flags, s.Seq, s.Ack, s.Payload = packet.ACK|packet.PSH, 1001, backendISN+1, []byte("more of it")
	return s
}

// eachAbroad is each with other nodes.
func eachAbroad(t *testing.T, f func(t *testing.T, w *world, family int, proto lb.Protocol)) {
	t.Helper()
	w := newWorld(t, 3)
	w.goAbroad()
	for family, name := range families {
		for _, proto := range []lb.Protocol{lb.TCP, lb.UDP} {
			w.inside(t, name+"/"+proto.String(), func(w *world) { f(w.t.(*testing.T), w, family, proto) })
			w.flush()
			w.settings(datapath.Settings{AntiSpoof: true})
			w.service(serviceID, vips, w.containers)
			w.node(1, 0, datapath.SNATNever)
			w.node(2, 0, datapath.SNATNever)
		}
	}
}

func TestABackendOnAnotherNode(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.away(1, elsewhere(1))
		client := netip.AddrPortFrom(w.client.addr[family], 40000)
		s := ask(client, netip.AddrPortFrom(vips[family], servicePort), proto)
		verdict, out := w.fromContainer(w.client, s)
		target := netip.AddrPortFrom(elsewhere(1).addr[family], targetPort)
		if verdict != redirect || out.Dst != target || out.Src != client || out.DstMAC.String() != nodeMAC(1).String() || out.TTL != 63 {
			t.Fatalf("verdict %d for %v", verdict, out)
		}
		if p := w.pairs()[0]; len(w.pairs()) != 1 || p.BackendZone != 1 || p.Zone != 0 || p.Return {
			t.Errorf("pair %+v", p)
		}
		for _, zone := range []uint16{2, 0} { // the same addresses elsewhere are somebody else
			program := comesFrom(zone)
			if zone == 0 {
				program = datapath.FromContainer
			}
			if _, got := w.send(program, w.abroad.tunnel, answerTo(out)); got.Src == s.Dst {
				t.Errorf("an answer from zone %d became the VIP's: %v", zone, got)
			}
		}
		verdict, back := w.send(comesFrom(1), w.abroad.tunnel, answerTo(out))
		if verdict != redirect || back.Src != s.Dst || back.Dst != client || back.DstMAC.String() != w.client.mac.String() || back.TTL != 64 {
			t.Fatalf("verdict %d for %v", verdict, back)
		}
		w.fromContainer(w.client, more(s))
		if p := pairOf(w.pairs())[[2]netip.AddrPort{client, s.Dst}][proto]; p.State != datapath.FlowEstablished || p.Packets != [2]uint64{2, 1} {
			t.Errorf("pair %+v", p)
		}
	})
}

// withOptions gives a TCP frame without payload options, a multiple of four bytes.
func (w *world) withOptions(s packet.Spec, options []byte) []byte {
	w.t.Helper()
	s.Payload, s.SrcMAC = options, w.client.mac
	frame, err := s.Build()
	w.check(err)
	l4 := 14 + 20
	if s.Src.Addr().Is6() {
		l4 = 14 + 40
	}
	old := uint32(binary.BigEndian.Uint16(frame[l4+12:]))
	frame[l4+12] = byte(5+len(options)/4) << 4
	sum := uint32(^binary.BigEndian.Uint16(frame[l4+16:])) + ^old&0xffff + uint32(binary.BigEndian.Uint16(frame[l4+12:]))
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(frame[l4+16:], ^uint16(sum&0xffff+sum>>16))
	if _, err := packet.Parse(frame); err != nil {
		w.t.Fatal(err)
	}
	return frame
}

// Options with the number of an MSS option behind mss.
func mssAt(padding int, mss uint16) []byte {
	out := make([]byte, padding, 40)
	for i := range out {
		out[i] = 1
	}
	out = binary.BigEndian.AppendUint16(append(out, 2, 4), mss)
	for len(out)%4 != 0 {
		out = append(out, 1)
	}
	return out
}

// Neither side learns that there is a tunnel, so its handshake must not agree on more than fits.
func TestHandshakesAreFittedToTheTunnel(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.away(1, elsewhere(1))
		fits := uint16(nodeMTU - 40 - 20*family)
		s := ask(netip.AddrPortFrom(w.client.addr[family], 40000), netip.AddrPortFrom(vips[family], servicePort), lb.TCP)
		l4 := 14 + 20 + 20*family
		clamps := func(what string, options []byte, at int, want uint16) {
			t.Helper()
			s.Src = netip.AddrPortFrom(s.Src.Addr(), s.Src.Port()+1)
			verdict, out := w.run(datapath.FromContainer, w.client.ifindex, w.withOptions(s, options))
			w.decode(out) // the checksum
			if got := binary.BigEndian.Uint16(out[l4+20+at:]); verdict != redirect || got != want {
				t.Errorf("%s: verdict %d, MSS %d, want %d", what, verdict, got, want)
			}
		}
		clamps("as Linux has it", []byte{2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 1, 3, 3, 7}, 2, fits)
		for padding := range 37 {
			clamps("behind padding", mssAt(padding, 1460), padding+2, fits)
		}
		clamps("large", mssAt(0, 65535), 2, fits)
		clamps("one more", mssAt(0, fits+1), 2, fits)
		clamps("just fits", mssAt(0, fits), 2, fits)
		clamps("small", mssAt(1, 536), 3, 536)
		clamps("behind others", []byte{3, 3, 7, 4, 2, 2, 4, 5, 180, 0, 0, 0}, 7, fits)
		clamps("after the end", []byte{0, 4, 0, 0, 2, 4, 5, 180}, 6, 1460)
		clamps("of a wrong length", []byte{2, 8, 5, 180, 0, 0, 0, 0}, 2, 1460)
		clamps("behind one without length", []byte{3, 0, 1, 1, 2, 4, 5, 180}, 6, 1460)
		if verdict, out := w.fromContainer(w.client, s); verdict != redirect || len(out.Payload) != 0 {
			t.Errorf("without options: verdict %d for %v", verdict, out)
		}
		w.noDrops()
	}
}

// The answer to the handshake is fitted by who has a program: both nodes do it.
func TestAnswersToHandshakesAreFittedToTheTunnel(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.away(1, elsewhere(1))
		fits := uint16(nodeMTU - 40 - 20*family)
		l4 := 14 + 20 + 20*family
		fitted := func(what, program string, on container, s packet.Spec) {
			t.Helper()
			verdict, out := w.run(program, on.ifindex, w.withOptions(s, mssAt(1, 1460)))
			w.decode(out)
			if got := binary.BigEndian.Uint16(out[l4+20+3:]); verdict != redirect || got != fits {
				t.Errorf("%s: verdict %d, MSS %d, want %d", what, verdict, got, fits)
			}
		}
		_, out := w.fromContainer(w.client, ask(netip.AddrPortFrom(w.client.addr[family], 40000), netip.AddrPortFrom(vips[family], servicePort), lb.TCP))
		fitted("at the client's node", comesFrom(1), w.abroad.tunnel, answerTo(out))
		asked := ask(netip.AddrPortFrom(elsewhere(1).addr[family], 40000), netip.AddrPortFrom(w.containers[0].addr[family], targetPort), lb.TCP)
		fitted("at the backend's node, in", comesFrom(1), w.abroad.tunnel, asked)
		_, in := w.send(comesFrom(1), w.abroad.tunnel, asked)
		fitted("at the backend's node, back", datapath.FromContainer, w.containers[0], answerTo(in))
	}
}

// Nothing goes to a node that is not known, and nothing without a tunnel.
func TestNoNodeNoTunnel(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.away(1, elsewhere(1))
		s := ask(netip.AddrPortFrom(w.client.addr[family], 40000), netip.AddrPortFrom(vips[family], servicePort), proto)
		before := w.drops("tunnel-node")
		w.check(w.d.DeleteNode(1))
		if verdict, _ := w.fromContainer(w.client, s); verdict != drop || w.drops("tunnel-node") != before+1 {
			t.Errorf("verdict %d, %d drops", verdict, w.drops("tunnel-node")-before)
		}
		w.node(1, 0, datapath.SNATNever)
		w.check(w.d.PutSettings(datapath.Settings{}))
		s.Src = netip.AddrPortFrom(s.Src.Addr(), 40001)
		if verdict, _ := w.fromContainer(w.client, s); verdict != drop || w.drops("tunnel-node") != before+2 {
			t.Errorf("verdict %d, %d drops", verdict, w.drops("tunnel-node")-before)
		}
	})
}
