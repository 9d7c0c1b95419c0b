package datapath

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// segment is one packet in the life of a TCP connection, and the state of its pair afterwards. Numbers count
// from the initial ones of their side, so the SYN is 0 and the first byte is 1.
type segment struct {
	from     side
	flags    packet.Flags
	seq, ack uint32
	data     int
	state    datapath.FlowState
}

type side bool

const (
	client  side = false
	backend side = true
)

// Short names: lives are read as tables.
const (
	opening     = datapath.FlowOpening
	established = datapath.FlowEstablished
	closing     = datapath.FlowClosing

	syn    = packet.SYN
	ack    = packet.ACK
	synAck = packet.SYN | packet.ACK
	finAck = packet.FIN | packet.ACK
	rst    = packet.RST
	rstAck = packet.RST | packet.ACK
)

// How a life begins.
var (
	asked  = []segment{{client, syn, 0, 0, 0, opening}}
	agreed = append(asked[:1:1], segment{backend, synAck, 0, 1, 0, opening})
	open   = append(agreed[:2:2], segment{client, ack, 1, 1, 0, established})
	// The client has sent 1..101, of which 51..101 are not acknowledged; the backend sent 1..201, seen up to 101.
	busy = append(open[:3:3],
		segment{client, ack, 1, 1, 100, established},
		segment{backend, ack, 1, 51, 200, established},
		segment{client, ack, 101, 101, 0, established})
	halfClosed = append(open[:3:3],
		segment{client, finAck, 1, 1, 0, established},
		segment{backend, ack, 1, 2, 0, established})
	closed = append(halfClosed[:5:5],
		segment{backend, finAck, 1, 2, 0, closing},
		segment{client, ack, 2, 2, 0, closing})
)

const window = 1 << 20

