package datapath

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// hosted is a flow of a client outside that another node chose a backend here for.
type hosted struct {
	w     *world
	asked netip.AddrPort // what the client knows
	sent  packet.Spec    // the client's packet, as it comes by tunnel
	at    leg            // where the backend answers
	seen  packet.Spec    // the last packet as the backend saw it
}

// hosted makes a flow to a container of the world.
func (w *world) hosted(family int, proto lb.Protocol, port uint16) *hosted {
	c := w.containers[0]
	return &hosted{
		w: w, asked: netip.AddrPortFrom(vips[family], servicePort), at: leg{datapath.FromContainer, c},
		sent: ask(netip.AddrPortFrom(beyond[family], port), netip.AddrPortFrom(c.addr[family], targetPort), proto),
	}
}

// forwards lets the world's namespace forward, without which nothing is looked up in its routes.
func (w *world) forwards() {
	w.t.Helper()
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		w.check(os.WriteFile("/proc/sys/net/"+key, []byte("1"), 0o644))
	}
}

// in sends a packet of the client's, with a trailer or what else the frame is made into.
func (h *hosted) in(s packet.Spec, dress func(frame []byte) []byte) {
	h.w.t.Helper()
	s.DstMAC = nodeMAC(100)
	frame, err := s.Build()
	h.w.check(err)
	verdict, out := h.w.run(comesFrom(1), h.w.abroad.tunnel.ifindex, dress(frame))
	h.seen = h.w.decode(out)
	if verdict != redirect || h.seen.Dst != s.Dst || bytes.Contains(behind(out), []byte("tclb")) {
		h.w.t.Fatalf("verdict %d for %v, behind it %x", verdict, h.seen, behind(out))
	}
}

// tell sends one with what the client asked behind it.
func (h *hosted) tell(s packet.Spec) {
	h.w.t.Helper()
	h.in(s, func(frame []byte) []byte { return told(frame[:len(frame)-len(behind(frame))], h.asked) })
}

// marked sends one that says a kind, without a trailer.
func (h *hosted) marked(s packet.Spec, mac []byte) {
	h.w.t.Helper()
	h.in(s, func(frame []byte) []byte { copy(frame, mac); return frame })
}

// back sends the backend's answer; direct says whether it has to go to the client by itself.
func (h *hosted) back(what string, s packet.Spec, direct bool) {
	h.w.t.Helper()
	verdict, got := h.w.send(h.at.program, h.at.on, s)
	src, mac, ttl := h.sent.Dst, nodeMAC(1), uint8(63)
	if direct {
		src, mac, ttl = h.asked, h.w.abroad.uplink.mac, 64
	}
	if p := h.w.pairs(); verdict != redirect || got.Src != src || got.Dst != h.sent.Src || got.TTL != ttl || p[0].DSR != direct && len(p) == 1 {
		h.w.t.Errorf("%s: verdict %d for %v, want it from %v; %+v", what, verdict, got, src, p)
	}
	control := got.Protocol == lb.TCP && got.Flags&(packet.SYN|packet.FIN|packet.RST) != 0
	if want := mac.String(); got.DstMAC.String() != want && !(direct && control) { // a copy has changed it
		h.w.t.Errorf("%s: to %v, want %s", what, got.DstMAC, want)
	}
}

// follows is the client's next packet, answers the backend's to what it saw last.
func (h *hosted) follows() packet.Spec { return more(h.sent) }

func (h *hosted) answers() packet.Spec {
	s := reply(h.seen)
	s.Flags, s.Seq, s.Ack, s.TTL, s.Payload = ack, backendISN+1, clientISN+1, 64, []byte("response")
	return s
}

// eachHosted runs a scenario with a client that is behind this node's uplink.
func eachHosted(t *testing.T, f func(t *testing.T, w *world, h *hosted)) {
	t.Helper()
	for family, name := range families {
		for _, proto := range []lb.Protocol{lb.TCP, lb.UDP} {
			t.Run(name+"/"+proto.String(), func(t *testing.T) {
				w := newWorld(t, 1)
				w.realUplink()
				w.forwards()
				f(t, w, w.hosted(family, proto, 40000))
			})
		}
	}
}

func TestABackendsNodeAnswersTheClient(t *testing.T) {
	eachHosted(t, func(_ *testing.T, w *world, h *hosted) {
		h.tell(h.sent)
		h.back("the first answer", answerTo(h.seen), true)
		h.marked(h.follows(), markDSR)
		h.back("the next one", h.answers(), true)
		odd := h.follows()
		odd.Payload = []byte("odd")
		h.tell(odd) // its segments may have one too
		h.back("after another trailer", h.answers(), true)
		if p := w.pairs(); len(p) != 1 || !p[0].DSR || !p[0].Return || p[0].State != established {
			w.t.Errorf("pairs %+v", p)
		}
		h.asked = netip.AddrPortFrom(h.asked.Addr().Next(), 8443)
		h.tell(h.follows())
		h.back("asked another VIP", h.answers(), true)
		w.noDrops()
		w.assertWhole()
	})
}

