package reach

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	// every is how often a node is asked, where there are not too many of them.
	every = 250 * time.Millisecond
	// spacing bounds the probes of all nodes together: 500 a second.
	spacing = 2 * time.Millisecond
	// jitter is by how much of the interval a probe comes early or late.
	jitter = 0.1

	// fall is how many probes in a row must be lost, and rise how many answered, for another verdict.
	fall = 3
	rise = 2

	// An answer is late after patience times the usual latency, between the bounds; firstTimeout holds
	// before there is a usual one. Late answers are taken until keep.
	patience     = 3
	minTimeout   = every
	maxTimeout   = 2 * time.Second
	firstTimeout = time.Second
	keep         = 4 * time.Second

	// gain is the part of a new sample in the smoothed latency.
	gain = 0.125
	// window is how many outcomes the loss is of.
	window = 64

	// largeEvery is how often the MTU is tried, largeAgain how soon after a loss, and largeFall how many
	// large probes must be lost while no small one is.
	largeEvery = 10 * time.Second
	largeAgain = time.Second
	largeFall  = 4
)

// kind is what a probe is for.
type kind int

const (
	beat  kind = iota // is it there
	large             // does its MTU fit
	burst             // of segments, for the offload test
	ping              // for somebody who waits
)

// probe is one that waits for its answer.
type probe struct {
	node     *node
	token    uint64
	kind     kind
	size     int
	sent     time.Time
	deadline time.Time
	lost     bool
	missing  []bool        // burst: by segment
	left     int           // burst: how many are missing
	done     chan struct{} // ping: closed by the answer, after took was set
	took     time.Duration
}

// node is a target with what is known of it and what is under way. The prober's lock guards it.
type node struct {
	State
	due      time.Time // of the next beat
	misses   int       // in a row, as they were sent
	hits     int       // in a row
	newest   time.Time // when the newest beat that was answered was sent
	outcomes uint64    // of the last beats, a bit set for each that was lost
	counted  int       // how many bits of outcomes are of beats
	large    largeTest
	offload  offloadTest
}

// largeTest tries whether packets of the node's MTU fit.
type largeTest struct {
	due    time.Time
	misses int // in a row, with no small one lost meanwhile
}

func newNode(t Target, now time.Time) *node {
	return &node{State: State{Target: t, Reachable: true, Since: now}}
}

// intervalOf returns how often each of n nodes is asked.
func intervalOf(n int) time.Duration { return max(every, time.Duration(n)*spacing) }

// spread returns a time within the interval from now.
func spread(now time.Time, interval time.Duration) time.Time {
	return now.Add(time.Duration(float64(interval) * rand.Float64()))
}

// following returns when an interval, more or less, has passed.
func following(now time.Time, interval time.Duration) time.Time {
	return now.Add(time.Duration(float64(interval) * (1 + jitter*(2*rand.Float64()-1))))
}

// timeout returns how long to wait for an answer.
func (n *node) timeout() time.Duration {
	if n.LastSeen.IsZero() {
		return firstTimeout
	}
	return min(max(patience*n.Latency, minTimeout), maxTimeout)
}

// setMTU begins the test of another size.
func (n *node) setMTU(mtu int, now time.Time) {
	n.MTU, n.BlackHole, n.large = mtu, false, largeTest{due: now}
}

// note adds an outcome of a beat.
func (n *node) note(lost bool) {
	n.outcomes <<= 1
	if lost {
		n.outcomes |= 1
	}
	n.counted = min(n.counted+1, window)
	n.LossRatio = float64(bits.OnesCount64(n.outcomes)) / float64(n.counted)
}

// missed takes in that a beat was not answered in time. Returns whether the verdict changed.
func (n *node) missed(sent, now time.Time) bool {
	n.Counts.Lost++
	n.note(true)
	n.large.misses = 0
	if sent.Before(n.newest) {
		return false // a later one was answered meanwhile
	}
	n.hits = 0
	n.misses++
	if n.misses < fall || n.Known && !n.Reachable {
		return false
	}
	if n.Reachable {
		n.Since = now
	}
	n.Reachable, n.Known = false, true
	return true
}

// answered takes in the answer to a beat, which may be late. Returns whether the verdict changed.
func (n *node) answered(late bool, sent, now time.Time) bool {
	took := now.Sub(sent)
	if sent.After(n.newest) {
		n.newest = sent
	}
	if late {
		n.Counts.Late++
	} else {
		n.Counts.Answered++
		n.note(false)
	}
	if n.Last = took; n.LastSeen.IsZero() {
		n.Latency = took
	} else {
		n.Latency += time.Duration(gain * float64(took-n.Latency))
	}
	n.LastSeen = now
	n.misses = 0
	n.hits++
	if !n.Reachable && n.hits < rise || n.Reachable && n.Known {
		return false
	}
	if !n.Reachable {
		n.Since = now
	}
	n.Reachable, n.Known = true, true
	return true
}

// largeAnswered says that the MTU fits. Returns whether that is news.
func (n *node) largeAnswered(now time.Time) bool {
	was := n.BlackHole
	n.BlackHole, n.large.misses = false, 0
	n.large.due = following(now, largeEvery)
	return was
}

// largeMissed takes in that a large probe was lost. It means nothing where small ones are lost as well.
// Returns whether the verdict changed.
func (n *node) largeMissed(now time.Time) bool {
	n.large.due = now.Add(largeAgain)
	if !n.Reachable || n.misses > 0 {
		return false
	}
	n.large.misses++
	if n.large.misses < largeFall {
		return false
	}
	n.large.due = following(now, largeEvery)
	was := n.BlackHole
	n.BlackHole = true
	return !was
}

// overhead returns the size of the IP and UDP headers of a probe.
func (n *node) overhead() int {
	if n.Address.Is4() {
		return 20 + 8
	}
	return 40 + 8
}

// claim takes a segment of a burst off those that are missing.
func (w *probe) claim(index int) bool {
	if index < 0 || index >= len(w.missing) || !w.missing[index] {
		return false
	}
	w.missing[index] = false
	w.left--
	return true
}

func missing(segments int) []bool { return slices.Repeat([]bool{true}, segments) }
