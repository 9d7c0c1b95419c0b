package datapath

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// event is a frame that went through a program, with the table before and after it.
type event struct {
	leg
	in, out       []byte
	verdict       uint32
	before, after *state
	v             view
}

// refusals lists what was counted.
func (e *event) refusals() []int {
	var out []int
	for r := range e.after.drops {
		for range e.after.drops[r] - e.before.drops[r] {
			out = append(out, r)
		}
	}
	return out
}

// datagram is what fragments have in common. In IPv6 the id alone tells datagrams apart (RFC 8200 4.5).
type datagram struct {
	src, dst netip.Addr
	id       uint32
	proto    uint8
}

func (v *view) datagram() datagram {
	d := datagram{src: v.src, dst: v.dst, id: v.id}
	if v.v4 {
		d.proto = v.proto
	}
	return d
}

// note is what became of a first fragment.
type note struct {
	pass      bool
	pair, dir int
	life      uint32
}

// oracle says what the programs had to do with a frame. It knows the world, reads the flows from the
// table, and keeps account of fragments on its own.
type oracle struct {
	*lab
	set   datapath.Settings
	notes map[datagram]note
	held  map[datagram][][]byte
}

func newOracle(l *lab, set datapath.Settings) *oracle {
	return &oracle{lab: l, set: set, notes: map[datagram]note{}, held: map[datagram][][]byte{}}
}

func isVIP(a netip.Addr) bool {
	return slices.Contains(vips[:], a) || slices.Contains(vips2[:], a) || slices.Contains(vips3[:], a)
}

func (o *oracle) isBackend(a netip.Addr) bool {
	for _, c := range append(o.containers, o.client, outside()) {
		if slices.Contains(c.addr[:], a) {
			return true
		}
	}
	return false
}

// serves says whether a service listens on what the packet is for.
func serves(v *view) bool {
	first := slices.Contains(vips[:], v.dst) && (v.dport == emptyPort || v.dport == allowPort)
	return isVIP(v.dst) && v.dport == servicePort || first
}

// owns says whether the frame comes from an address of the container that sent it.
func (e *event) owns() bool { return slices.Contains(e.on.addr[:], e.v.src) }

// fromSender says whether the program is one that flows begin at.
func (e *event) fromSender() bool { return e.program != datapath.ToContainer }

// judge returns what is wrong.
func (o *oracle) judge(e *event) error {
	if err := o.whole(e.before, e.after); err != nil {
		return err
	}
	counted := e.refusals()
	switch {
	case e.verdict != next && e.verdict != drop && e.verdict != redirect:
		return fmt.Errorf("verdict %d", e.verdict)
	case e.verdict == drop && len(counted) == 0:
		return o.judgeSilence(e)
	case len(counted) > 0:
		return o.judgeRefusal(e, counted)
	}
	return o.judgePassage(e)
}

// judgePassage: what goes on is untouched, or translated, or an answer to a ping.
func (o *oracle) judgePassage(e *event) error {
	switch e.v.kind {
	case kindMalformed, kindOther, kindForeign:
		if e.v.kind == kindMalformed && isVIP(e.v.dst) && e.fromSender() {
			return fmt.Errorf("malformed packet to a VIP passed")
		}
		return e.untouched()
	case kindStream:
		return o.judgeStream(e)
	case kindLater:
		return o.judgeLater(e)
	}
	return o.judgeMessage(e)
}

// untouched asserts that a frame goes on as it is. Nothing does by tclb0.
func (e *event) untouched() error {
	if e.verdict != next || e.program == datapath.FromHost {
		return fmt.Errorf("verdict %d for what is not ours", e.verdict)
	}
	if !bytes.Equal(e.in, e.out) {
		return fmt.Errorf("not ours, but changed")
	}
	return nil
}

// way asserts the verdict for what goes to a target.
func (e *event) way(t target) error {
	want := uint32(redirect)
	if e.program == datapath.ToContainer || e.program == datapath.FromContainer && t.deliver == toStack {
		want = next
	}
	if e.verdict != want {
		return fmt.Errorf("verdict %d for what is translated, want %d", e.verdict, want)
	}
	return nil
}

// byTheHost asserts that an answer is left to to_container, and is addressed to the bridge.
func (o *oracle) byTheHost(e *event) error {
	if e.verdict != next {
		return fmt.Errorf("verdict %d for what goes by the host", e.verdict)
	}
	c := changed(e.in, e.out)
	if e.owns() {
		c.becomes("destination MAC", 0, []byte{2, 0, 0, 0, 9, 9})
	}
	return c.end()
}

// passesBy says whether a frame of a half goes on as it is, and how.
func (e *event) passesBy(p *rawPair, dir int) bool {
	direct := p.Flags&uint32(bpf.MapsCtPairFlagPAIR_DIRECT) != 0 && p.Half[1].Tuple.Dport == p.Half[0].Tuple.Sport
	return direct && e.program != datapath.FromHost || e.program == datapath.ToContainer && dir == 0
}

func (o *oracle) goesByTheHost(e *event, p *rawPair, dir int) bool {
	return e.program == datapath.FromContainer && dir == 1 && p.Half[dir].Deliver == toStack
}

