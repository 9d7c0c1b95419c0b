package datapath

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// first keeps account of a first fragment that goes on. Where fragments wait, a translated datagram is
// noted under its new addresses too: its fragments may pass the programs again.
func (o *oracle) first(e *event, n note, t *target) {
	if !e.v.first {
		return
	}
	o.notes[e.v.datagram()] = n
	if t != nil && e.before.ring.Waiting > 0 {
		d := e.v.datagram()
		d.src, d.dst = t.src, t.dst
		if d != e.v.datagram() {
			o.notes[d] = note{pass: true}
		}
	}
}

// released asserts that a first fragment goes on, and before it all that waited for it, as it does.
func (o *oracle) released(e *event, t *target, judge func() error) error {
	waiting := o.held[e.v.datagram()]
	if !e.v.first || len(waiting) == 0 {
		return judge()
	}
	delete(o.held, e.v.datagram())
	if err := judge(); err != nil {
		return fmt.Errorf("first fragment: %w", err)
	}
	frames, err := o.sent.read(len(waiting), o.counts)
	if err != nil {
		return err
	}
	if len(frames) != len(waiting) {
		return fmt.Errorf("%d fragments waited, %d were sent", len(waiting), len(frames))
	}
	for _, held := range waiting {
		in := slices.Concat(e.out[:etherLen], held)
		v := look(in)
		at := slices.IndexFunc(frames, func(s sent) bool {
			if len(s.frame) < len(in) || o.wayOfClone(e, t, s) != nil {
				return false
			}
			out := s.frame[:len(in)] // none gets shorter than the first one's headers
			return t == nil && bytes.Equal(in, out) || t != nil && translated(in, out, &v, *t) == nil
		})
		if at < 0 {
			return fmt.Errorf("fragment %x left as none of %+v", in, frames)
		}
		frames = slices.Delete(frames, at, at+1)
	}
	return nil
}

// counts says whether a frame can be one that a program sent: the kernel sends others, and veths show
// frames at their other end again.
func (o *oracle) counts(s sent) bool {
	v := look(s.frame)
	return v.kind == kindLater && slices.ContainsFunc(append(o.containers, o.client, o.host), func(c container) bool { return c.ifindex == s.ifindex })
}

// wayOfClone asserts that a clone goes where the packet itself goes.
func (o *oracle) wayOfClone(e *event, t *target, s sent) error {
	want, egress := e.on.ifindex, e.program != datapath.FromContainer
	if t != nil && t.deliver == toPeer {
		want, egress = t.ifindex, true
	} else if t != nil && t.deliver == toHost {
		want, egress = t.ifindex, false
	}
	if s.ifindex != want || s.egress != egress {
		return fmt.Errorf("clone sent by device %d, egress %v, want %d, %v", s.ifindex, s.egress, want, egress)
	}
	return nil
}