var lives = []struct {
	name  string
	begin []segment
	then  []segment
}{
	{"from SYN_SENT to closed", nil, closed},
	{"the client's late segments after both FINs", closed, []segment{
		{client, finAck, 1, 2, 0, closing}, {backend, finAck, 1, 2, 0, closing}, {client, ack, 2, 2, 0, closing},
	}},
	{"the backend closes first", open, []segment{
		{backend, finAck, 1, 1, 0, established}, {client, ack, 1, 2, 500, established}, {client, finAck, 501, 2, 0, closing},
	}},
	{"both close at once", open, []segment{{client, finAck, 1, 1, 0, established}, {backend, finAck, 1, 1, 0, closing}}},
	{"half closed, the backend goes on", halfClosed, []segment{
		{backend, ack, 1, 2, 1000, established},
		{client, ack, 2, 1001, 0, established},
		{backend, ack, 1001, 2, 1000, established},
		{client, finAck, 1, 1, 0, established},
		{backend, finAck, 2001, 2, 0, closing},
	}},
	{"SYNs are repeated", asked, append([]segment{{client, syn, 0, 0, 0, opening}, {client, syn, 0, 0, 0, opening}}, open[1:]...)},
	{"a new SYN before an answer", asked, []segment{
		{client, syn, 70000, 0, 0, opening},
		{backend, synAck, 0, 1, 0, opening},
		{client, ack, 1, 1, 0, opening}, // for the SYN before
		{backend, synAck, 0, 70001, 0, opening},
		{client, ack, 70001, 1, 0, established},
	}},

	// Only what answers the handshake ends it (field.md 4): nobody fills the main room blindly.
	{"no SYN-ACK", asked, []segment{{client, ack, 1, 1, 0, opening}, {client, ack, 1, 1, 10, opening}, {client, finAck, 1, 1, 0, opening}}},
	{"a SYN-ACK for another SYN", asked, []segment{
		{backend, synAck, 0, 2000, 0, opening},
		{client, ack, 1, 1, 0, opening},
		{backend, synAck, 0, 0, 0, opening},
		{client, ack, 1, 1, 0, opening},
		{backend, synAck, 0, 1, 0, opening},
		{client, ack, 1, 1, 0, established},
	}},
	{"a SYN-ACK of the client", asked, []segment{{client, synAck, 0, 1, 0, opening}, {client, ack, 1, 1, 0, opening}}},
	{"the last ACK is for something else", agreed, []segment{
		{client, ack, 1, 0, 0, opening},
		{client, ack, 1, 2, 0, opening},
		{client, ack, 1, window, 0, opening},
		{client, ack, 1, 0, 0, opening},
		{client, ack, 1, ^uint32(window) + 2, 0, opening},
		{client, ack, 1, 1 << 31, 0, opening},
		{client, ack, 1, 1, 0, established},
	}},
	{"the last ACK comes after the backend's first data", agreed, []segment{
		{backend, ack, 1, 1, 100, opening}, {client, ack, 1, 102, 0, opening}, {client, ack, 1, 51, 0, established},
	}},
	{"a request comes with the last ACK", agreed, []segment{{client, ack, 1, 1, 300, established}}},
	{"data in the SYN, acknowledged", nil, []segment{
		{client, syn, 0, 0, 100, opening}, {backend, synAck, 0, 101, 0, opening}, {client, ack, 101, 1, 0, established},
	}},
	{"data in the SYN, ignored", nil, []segment{
		{client, syn, 0, 0, 100, opening}, {backend, synAck, 0, 1, 0, opening}, {client, ack, 1, 1, 100, established},
	}},
	{"a SYN in a flow that its backend knows", open, []segment{
		{client, syn, 5000, 0, 0, established}, {backend, ack, 1, 1, 0, established}, {client, ack, 1, 1, 10, established},
	}},
	{"a SYN in a flow that its backend forgot", open, []segment{
		{client, syn, 5000, 0, 0, established},
		{backend, synAck, 90000, 5001, 0, opening},
		{client, ack, 5001, 1, 0, opening},
		{client, ack, 5001, 90001, 0, established},
	}},
	{"a SYN-ACK that is repeated", open, []segment{{backend, synAck, 0, 1, 0, established}, {client, ack, 1, 1, 0, established}}},

	// A reset counts where its receiver would heed it (field.md 3), else it just goes on.
	{"the client gives up", asked, []segment{{client, rst, 2, 0, 0, opening}, {client, rst, 0, 0, 0, opening}, {client, rst, 1, 0, 0, closing}}},
	{"the backend refuses", asked, []segment{{backend, rstAck, 0, 0, 0, opening}, {backend, rstAck, 0, 5000, 0, opening}, {backend, rstAck, 0, 1, 0, closing}}},
	{"a refusal without an acknowledgment", asked, []segment{{backend, rst, 0, 1, 0, opening}}},
	{"the client resets the handshake", agreed, []segment{{client, rst, 0, 0, 0, opening}, {client, rst, 2, 0, 0, opening}, {client, rst, 1, 0, 0, closing}}},
	{"the backend resets the handshake", agreed, []segment{{backend, rst, 0, 0, 0, opening}, {backend, rst, 2, 0, 0, opening}, {backend, rst, 1, 0, 0, closing}}},
	{"the client resets, idle", open, []segment{{client, rst, 0, 0, 0, established}, {client, rst, 2, 0, 0, established}, {client, rstAck, 1, 1, 0, closing}}},
	{"the backend resets, idle", open, []segment{{backend, rst, 0, 0, 0, established}, {backend, rst, 2, 0, 0, established}, {backend, rstAck, 1, 1, 0, closing}}},
	{"the client resets at what was acknowledged", busy, []segment{{client, rst, 50, 0, 0, established}, {client, rst, 102, 0, 0, established}, {client, rst, 51, 0, 0, closing}}},
	{"the client resets at its end", busy, []segment{{client, rst, 101, 0, 0, closing}}},
	{"the backend resets at what was acknowledged", busy, []segment{{backend, rst, 100, 0, 0, established}, {backend, rst, 202, 0, 0, established}, {backend, rst, 101, 0, 0, closing}}},
	{"the backend resets at its end", busy, []segment{{backend, rst, 201, 0, 0, closing}}},
	{"resets far off", busy, []segment{
		{client, rst, 1 << 31, 0, 0, established},
		{backend, rst, 1 << 31, 0, 0, established},
		{client, rstAck, window, 101, 0, established},
		{backend, rstAck, ^uint32(window), 51, 0, established},
		{client, ack, 101, 101, 10, established},
		{backend, ack, 201, 111, 10, established},
	}},
	{"a reset does not make the next one right", open, []segment{
		{client, rstAck, 900, 1, 0, established}, {client, rstAck, 900, 900, 0, established}, {backend, rstAck, 900, 900, 0, established},
	}},
	{"the client resets, half closed", halfClosed, []segment{{client, rst, 1, 0, 0, established}, {client, rst, 2, 0, 0, closing}}},
	{"the backend resets, half closed", halfClosed, []segment{{backend, rst, 2, 0, 0, established}, {backend, rst, 1, 0, 0, closing}}},
	{"FINs far off", open, []segment{
		{client, finAck, 5000, 1, 0, established},
		{backend, finAck, 1, 1, 0, established},
		{client, ack, 1, 2, 100, established},
		{client, finAck, 101, 2, 0, closing},
	}},
	{"resets after both FINs", closed, []segment{{client, rst, 2, 0, 0, closing}, {backend, rst, 2, 0, 0, closing}, {client, ack, 2, 2, 0, closing}}},
}