// Whatever it does not know, it leaves to the node that chose.
func TestAnswersGoBackWhereTheyCannotLeave(t *testing.T) {
	eachHosted(t, func(_ *testing.T, w *world, h *hosted) {
		entries := w.openMap(bpf.MapsMapDsrVips)
		forget := func() {
			for _, p := range w.pairs() {
				w.check(entries.Put(p.Index, &bpf.MapsDsrVip{}))
			}
		}
		begin := func() {
			w.flush()
			h.tell(h.sent)
			h.back("begun", answerTo(h.seen), true)
		}
		begin()
		h.marked(h.follows(), nodeMAC(100))
		h.back("who chose knows nothing of it", h.answers(), false)
		h.tell(h.follows())
		h.back("and now it does", h.answers(), true)
		forget()
		h.marked(h.follows(), markDSR)
		h.seen.Dst = h.sent.Dst
		verdict, got := w.send(h.at.program, h.at.on, h.answers())
		if verdict != redirect || got.Src != h.sent.Dst || got.DstMAC.String() != nodeMAC(1).String() {
			w.t.Errorf("forgotten: verdict %d for %v", verdict, got)
		}
		begin()
		w.check(w.d.DeleteUplink(w.abroad.uplink.ifindex))
		w.age(w.pairs()[0].Index, time.Second)
		h.tell(h.follows())
		h.back("the uplink is one no more", h.answers(), false)
		w.flush()
		h.tell(h.sent)
		h.back("without an uplink", answerTo(h.seen), false)
		h.marked(h.follows(), markDSR)
		h.back("nor later", h.answers(), false)
		w.check(w.d.PutUplink(w.abroad.uplink.ifindex, [6]byte(w.abroad.mac)))
		w.flush()
		far := h.sent
		far.Src = netip.AddrPortFrom(elsewhere(9).addr[familyIndex(far.Src.Addr())], 40000)
		h.sent = far
		h.tell(h.sent)
		h.back("a client without a route", answerTo(h.seen), false)
	})
}

func familyIndex(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// What is not whole is no trailer, and what no node of ours has marked is none either.
func TestOnlyWholeTrailersCount(t *testing.T) {
	eachHosted(t, func(_ *testing.T, w *world, h *hosted) {
		for what, dress := range map[string]func(frame []byte) []byte{
			"a client's":     func(f []byte) []byte { return append(f[:6:6], told(f, h.asked)[6:]...) },
			"cut short":      func(f []byte) []byte { f = told(f, h.asked); return f[:len(f)-2] },
			"longer":         func(f []byte) []byte { return append(told(f, h.asked), 0, 0) },
			"of a wrong sum": func(f []byte) []byte { f = told(f, h.asked); f[len(f)-3]++; return f },
			"of other words": func(f []byte) []byte {
				f = told(f, h.asked)
				b := f[len(f)-trailerLen:]
				b[0]++
				binary.BigEndian.PutUint16(b[trailerLen-2:], ^foldWords(b[:trailerLen-2]))
				return f
			},
			"of another family": func(f []byte) []byte {
				return told(f, netip.AddrPortFrom(vips[1-familyIndex(h.asked.Addr())], servicePort))
			},
			"none": func(f []byte) []byte { copy(f, markTells); return f },
		} {
			w.flush()
			s := h.sent
			s.DstMAC = nodeMAC(100)
			frame, err := s.Build()
			w.check(err)
			frame = frame[:len(frame)-len(behind(frame))]
			verdict, out := w.run(comesFrom(1), w.abroad.tunnel.ifindex, dress(frame))
			if h.seen = w.decode(out); verdict != redirect || h.seen.Dst != s.Dst {
				w.t.Fatalf("%s: verdict %d for %v", what, verdict, h.seen)
			}
			h.back(what, answerTo(h.seen), false)
		}
	})
}

// Both ends of an answer's fragments are those of the first one.
func TestFragmentsOfAnswersLeaveByThemselves(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.realUplink()
		w.forwards()
		h := w.hosted(family, lb.UDP, 40000)
		k := &tap{w: w}
		h.tell(h.sent)
		answer := h.answers()
		answer.SrcMAC, answer.Payload = h.at.on.mac, bytes.Repeat([]byte("8000"), 2000)
		frame, err := answer.Build()
		w.check(err)
		var got [][]byte
		for _, piece := range k.pieces(frame, 1400) {
			verdict, out := k.push(h.at, piece)
			if got = append(got, out); verdict != redirect || !bytes.Equal(out[:6], w.abroad.uplink.mac) {
				t.Fatalf("verdict %d, to %x", verdict, out[:6])
			}
		}
		whole, err := packet.Reassemble(got)
		w.check(err)
		if s := w.decode(whole); s.Src != h.asked || s.Dst != h.sent.Src || !bytes.Equal(s.Payload, answer.Payload) {
			t.Errorf("got %v", s)
		}
	}
}

