package reach

import (
	"math/rand/v2"
	"time"
)

// Offload is what is known of packets that are cut into segments behind the tunnel: by the device that the
// tunnel leaves by, or by the kernel for it.
type Offload int

// The verdicts of the offload test.
const (
	OffloadUntested Offload = iota // also where losses left no verdict
	OffloadGood
	OffloadBroken // segments do not arrive, even after offloads were disabled
)

const (
	segments = 16
	// burstTimeout is how long the segments of a burst may take.
	burstTimeout = time.Second
	// burstFall is how many bursts must break while plain datagrams do not.
	burstFall = 2
	// Where plain datagrams are lost as well, the test comes again, a few times.
	burstAgain = 30 * time.Second
	burstTries = 5
)

// offloadTest compares what the kernel segments on its way out with datagrams that leave whole. A device
// that segments or checksums what is in a tunnel wrongly would break every stream of a container: TCP
// would only crawl. It begins when the node answers for the first time.
type offloadTest struct {
	due     time.Time // zero = at once
	plain   bool      // the burst under way is the one to compare with
	running bool
	ended   bool
	broken  int // segmented bursts that broke
	tries   int // without a verdict
}

// testOffload begins a node's test when it is time; one node at a time. It returns when to ask again.
func (p *Prober) testOffload(n *node, now time.Time) time.Time {
	t := &n.offload
	never := now.Add(idle)
	if t.ended || t.running || !n.tries() || n.BlackHole {
		return never
	}
	if now.Before(t.due) {
		return t.due
	}
	if p.tested != nil {
		return never // the end of that test wakes Run
	}
	p.tested = n
	p.sendBurst(n, false, now)
	return never
}

// sendBurst sends a burst in one piece for others to segment, or plain: segment by segment.
func (p *Prober) sendBurst(n *node, plain bool, now time.Time) {
	size := n.MTU - n.overhead()
	w := &probe{
		node: n, token: rand.Uint64(), kind: burst, size: size, sent: now, deadline: now.Add(burstTimeout),
		missing: missing(segments), left: segments,
	}
	n.offload.plain, n.offload.running = plain, true
	v4 := n.Address.Is4()
	var err error
	if plain {
		for i := range segments {
			if err = p.transport.Send(v4, appendProbe(nil, n.ID, w.token, i, size), 0); err != nil {
				break
			}
		}
	} else {
		var data []byte
		for i := range segments {
			data = appendProbe(data, n.ID, w.token, i, size)
		}
		err = p.transport.Send(v4, data, size)
	}
	if err != nil {
		p.log.Debug("the offload test could not send", "node", n.Name, "plain", plain, "err", err)
		p.postpone(n, now)
		return
	}
	p.waiting[w.token] = w
}

// burstEnded goes on with the test after a burst came back, or did not.
func (p *Prober) burstEnded(w *probe, now time.Time) {
	n := w.node
	t := &n.offload
	switch {
	case !t.plain && w.left == 0:
		p.endTest(n, OffloadGood)
	case !t.plain:
		p.sendBurst(n, true, now)
	case w.left > 0:
		p.postpone(n, now)
	default:
		if t.broken++; t.broken >= burstFall {
			p.foundBroken(n)
		}
		if !t.ended {
			p.sendBurst(n, false, now)
		}
	}
}

// foundBroken disables offloads, once; a test that fails without them too has no other remedy.
func (p *Prober) foundBroken(n *node) {
	if p.off || p.disable == nil {
		p.log.Error("segmented packets do not arrive at the node, plain ones do", "node", n.Name, "vtep", n.Address)
		p.endTest(n, OffloadBroken)
		return
	}
	p.off, n.offload.broken = true, 0
	if err := p.disable(); err != nil {
		p.log.Error("segmented packets do not arrive at the node, and the tunnel's offloads could not be disabled", "node", n.Name, "vtep", n.Address, "err", err)
		p.endTest(n, OffloadBroken)
		return
	}
	p.log.Warn("segmented packets did not arrive at the node: the tunnel's offloads are disabled", "node", n.Name, "vtep", n.Address)
}

// postpone gives up for now.
func (p *Prober) postpone(n *node, now time.Time) {
	t := &n.offload
	if t.tries++; t.tries >= burstTries {
		p.endTest(n, OffloadUntested)
		return
	}
	t.running, t.due = false, now.Add(burstAgain)
	p.tested = nil
	p.kick()
}

// endTest ends a node's test and lets the next one begin.
func (p *Prober) endTest(n *node, verdict Offload) {
	n.offload.running, n.offload.ended = false, true
	n.Offload = verdict
	p.tested, p.dirty = nil, true
	p.kick()
}
