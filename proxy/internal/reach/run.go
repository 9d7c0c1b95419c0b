package reach

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	// grain is how exactly probes keep their time: those that are due within it share one wake-up.
	grain = 5 * time.Millisecond
	// idle is how long to sleep without targets; new ones end it.
	idle = time.Hour
	// stall is by how much this process may oversleep before it counts as having stood still: answers
	// may then wait unread, and nobody is blamed.
	stall = 100 * time.Millisecond
)

// Run probes until ctx ends, then closes the transport.
func (p *Prober) Run(ctx context.Context) error {
	defer p.transport.Close()
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		p.drain()
		timer.Reset(p.step(time.Now()))
		p.tell()
		for again := false; !again; {
			select {
			case <-ctx.Done():
				return nil
			case <-p.wake:
				again = true
			case <-timer.C:
				again = true
			case a := <-p.transport.Answers():
				again = p.take(a)
				p.tell()
			}
		}
	}
}

// drain takes the answers that are there, before anybody is blamed for missing ones.
func (p *Prober) drain() {
	for {
		select {
		case a := <-p.transport.Answers():
			p.take(a)
		default:
			return
		}
	}
}

// tell publishes what changed.
func (p *Prober) tell() {
	p.mu.Lock()
	var states map[string]State
	if p.dirty {
		states = p.states()
	}
	p.dirty = false
	p.mu.Unlock()
	if states != nil {
		p.publish(states)
	}
}

// step gives up on what was not answered, sends what is due, and returns how long nothing else is.
func (p *Prober) step(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forgive(now)
	next := now.Add(idle)
	for token, w := range p.waiting {
		if !w.lost && !now.Before(w.deadline) {
			p.lose(w, now)
		}
		if end := w.end(); now.Before(end) {
			next = earlier(next, end)
		} else {
			delete(p.waiting, token)
		}
	}
	interval := intervalOf(len(p.nodes))
	for _, n := range p.nodes {
		if n.Plain {
			continue
		}
		if !now.Before(n.due) {
			n.due = following(now, interval)
			p.beat(n, now)
		}
		next = earlier(next, n.due)
		if n.tries() {
			if !now.Before(n.large.due) {
				n.large.due = now.Add(maxTimeout + largeAgain)
				_ = p.send(n, large, n.MTU-n.overhead(), now) // beats say whether anything can be sent
			}
			next = earlier(next, n.large.due)
		}
		next = earlier(next, p.testOffload(n, now))
	}
	p.planned = next
	return max(next.Sub(now), grain)
}

// tries says whether large probes mean anything.
func (n *node) tries() bool {
	return n.Reachable && n.Known && n.MTU-n.overhead() >= headerSize
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// end returns when a probe is to be looked at again: when it is late, and when it is forgotten.
func (w *probe) end() time.Time {
	if w.lost && w.kind != burst {
		return w.sent.Add(keep)
	}
	return w.deadline
}

// forgive moves the deadlines of all that waits, if this process has stood still.
func (p *Prober) forgive(now time.Time) {
	if p.planned.IsZero() || now.Sub(p.planned) < stall {
		return
	}
	lost := now.Sub(p.planned)
	for _, w := range p.waiting {
		w.deadline = w.deadline.Add(lost)
	}
}

// beat asks whether a node is there. That it cannot be asked is no fault of its own.
func (p *Prober) beat(n *node, now time.Time) {
	v4 := n.Address.Is4()
	if err := p.send(n, beat, beatSize, now); err != nil {
		n.misses, n.hits = 0, 0
		if n.Known {
			n.Known, p.dirty = false, true
		}
		if !p.failing[v4] {
			p.failing[v4] = true
			p.log.Warn("other nodes cannot be probed, and count as they did", "node", n.Name, "err", err)
		}
		return
	}
	n.Counts.Sent++
	if p.failing[v4] {
		p.failing[v4] = false
		p.log.Info("other nodes can be probed again", "node", n.Name)
	}
}

// send sends one probe, and notes that it waits.
func (p *Prober) send(n *node, k kind, size int, now time.Time) error {
	w := &probe{node: n, token: rand.Uint64(), kind: k, size: size, sent: now, deadline: now.Add(n.timeout())}
	if err := p.transport.Send(n.Address.Is4(), appendProbe(nil, n.ID, w.token, 0, size), 0); err != nil {
		return err
	}
	p.waiting[w.token] = w
	return nil
}

// lose takes in that a probe was not answered in time.
func (p *Prober) lose(w *probe, now time.Time) {
	w.lost = true
	n := w.node
	switch w.kind {
	case beat:
		if n.missed(w.sent, now) {
			p.dirty = true
			p.log.Warn("node is unreachable", "node", n.Name, "vtep", n.Address, "lost", n.misses)
		}
	case large:
		if n.largeMissed(now) {
			p.dirty = true
			p.log.Error("packets of the node's MTU are lost on the way and small ones are not: set tunnel.mtu lower, or correct the network's",
				"node", n.Name, "vtep", n.Address, "mtu", n.MTU)
		}
	case burst:
		p.burstEnded(w, now)
	}
}

// take takes in an answer. What no waiting probe is answered by is ignored: it is forged, repeated, or too
// late. Returns whether there is something to do for step.
func (p *Prober) take(a Answer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.waiting[a.Token]
	if w == nil || a.Node != uint32(w.node.ID) || a.Size != w.size {
		return false
	}
	n, took := w.node, a.At.Sub(w.sent)
	if w.kind == burst {
		if !w.claim(a.Index) || w.left > 0 {
			return false
		}
		delete(p.waiting, a.Token)
		p.burstEnded(w, a.At)
		return true
	}
	if a.Index != 0 {
		return false
	}
	delete(p.waiting, a.Token)
	switch w.kind {
	case beat:
		was := n.Reachable
		if n.answered(w.lost, w.sent, a.At) {
			p.dirty = true
			if !was {
				p.log.Info("node is reachable again", "node", n.Name, "vtep", n.Address, "took", took)
			}
			return true
		}
	case large:
		if n.largeAnswered(a.At) {
			p.dirty = true
			p.log.Info("packets of the node's MTU arrive again", "node", n.Name, "vtep", n.Address, "mtu", n.MTU)
		}
	case ping:
		w.took = took
		close(w.done)
	}
	return false
}