// initial numbers: ordinary ones, and such that one side wraps, or changes its sign, in the middle of every life.
var initial = [][2]uint32{{1000, 7000}, {0xfffffff8, 7000}, {5000, 0xffffffa0}, {0x7ffffff8, 0xfffffff8}}

// life is a connection that is followed segment by segment.
type life struct {
	*flow
	isn    [2]uint32
	active uint64
}

func (w *world) life(family int, port uint16, isn [2]uint32) *life {
	return &life{flow: w.flow(vips[family], family, lb.TCP, port), isn: isn, active: w.active()}
}

// run sends the segments one by one. Every one of them, believed or not, must arrive as it was but for
// the addresses, and leave the pair in its state and counted so.
func (l *life) run(segments []segment) {
	l.w.t.Helper()
	for i, s := range segments {
		l.pass(fmt.Sprintf("segment %d, %+v", i, s), s)
		p := l.pair()
		if p.State != s.state || l.w.active() != l.active+map[bool]uint64{true: 1}[s.state == established] {
			l.w.t.Fatalf("segment %d, %+v: pair %+v, %d active, %d before the flow", i, s, p, l.w.active(), l.active)
		}
	}
}

// spec gives the segment its real numbers and its sender's view of the flow.
func (l *life) spec(s segment) packet.Spec {
	mine, other := l.isn[0], l.isn[1]
	spec := packet.Spec{Src: l.client, Dst: l.vip}
	if s.from == backend {
		spec, mine, other = reply(l.target), l.isn[1], l.isn[0]
	}
	spec.Protocol, spec.Flags, spec.Seq, spec.Ack, spec.Payload = lb.TCP, s.flags, mine+s.seq, 0, make([]byte, s.data)
	if s.flags&ack != 0 {
		spec.Ack = other + s.ack
	}
	return spec
}

// pass sends a segment, which must reach the other side.
func (l *life) pass(what string, s segment) {
	l.w.t.Helper()
	on, spec := l.from, l.spec(s)
	if s.from == backend {
		on = l.backend
	}
	verdict, got := l.w.fromContainer(on, spec)
	if verdict != redirect || got.Flags != spec.Flags || got.Seq != spec.Seq || got.Ack != spec.Ack || len(got.Payload) != s.data {
		l.w.t.Fatalf("%s: verdict %d for %v, sent %v", what, verdict, got, spec)
	}
	if s.from == backend {
		if got.Src != l.vip || got.Dst != l.client {
			l.w.t.Fatalf("%s: the client sees %v", what, got)
		}
		return
	}
	if l.target.Dst.IsValid() && (got.Dst != l.target.Dst || got.Src != l.target.Src) {
		l.w.t.Fatalf("%s: went to %v from %v, before to %v from %v", what, got.Dst, got.Src, l.target.Dst, l.target.Src)
	}
	l.backend, l.target = l.w.containerOf(got), got
}

// pair finds the flow's pair.
func (f *flow) pair() datapath.Pair {
	f.w.t.Helper()
	return pairOf(f.w.pairs())[[2]netip.AddrPort{f.client, f.vip}][f.proto]
}

func TestLives(t *testing.T) {
	for family, name := range families {
		w := newWorld(t, 1)
		for i, l := range lives {
			w.inside(t, name+"/"+l.name, func(w *world) {
				for j, isn := range initial {
					c := w.life(family, uint16(40000+10*i+j), isn)
					c.run(l.begin)
					c.run(l.then)
				}
			})
			w.flush()
		}
		w.assertWhole()
		w.assertEmptyAfterFlush()
	}
}

// TestAFlowThatWasNotResetIsTakenBack: who has sent a reset sends nothing more, so if it does, the reset was
// not its own. (Within one tick, what was sent before the reset may still arrive.)
func TestAFlowThatWasNotResetIsTakenBack(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		for i, from := range []side{client, backend} {
			other := !from
			c := w.life(family, uint16(40000+i), initial[i])
			c.run(open)
			c.run([]segment{{from, rst, 1, 0, 0, closing}})
			w.nextTick()
			// Of the other side this is expected: it may not have seen the reset yet.
			c.run([]segment{{other, ack, 1, 1, 10, closing}, {from, rst, 1, 0, 0, closing}})
			w.nextTick()
			c.run([]segment{{from, ack, 1, 11, 10, established}, {other, ack, 11, 11, 10, established}})
			c.run([]segment{{from, finAck, 11, 21, 0, established}, {other, finAck, 21, 12, 0, closing}})
			w.nextTick()
			c.run([]segment{{from, ack, 12, 22, 0, closing}, {other, finAck, 21, 12, 0, closing}})
		}
		w.assertWhole()
		w.assertEmptyAfterFlush()
	}
}
