package datapath

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// FuzzPackets sends what an input says through the programs and judges each step by rules of its own
// (oracle): what is not ours leaves as it came; what is ours is translated, with every checksum as
// right as it was, or refused for a reason and counted once; the connection table is whole; and the
// answer to each request that begins a flow leads back to who sent it.
func FuzzPackets(f *testing.F) {
	l := newLab(f)
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

// play runs one input. Its first byte says how the node is set.
func (l *lab) play(input []byte) error {
	set := datapath.Settings{AntiSpoof: input[0]&1 == 0, HostStack: input[0]&2 != 0}
	l.reset(set, true)
	o, s := newOracle(l, set), &script{lab: l, input: input[1:]}
	for {
		p, ok := s.step()
		if !ok {
			return nil
		}
		if p.frame == nil {
			continue
		}
		e, err := o.send(p)
		s.done = append(s.done, e)
		if err == nil {
			err = o.comesBack(e)
		}
		if err != nil {
			return fmt.Errorf("%w\n%s", err, story(s.done))
		}
	}
}

// send runs a frame and judges what became of it.
func (o *oracle) send(p parcel) (event, error) {
	before := o.state()
	e := event{leg: p.leg, in: p.frame, before: &before, v: look(p.frame)}
	opts := ebpf.RunOptions{Data: p.frame, DataOut: make([]byte, len(p.frame)+256), Context: skbContext{Ifindex: p.on.ifindex}}
	verdict, err := o.program(p.program).Run(&opts)
	if err != nil {
		return e, fmt.Errorf("run %s on %d bytes: %w", p.program, len(p.frame), err)
	}
	after := o.state()
	e.verdict, e.out, e.after = verdict, opts.DataOut, &after
	if o.far {
		return e, o.judgeAbroad(&e)
	}
	return e, o.judge(&e)
}

// comesBack asserts that the answer to a valid packet that began a flow is to its sender and from whom it asked.
func (o *oracle) comesBack(e event) error {
	before, _, _ := e.before.half(e.v.tuple())
	p, _, dir := e.after.half(e.v.tuple())
	if e.verdict == drop || len(e.refusals()) > 0 || e.v.kind != kindStream || e.v.first || before != nil || p == nil || dir != 0 || e.v.flags&rstFlag != 0 || o.set.HostStack {
		return nil
	}
	asked, valid := parse(e.in)
	if !valid {
		return nil
	}
	seen, err := packet.Parse(e.out)
	if err != nil {
		return err
	}
	answer := reply(seen)
	s := script{lab: o.lab}
	back, err := o.send(s.build(s.back(&e, answer.Src.Addr()), answer))
	if err != nil {
		return fmt.Errorf("answer: %w\n%v", err, tell(back))
	}
	got, err := packet.Parse(back.out)
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	if back.verdict == drop || got.Src != asked.Dst || got.Dst != asked.Src {
		return fmt.Errorf("answer to %v is %v", asked, got)
	}
	return nil
}

// parse decodes a frame and says whether it is valid.
func parse(frame []byte) (packet.Spec, bool) {
	s, err := packet.Parse(frame)
	return s, err == nil
}

// story tells what was sent.
func story(events []event) string {
	var out []string
	for _, e := range events {
		out = append(out, tell(e))
	}
	return strings.Join(out, "\n")
}

func tell(e event) string {
	names := map[uint32]string{next: "goes on", drop: "is dropped", redirect: "is redirected"}
	in, _ := packet.Parse(e.in)
	text := fmt.Sprintf("%s on device %d: %v %s\n  %x", e.program, e.on.ifindex, in, names[e.verdict], e.in)
	if e.after != nil {
		if r := e.refusals(); len(r) > 0 {
			text += fmt.Sprintf("\n  counted as %v", datapath.DropReason(r[0]))
		}
	}
	if e.verdict != drop {
		out, _ := packet.Parse(e.out)
		text += fmt.Sprintf("\n  becomes %v\n  %x", out, e.out)
	}
	return text
}
