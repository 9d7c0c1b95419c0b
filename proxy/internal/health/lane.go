package health

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"net/netip"
	"time"
)

// outside is the place of an entry that waits in no lane: its probe is under way, or it is gone.
const outside = -1

// entry is a backend being probed.
type entry struct {
	verdict
	service *service
	backend Backend
	at      netip.AddrPort
	due     time.Time // of the next probe
	place   int       // in its lane
	late    bool      // the last probe timed out
	gone    bool
	cancel  context.CancelFunc // of the probe under way
}

// lane is backends that wait for their time, and how many of them may be asked at once. There are
// two, so that backends which swallow packets wait for each other and not the others for them.
type lane struct {
	waiting entries
	running int
	limit   int
}

func (l *lane) full() bool { return l.running >= l.limit }

func (l *lane) push(e *entry) { heap.Push(&l.waiting, e) }

func (l *lane) remove(e *entry) { heap.Remove(&l.waiting, e.place) }

// next takes out who is due, or returns nil.
func (l *lane) next(now time.Time) *entry {
	if l.full() || len(l.waiting) == 0 || l.waiting[0].due.After(now) {
		return nil
	}
	e, _ := heap.Pop(&l.waiting).(*entry)
	return e
}

// entries is a heap by due time.
type entries []*entry

func (h entries) Len() int           { return len(h) }
func (h entries) Less(i, j int) bool { return h[i].due.Before(h[j].due) }

func (h entries) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

// Push implements heap.Interface, as Pop does.
func (h *entries) Push(x any) {
	if e, ok := x.(*entry); ok {
		e.place = len(*h)
		*h = append(*h, e)
	}
}

// Pop takes the last entry.
func (h *entries) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.place = outside
	return e
}

// jitter is by how much of the interval a probe comes early or late, so that probes which began
// together do not stay together.
const jitter = 0.1

// following returns when to probe again what was probed at a time.
func following(at time.Time, interval time.Duration) time.Time {
	return at.Add(time.Duration(float64(interval) * (1 + jitter*(2*rand.Float64()-1))))
}

// spread returns a time within the interval from now.
func spread(now time.Time, interval time.Duration) time.Time {
	return now.Add(time.Duration(float64(interval) * rand.Float64()))
}
