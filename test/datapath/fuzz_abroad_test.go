package datapath

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// FuzzPacketsAbroad is FuzzPackets with other nodes, VLANs and clients outside: the third service's backends are on node 1, which
// may answer clients outside by itself, and in VLAN 100. Its oracle knows less: it judges what is translated, by the pair that the
// frame belongs to, and that nothing is lost uncounted.
func FuzzPacketsAbroad(f *testing.F) {
	l := newLab(f)
	l.goAbroad()
	l.vlan(100, elsewhere(2))
	l.sourcesIn(100, true)
	l.service(3, vips3, []container{elsewhere(1), elsewhere(2)})
	l.letDSR(true)
	for id, b := range l.backends {
		switch {
		case b.Service == 3 && isAt(netip.AddrFrom16(b.Addr).Unmap(), elsewhere(1)):
			l.backends[id].Zone = 1
		case b.Service == 3:
			l.backends[id].Zone = zoneOf(100)
		}
	}
	l.made = slices.Clone(l.backends)
	fronts, err := l.d.Frontends()
	l.check(err)
	var direct []lb.Frontend // their own addresses are no business of this node
	for front := range fronts {
		if isAt(front.VIP, elsewhere(1)) || isAt(front.VIP, elsewhere(2)) {
			direct = append(direct, front)
		}
	}
	l.check(l.d.DeleteFrontends(direct))
	l.far = true
	for _, node := range []uint16{1, 2, 9} {
		l.program(comesFrom(node)) // to be kept for all inputs
	}
	for _, id := range []uint16{100, 101} {
		l.program(withTag(dot1q, id))
	}
	l.up()
	for _, input := range []string{
		"\x00\x00\x00\x01\x00\x00\x00\x03\x00\x04\x00\x40\x04\x00\x40", "\x00\x00\x01\x01\x00\x02\x00\x03\x00\x04\x00\x40",
		"\x00\x00\x02\x01\x01\x01\x01\x04\x00\x04\x00\x40\x08\x00\x00", "\x00\x0a\x03\x02\x01\x00\x01\x03\x00\x10\x04\x00\x40",
	} {
		f.Add([]byte(input))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		l.enter(t)
		if len(input) == 0 {
			return
		}
		if err := l.play(input); err != nil {
			t.Error(err)
		}
	})
}

// legAbroad is where packets from an address elsewhere meet a program.
func (s *script) legAbroad(from netip.Addr) (leg, bool) {
	switch {
	case !s.far:
		return leg{}, false
	case slices.Contains(beyond[:], from):
		return s.fromOutside(), true
	case isAt(from, elsewhere(1)):
		return s.fromNode(1), true
	case isAt(from, elsewhere(2)):
		return s.fromVLAN(100), true
	}
	return leg{}, false
}

func isAt(a netip.Addr, c container) bool { return slices.Contains(c.addr[:], a) }

// mark makes some of the frames of other nodes say what nodes say to each other about direct answers.
func (s *script) mark(l leg, frame []byte) []byte {
	if !strings.HasPrefix(l.program, datapath.FromOverlay) || len(frame) < etherLen+40 {
		return frame
	}
	switch b := s.next(); b & 7 {
	case 1, 3:
		copy(frame, markMAC(b&3))
	case 2:
		return told(frame[:len(frame)-len(behind(frame))], netip.AddrPortFrom(vips3[b>>3&1], servicePort))
	}
	return frame
}

// zone is where the frame comes from.
func (e *event) zone() uint16 {
	if e.program == withTag(dot1q, 100) {
		return zoneOf(100)
	}
	node, _ := e.byTunnel()
	return node
}

// byTunnel says whether the frame came from another node, and which.
func (e *event) byTunnel() (node uint16, is bool) {
	if !strings.HasPrefix(e.program, datapath.FromOverlay) {
		return 0, false
	}
	for n := range uint16(10) {
		if e.program == comesFrom(n) {
			return n, true
		}
	}
	return 0, true
}

// judgeAbroad returns what is wrong.
func (o *oracle) judgeAbroad(e *event) error {
	if err := o.whole(e.before, e.after); err != nil {
		return err
	}
	node, tunnelled := e.byTunnel()
	counted := e.refusals()
	held := e.after.ring.Held != e.before.ring.Held
	switch {
	case e.verdict != next && e.verdict != drop && e.verdict != redirect:
		return fmt.Errorf("verdict %d", e.verdict)
	case len(counted) > 1:
		return fmt.Errorf("one packet counted as %v", counted)
	case e.verdict == drop && len(counted) == 0 && !held && e.program != datapath.FromHost && !(tunnelled && bytes.Equal(e.in[:6], markCopy)):
		return fmt.Errorf("dropped uncounted")
	case e.verdict == next && (tunnelled || e.program == datapath.FromHost):
		return fmt.Errorf("let on to the stack")
	case tunnelled && node == 9 && e.verdict != drop:
		return fmt.Errorf("a stranger is believed")
	case e.verdict == drop:
		return nil
	}
	if _, err := packet.Parse(e.in); err == nil {
		if _, err := packet.Parse(e.out); err != nil && !e.v.minusZero(e.out) {
			return fmt.Errorf("became wrong: %w", err)
		}
	}
	if o.forOthers(e) {
		return e.untouched()
	}
	if len(counted) > 0 || e.v.kind != kindStream {
		return nil // an answer, or what FuzzPackets judges
	}
	return o.judgeStreamAbroad(e)
}

// forOthers says whether a frame is addressed to another host of an uplink's or a trunk's link.
func (o *oracle) forOthers(e *event) bool {
	mac := o.abroad.mac
	if strings.HasPrefix(e.program, datapath.FromTrunk) {
		mac = o.abroad.trunkMAC
	} else if e.program != datapath.FromUplink {
		return false
	}
	return !bytes.Equal(e.in[:6], mac) && e.in[0]&1 == 0
}

// judgeStreamAbroad: a packet with ports is of no flow and untouched, or becomes what its pair says.
func (o *oracle) judgeStreamAbroad(e *event) error {
	tuple := e.v.tuple()
	tuple.Zone = e.zone()
	p, _, dir := e.after.half(tuple)
	if p == nil {
		if _, tunnelled := e.byTunnel(); tunnelled {
			return nil // a probe
		}
		return e.untouched()
	}
	if e.passesBy(p, dir) || e.program == datapath.ToUplink && dir == 0 {
		return e.untouched()
	}
	if o.goesByTheHost(e, p, dir) {
		return nil
	}
	t := e.target(p, dir)
	if e.program == datapath.ToUplink {
		t.deliver, t.mac = toStack, nil
	}
	if p.Flags&uint32(bpf.MapsCtPairFlagPAIR_RETURN) == 0 && t.deliver < toTunnel && e.v.flags&synFlag == 0 {
		return translated(e.in, e.out, &e.v, t)
	}
	got, err := packet.Parse(e.out)
	if err != nil {
		return nil //nolint:nilerr // as it came
	}
	if got.Src != netip.AddrPortFrom(t.src, t.sport) || got.Dst != netip.AddrPortFrom(t.dst, t.dport) {
		return fmt.Errorf("became %v, want it from %v:%d to %v:%d", got, t.src, t.sport, t.dst, t.dport)
	}
	return nil
}
