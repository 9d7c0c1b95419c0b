package reach

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// world is a Transport in the time of a synctest bubble: nodes that answer as a test says.
type world struct {
	mu      sync.Mutex
	answers chan Answer
	peers   map[uint32]*peer
	sent    []time.Time
	broken  bool // every Send fails
	flying  sync.WaitGroup
}

// peer is how a node behaves.
type peer struct {
	silent    bool
	delay     time.Duration
	lose      func(size int) bool // asked for every datagram
	twice     bool                // answers each probe twice
	noSegment bool                // loses what it would have to segment
	sizes     []int               // of the datagrams that were sent to it
}

func newWorld() *world {
	return &world{answers: make(chan Answer, queued), peers: make(map[uint32]*peer)}
}

func (w *world) Answers() <-chan Answer { return w.answers }
func (w *world) Close()                 {}

func (w *world) Send(_ bool, data []byte, segment int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken {
		return errNoDevice
	}
	w.sent = append(w.sent, time.Now())
	p := w.peers[binary.BigEndian.Uint32(data[4:])]
	if p == nil {
		return nil
	}
	size := segment
	if size == 0 {
		size = len(data)
	}
	for ; len(data) > 0; data = data[size:] {
		p.sizes = append(p.sizes, size)
		a, ok := ParseAnswer(data[:size], time.Time{})
		if !ok {
			return fmt.Errorf("no probe: %x", data[:size])
		}
		if !p.silent && !(p.noSegment && segment > 0) && !(p.lose != nil && p.lose(size)) {
			delay, twice := p.delay, p.twice
			w.flying.Go(func() { w.answer(a, delay, twice) })
		}
	}
	return nil
}

func (w *world) answer(a Answer, delay time.Duration, twice bool) {
	time.Sleep(delay)
	a.At = time.Now()
	w.answers <- a
	if twice {
		w.answers <- a
	}
}

// change changes how a node behaves.
func (w *world) change(id uint32, f func(p *peer)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w.peers[id])
}

// record keeps what was published.
type record struct {
	mu   sync.Mutex
	all  []map[string]State
	last time.Time
	// pause is how long the prober stands still with the next one.
	pause time.Duration
}

func (r *record) publish(s map[string]State) {
	r.mu.Lock()
	pause := r.pause
	r.all, r.last, r.pause = append(r.all, s), time.Now(), 0
	r.mu.Unlock()
	time.Sleep(pause)
}

// latest returns what was published last, and when.
func (r *record) latest(name string) (State, time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) == 0 {
		return State{}, r.last
	}
	return r.all[len(r.all)-1][name], r.last
}

// target is the i-th node, from 1 on.
func target(i int) Target {
	return Target{ID: uint16(i), Name: fmt.Sprintf("node-%d", i), Address: netip.AddrFrom4([4]byte{192, 0, byte(2 + i>>8), byte(i)})}
}

// start runs a prober of n nodes, which answer in a millisecond, until the test ends.
func start(t *testing.T, w *world, o Options, targets ...Target) (*Prober, *record) {
	t.Helper()
	r := &record{}
	o.Transport, o.Publish = w, r.publish
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	for _, n := range targets {
		if w.peers[uint32(n.ID)] == nil {
			w.peers[uint32(n.ID)] = &peer{delay: time.Millisecond}
		}
	}
	p := New(o)
	p.SetTargets(targets)
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); done.Wait(); w.flying.Wait() })
	return p, r
}

func textLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// settle lets time pass, and everything that is due by then be done.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