func (o *oracle) judgeStream(e *event) error {
	p, number, dir := e.after.half(e.v.tuple())
	if p == nil {
		if isVIP(e.v.dst) && e.fromSender() {
			return fmt.Errorf("a VIP's packet left without a flow")
		}
		o.first(e, note{pass: true}, nil)
		return o.released(e, nil, e.untouched)
	}
	n := note{pair: number, dir: dir, life: p.Life}
	if e.passesBy(p, dir) {
		n.pass = e.program == datapath.ToContainer
		o.first(e, n, nil)
		return o.released(e, nil, e.untouched)
	}
	if err := o.newPair(e, p, number); err != nil {
		return err
	}
	if o.foreign(e, p) {
		return fmt.Errorf("a spoofed packet of a flow went on")
	}
	if o.goesByTheHost(e, p, dir) {
		o.first(e, n, nil)
		return o.released(e, nil, func() error { return o.byTheHost(e) })
	}
	t := e.target(p, dir)
	o.first(e, n, &t)
	return o.released(e, &t, func() error {
		if err := e.way(t); err != nil {
			return err
		}
		return translated(e.in, e.out, &e.v, t)
	})
}

// target is what the frame becomes by this program, as a packet of half dir.
func (e *event) target(p *rawPair, dir int) target {
	t := targetOf(p, dir)
	if e.program == datapath.ToContainer {
		t.deliver, t.mac = toStack, nil
	}
	return t
}

// newPair asserts that a pair made for a balanced flow leads to a backend of its service.
func (o *oracle) newPair(e *event, p *rawPair, number int) error {
	if number < len(e.before.pairs) && e.before.pairs[number].Life == p.Life || p.Flags&uint32(bpf.MapsCtPairFlagPAIR_DIRECT) != 0 {
		return nil
	}
	b, want := o.backends[p.Backend], uint32(serviceID)
	switch {
	case slices.Contains(vips2[:], e.v.dst):
		want = 2
	case slices.Contains(vips3[:], e.v.dst):
		want = 3
	}
	back := p.Half[1].Tuple
	if p.Half[0].Tuple != e.v.tuple() || b.Service != want || b.Proto != uint8(lb.Protocol(e.v.proto)) || back.Saddr != b.Addr || back.Sport != b.Port ||
		b.Flags&uint8(bpf.MapsBackendFlagBACKEND_NEW) == 0 || !serves(&e.v) {
		return fmt.Errorf("flow %v got %+v", e.v, p)
	}
	return nil
}

func (o *oracle) judgeLater(e *event) error {
	if o.waits(e) {
		return fmt.Errorf("went on before its datagram's first fragment")
	}
	n, noted := o.notes[e.v.datagram()]
	if noted && !n.pass {
		if !e.lives(n) {
			return fmt.Errorf("translated after its flow's end")
		}
		p := &e.before.pairs[n.pair]
		switch t := e.target(p, n.dir); {
		case e.passesBy(p, n.dir):
			return e.untouched()
		case o.goesByTheHost(e, p, n.dir):
			return o.byTheHost(e)
		default:
			if err := e.way(t); err != nil {
				return err
			}
			return translated(e.in, e.out, &e.v, t)
		}
	}
	if e.fromSender() && isVIP(e.v.dst) && (e.v.v4 && e.v.proto == icmp4 || !e.v.v4 && e.v.proto == icmp6) {
		return e.answered()
	}
	return e.untouched()
}

func (e *event) answered() error {
	if e.verdict != redirect {
		return fmt.Errorf("verdict %d for a ping", e.verdict)
	}
	return turned(e.in, e.out, &e.v)
}

func (o *oracle) judgeMessage(e *event) error {
	v := &e.v
	if v.l4+8 > v.end {
		return e.untouched()
	}
	q, isError := v.quote(e.in)
	request := e.in[v.l4+1] == 0 && (v.v4 && e.in[v.l4] == 8 || !v.v4 && e.in[v.l4] == 128)
	if request && isVIP(v.dst) && e.fromSender() {
		return e.answered()
	}
	if q != nil && q.dst == v.dst {
		if p, _, dir := e.before.half(q.tuple()); p != nil {
			return o.judgeError(e, q, p, dir)
		}
	}
	if isError && isVIP(v.dst) {
		return fmt.Errorf("an error about no flow reached a VIP")
	}
	return e.untouched()
}

func (o *oracle) judgeError(e *event, q *quoted, p *rawPair, dir int) error {
	t := e.target(p, dir)
	spoofed := e.program == datapath.FromContainer && o.set.AntiSpoof && !e.owns()
	switch {
	case q.illegal || o.gone(p) || spoofed:
		return fmt.Errorf("error passed: illegal MTU %v, backend gone %v, spoofed %v", q.illegal, o.gone(p), spoofed)
	case e.passesBy(p, dir):
		return e.untouched()
	case o.goesByTheHost(e, p, dir):
		return o.byTheHost(e)
	}
	if err := e.way(t); err != nil {
		return err
	}
	return translatedError(e.in, e.out, &e.v, q, t)
}
