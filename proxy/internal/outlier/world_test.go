package outlier

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

var noLog = slog.New(slog.DiscardHandler)

// world is a judge, counters and a clock that a test moves.
type world struct {
	*testing.T
	judge  *Judge
	counts map[uint32]Counts
	start  time.Time
	now    time.Time
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, counts: make(map[uint32]Counts), start: time.Unix(1000, 0)}
	w.now = w.start
	w.judge = New(func(id uint32) Counts { return w.counts[id] }, noLog)
	return w
}

// targets returns n backends, the first of which is 198.51.100.1 and has its TCP port 8080 under id 1
// and its UDP port 53 under id 101.
func targets(n int) []Target {
	out := make([]Target, n)
	for i := range out {
		id := uint32(i + 1)
		out[i] = Target{
			Backend: Backend{Address: netip.MustParseAddr(fmt.Sprintf("198.51.100.%d", id))},
			Ports:   []Port{{id, 8080, lb.TCP}, {100 + id, 53, lb.UDP}},
			Able:    true,
		}
	}
	return out
}

// add moves counters of an id.
func (w *world) add(id uint32, d Counts) {
	c := w.counts[id]
	w.counts[id] = Counts{c.Flows + d.Flows, c.SYNs + d.SYNs, c.Answered + d.Answered, c.Rejected + d.Rejected}
}

// What clients met at an id since the last poll.
func (w *world) answered(id, n uint32) { w.add(id, Counts{Flows: n, SYNs: n, Answered: n}) }
func (w *world) refused(id, n uint32)  { w.add(id, Counts{Flows: n, SYNs: n, Rejected: n}) }
func (w *world) ignored(id, n uint32)  { w.add(id, Counts{Flows: n, SYNs: n}) }

// poll moves the clock by a tick and polls.
func (w *world) poll() {
	w.now = w.now.Add(Every)
	w.judge.Poll(w.now)
}

// polls does so for a time, after traffic each.
func (w *world) polls(d time.Duration, traffic func()) {
	for range d / Every {
		if traffic != nil {
			traffic()
		}
		w.poll()
	}
}

// out polls with traffic until somebody is ejected, and returns how long that took.
func (w *world) out(traffic func()) time.Duration {
	w.Helper()
	for d := Every; d <= 10*time.Second; d += Every {
		traffic()
		w.poll()
		if w.ejected() != "" {
			return d
		}
	}
	w.Fatal("nobody is ejected")
	return 0
}

// list returns the last bytes of addresses of those in a phase, "1 2".
func (w *world) list(trial bool) string {
	var out []string
	for _, r := range w.judge.Outliers() {
		if r.Trial == trial {
			text := r.Address.String()
			out = append(out, text[strings.LastIndexAny(text, ".:")+1:])
		}
	}
	return strings.Join(out, " ")
}

func (w *world) ejected() string { return w.list(false) }

// expect checks who is ejected and who is on trial.
func (w *world) expect(ejected, trial string) {
	w.Helper()
	if e, t := w.list(false), w.list(true); e != ejected || t != trial {
		w.Fatalf("after %v: ejected %q, on trial %q, want %q and %q", w.now.Sub(w.start), e, t, ejected, trial)
	}
}

// reason returns what a backend is out for.
func (w *world) reason(address string) string {
	r := w.judge.Outliers()
	i := slices.IndexFunc(r, func(r Report) bool { return r.Address.String() == address })
	if i < 0 {
		w.Fatalf("%s is not out", address)
	}
	return r[i].Reason
}
