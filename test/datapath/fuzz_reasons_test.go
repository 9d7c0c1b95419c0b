package datapath

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// judgeSilence: a packet that is dropped uncounted is held, or is one of the host's that no VIP gets.
func (o *oracle) judgeSilence(e *event) error {
	if e.after.ring.Held == e.before.ring.Held {
		if e.program == datapath.FromHost && (!isVIP(e.v.dst) || e.v.kind == kindForeign) && !o.mustTranslate(e) {
			return nil
		}
		return fmt.Errorf("dropped uncounted")
	}
	if !o.waits(e) {
		return fmt.Errorf("held, but it is nothing to be held")
	}
	key := e.v.datagram()
	o.held[key] = append(o.held[key], slices.Clone(e.in[etherLen:]))
	return nil
}

// waits says whether a frame has to wait for the first fragment of its datagram.
func (o *oracle) waits(e *event) bool {
	_, noted := o.notes[e.v.datagram()]
	if e.v.kind != kindLater || noted || e.v.proto == icmp4 && e.v.v4 || e.v.proto == icmp6 {
		return false
	}
	if e.v.proto != tcp && e.v.proto != udp && (e.v.v4 || e.v.proto != destinationOptions) {
		return false
	}
	if isVIP(e.v.dst) {
		return e.fromSender()
	}
	return e.program == datapath.FromHost || o.isBackend(e.v.src) // nothing else comes to tclb0
}

// mustTranslate says whether the flow of a frame is known.
func (o *oracle) mustTranslate(e *event) bool {
	if e.v.kind == kindMessage {
		q, _ := e.v.quote(e.in)
		if q == nil || q.dst != e.v.dst {
			return false
		}
		p, _, _ := e.before.half(q.tuple())
		return p != nil
	}
	p, _, _ := e.after.half(e.v.tuple())
	return p != nil && e.v.kind == kindStream
}

// judgeRefusal: what is counted has a reason, and is dropped or answered.
func (o *oracle) judgeRefusal(e *event, counted []int) error {
	reason := counted[0]
	if err := o.judgeReason(e, reason); err != nil {
		return err
	}
	if len(counted) > 1 {
		return fmt.Errorf("one packet counted as %v", counted)
	}
	if e.verdict == drop {
		return nil
	}
	src, dst := netip.AddrPortFrom(e.v.dst, e.v.dport), netip.AddrPortFrom(e.v.src, e.v.sport)
	p, _, dir := e.before.half(e.v.tuple())
	back := p != nil && dir == 1
	if back {
		t := p.Half[0].Tuple
		src = netip.AddrPortFrom(netip.AddrFrom16(t.Daddr).Unmap(), swapped(t.Dport))
		dst = netip.AddrPortFrom(netip.AddrFrom16(t.Saddr).Unmap(), swapped(t.Sport))
	}
	if err := refusal(e.in, e.out, &e.v, src, dst); err != nil {
		return err
	}
	if e.v.proto == udp || back {
		return nil
	}
	return resetNumbers(e.out, &e.v)
}

// judgeReason says whether a packet may be refused for a reason.
func (o *oracle) judgeReason(e *event, reason int) error {
	v, ok := &e.v, false
	vip := isVIP(v.dst)
	p, _, dir := e.before.half(v.tuple())
	q, isError := (*quoted)(nil), false
	if v.kind == kindMessage {
		q, isError = v.quote(e.in)
	}
	var about *rawPair
	if q != nil && q.dst == v.dst {
		about, _, _ = e.before.half(q.tuple())
	}
	switch bpf.MapsDropReason(reason) {
	case bpf.MapsDropReasonDROP_MALFORMED:
		ok = vip && e.fromSender() && (v.kind == kindMalformed || v.kind == kindMessage && v.l4+8 > v.end || (v.kind == kindMessage || v.kind == kindLater) && !answerable(v.src))
	case bpf.MapsDropReasonDROP_NO_FRONTEND:
		ok = v.kind == kindStream && vip && e.fromSender() && !serves(v)
	case bpf.MapsDropReasonDROP_NO_BACKEND:
		ok = v.kind == kindStream && serves(v) && (v.dport == emptyPort || o.anyUnavailable())
	case bpf.MapsDropReasonDROP_NOT_ALLOWED:
		ok = v.kind == kindStream && serves(v) && v.dport == allowPort && !slices.Contains(o.client.addr[:], v.src)
	case bpf.MapsDropReasonDROP_SPOOFED:
		ok = e.program == datapath.FromContainer && o.set.AntiSpoof && (vip && !e.owns() || p != nil && o.foreign(e, p) || isError && about != nil && (!e.owns() || q.src != v.src))
	case bpf.MapsDropReasonDROP_NO_PAIR:
		ok = v.kind == kindStream && v.proto == tcp && serves(v) && e.fromSender() && (v.flags&(synFlag|rstFlag) != 0 || v.flags&ackFlag == 0) &&
			v.flags&(finFlag|synFlag|rstFlag|ackFlag) != synFlag
	case bpf.MapsDropReasonDROP_BACKEND_GONE:
		ok = p != nil && o.gone(p) || about != nil && o.gone(about)
	case bpf.MapsDropReasonDROP_FRAGMENT:
		n, noted := o.notes[v.datagram()]
		ok = v.kind == kindLater && noted && !n.pass && !e.lives(n)
	case bpf.MapsDropReasonDROP_UNROUTABLE:
		ok = e.program == datapath.FromHost && vip && (v.kind == kindOther || v.kind == kindLater || v.kind == kindMessage && !isError)
	case bpf.MapsDropReasonDROP_BAD_ICMP:
		ok = isError && (about != nil && q.illegal || about == nil && vip)
	case bpf.MapsDropReasonDROP_SECOND_CHANCE:
		ok = p != nil && dir == 1 && v.flags&rstFlag != 0 && p.State == uint32(datapath.FlowOpening)
	}
	if !ok {
		return fmt.Errorf("refused as %v", datapath.DropReason(reason))
	}
	return nil
}

// foreign says whether a packet of a balanced flow is not from who it says.
func (o *oracle) foreign(e *event, p *rawPair) bool {
	return e.program == datapath.FromContainer && o.set.AntiSpoof && !e.owns() && p.Flags&uint32(bpf.MapsCtPairFlagPAIR_DIRECT) == 0
}

// answerable says whether an address is a host's.
func answerable(a netip.Addr) bool {
	return !a.IsMulticast() && !a.IsUnspecified() && !(a.Is4() && (a.As4()[0] == 0 || a.As4()[0] > 223))
}

// lives says whether the pair of a note is the one still that it was left for.
func (e *event) lives(n note) bool {
	return n.pair < len(e.before.pairs) && e.before.pairs[n.pair].Life == n.life
}

// anyUnavailable says whether there are backends that take no new flows.
func (o *oracle) anyUnavailable() bool { return !slices.Equal(o.backends, o.made) }
