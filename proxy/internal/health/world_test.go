package health

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// every is the interval of most tests; its timeout is half of it.
const every = 2 * time.Second

var check = lb.HealthCheck{Type: "tcp", Interval: every, Timeout: every / 2, Rise: 2, Fall: 3}

// world answers probes, in the time of a synctest bubble.
type world struct {
	mu      sync.Mutex
	answers map[netip.Addr]Outcome
	silent  map[netip.Addr]bool // lets probes time out
	asked   map[netip.Addr][]time.Time
	running int
	most    int // probes that ran at once
}

func newWorld() *world {
	return &world{answers: map[netip.Addr]Outcome{}, silent: map[netip.Addr]bool{}, asked: map[netip.Addr][]time.Time{}}
}

func (w *world) probe(ctx context.Context, at netip.AddrPort, _ lb.HealthCheck) Outcome {
	w.mu.Lock()
	w.asked[at.Addr()] = append(w.asked[at.Addr()], time.Now())
	w.running++
	w.most = max(w.most, w.running)
	o, silent := w.answers[at.Addr()], w.silent[at.Addr()]
	w.mu.Unlock()
	if silent {
		<-ctx.Done()
		o = Outcome{Timeout, "no connection"}
	} else {
		time.Sleep(time.Millisecond)
	}
	w.mu.Lock()
	w.running--
	w.mu.Unlock()
	return o
}

func (w *world) set(b Backend, o Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers[b.Address] = o
}

func (w *world) silence(b Backend) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent[b.Address] = true
}

// times returns when a backend was asked.
func (w *world) times(b Backend) []time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.asked[b.Address])
}

// start runs a checker until the test ends.
func start(t *testing.T, w *world, limit int) *Checker {
	t.Helper()
	c := New(Options{Probe: w.probe, Limit: limit, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); done.Wait() })
	return c
}

// backend is the i-th of a service.
func backend(i int) Backend {
	return Backend{Address: netip.AddrFrom4([4]byte{198, 51, byte(100 + i>>8), byte(i)})}
}

func targets(from, n int) []Target {
	out := make([]Target, n)
	for i := range out {
		out[i] = Target{Backend: backend(from + i), Port: 80}
	}
	return out
}

// names returns who is unhealthy.
func names(c *Checker) string {
	var out []string
	for _, r := range c.Unhealthy() {
		out = append(out, r.Service+"/"+r.Address.String())
	}
	return strings.Join(out, " ")
}

func wantUnhealthy(t *testing.T, c *Checker, want ...Backend) {
	t.Helper()
	var words []string
	for _, b := range want {
		words = append(words, "web/"+b.Address.String())
	}
	if got := names(c); got != strings.Join(words, " ") {
		t.Errorf("unhealthy: %q, want %q", got, words)
	}
}

// latest is how long after `results` probes in a row a verdict may take: each may be late by the jitter.
func latest(results int) time.Duration {
	return time.Duration(float64(results)*float64(every)*(1+jitter)) + check.Timeout
}