// A SYN that is refused is answered by way of the node that chose, which may have another backend; so are errors,
// which it counts.
func TestRefusalsGoToWhoChose(t *testing.T) {
	eachHosted(t, func(t *testing.T, w *world, h *hosted) {
		h.tell(h.sent)
		if h.sent.Protocol == lb.TCP {
			s := answerTo(h.seen)
			s.Flags, s.Seq = rstAck, 0
			verdict, got := w.send(h.at.program, h.at.on, s)
			if verdict != redirect || got.Src != h.sent.Dst || got.DstMAC.String() != nodeMAC(1).String() {
				t.Errorf("verdict %d for %v", verdict, got)
			}
			return
		}
		s := h.seen
		s.SrcMAC, s.DstMAC = nil, nil
		frame, err := s.Build()
		w.check(err)
		family := familyIndex(h.asked.Addr())
		e := packet.Spec{
			Src: netip.AddrPortFrom(h.at.on.addr[family], 0), Dst: netip.AddrPortFrom(h.sent.Src.Addr(), 0),
			ICMP: &packet.ICMP{Type: [2]uint8{3, 1}[family], Code: [2]uint8{3, 4}[family], Quote: packet.Quote(frame, 8)},
		}
		verdict, got := w.send(h.at.program, h.at.on, e)
		if verdict != redirect || got.Src.Addr() != h.at.on.addr[family] || got.DstMAC.String() != nodeMAC(1).String() {
			t.Errorf("verdict %d for %v", verdict, got)
		}
	})
}

// A process of the node, which sees the hairpin address, is a backend as good as any.
func TestAHostProcessAnswersTheClient(t *testing.T) {
	eachHosted(t, func(_ *testing.T, w *world, h *hosted) {
		family := familyIndex(h.asked.Addr())
		h.sent.Dst = netip.AddrPortFrom(outside().addr[family], targetPort)
		h.at = leg{datapath.FromHost, w.host}
		h.tell(h.sent)
		h.back("the first answer", answerTo(h.seen), true)
		h.marked(h.follows(), markDSR)
		h.back("the next one", h.answers(), true)
	})
}

// The client's packets come by tunnel still, so its answer to a SYN must promise no more than fits. What opens
// and closes a flow goes to the node that chose as well, as the client sees it.
func TestCopiesAndHandshakesOfDirectAnswers(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.realUplink()
		w.forwards()
		h := w.hosted(family, lb.TCP, 40000)
		next := w.copies()
		h.tell(h.sent)
		fits := uint16(nodeMTU - 40 - 20*family)
		l4 := 14 + 20 + 20*family
		verdict, out := w.run(h.at.program, h.at.on.ifindex, w.withOptions(answerTo(h.seen), mssAt(1, 1460)))
		if got := w.decode(out); verdict != redirect || got.Src != h.asked {
			t.Errorf("verdict %d for %v", verdict, got)
		}
		copied := next()
		for what, frame := range map[string][]byte{"to the client": out, "its copy": copied} {
			if got := binary.BigEndian.Uint16(frame[l4+20+3:]); got != fits {
				t.Errorf("%s: MSS %d, want %d", what, got, fits)
			}
		}
		expect := func(what string, frame []byte, flags packet.Flags) {
			t.Helper()
			if got := w.decode(frame); got.Src != h.asked || got.Dst != h.sent.Src || got.Flags != flags || got.DstMAC.String() != markCopy.String() {
				t.Errorf("%s: %v", what, got)
			}
		}
		expect("the handshake's copy", copied, synAck)
		h.marked(h.follows(), markDSR)
		h.back("data", h.answers(), true)
		for _, flags := range []packet.Flags{finAck, rstAck} {
			s := h.answers()
			s.Flags = flags
			h.back("the end", s, true)
			expect("the end's copy", next(), flags)
		}
	}
}

// copies opens the tunnel's device and returns what reads the next copy that leaves by it.
func (w *world) copies() func() []byte {
	w.t.Helper()
	near, err := netlink.LinkByIndex(int(w.abroad.tunnel.ifindex))
	w.check(err)
	far, err := netlink.LinkByIndex(near.Attrs().ParentIndex)
	w.check(err)
	w.check(netlink.LinkSetUp(near))
	w.check(netlink.LinkSetUp(far))
	k, fd := &wires{w: w}, w.sniffer()
	probe := append(bytes.Repeat([]byte{0xff}, 12), make([]byte, 48)...)
	for seen := make([]byte, 12); !bytes.Equal(seen, probe[:12]); time.Sleep(time.Millisecond) {
		w.transmit(near.Attrs().Index, probe) // a device that has just come up loses what is sent
		for n := 0; n >= 0 && !bytes.Equal(seen, probe[:12]); {
			n, _, _ = unix.Recvfrom(fd, seen, 0)
		}
	}
	return func() []byte {
		w.t.Helper()
		return k.arrives(fd, uint32(far.Attrs().Index), func(frame []byte) bool { return bytes.Equal(frame[:6], markCopy) })
	}
}
