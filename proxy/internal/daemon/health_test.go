package daemon

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/health"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// patient is how long a verdict may take to reach the maps on a busy machine; it takes milliseconds.
const patient = 10 * time.Second

// prober answers probes and remembers where it was asked.
type prober struct {
	mu    sync.Mutex
	fails map[netip.Addr]bool
	asked map[netip.AddrPort]lb.HealthCheck
}

func (p *prober) probe(_ context.Context, at netip.AddrPort, check lb.HealthCheck) health.Outcome {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked[at] = check
	if p.fails[at.Addr()] {
		return health.Outcome{Result: health.Failure, Reason: "refused"}
	}
	return health.Outcome{}
}

func (p *prober) fail(addresses ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fails = make(map[netip.Addr]bool)
	for _, a := range addresses {
		p.fails[netip.MustParseAddr(a)] = true
	}
}

// probed returns where it was asked, and forgets it.
func (p *prober) probed() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for at := range p.asked {
		out = append(out, at.String())
	}
	clear(p.asked)
	slices.Sort(out)
	return out
}

// check follows the pipeline's snapshots with health checks until the returned function is called.
func (p *pipeline) check(t *testing.T, by *prober, runDir string) (stop func()) {
	t.Helper()
	h := newChecks(p.store, health.New(health.Options{Probe: by.probe, Log: quiet}), runDir, quiet)
	ctx, cancel := context.WithCancel(t.Context())
	passed := newSignal()
	var running sync.WaitGroup
	running.Go(func() { _ = h.checker.Run(ctx) })
	running.Go(func() { _ = h.follow(ctx, passed.next) })
	running.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-p.store.Changed():
				p.rec.Apply(p.store.Snapshot())
				passed.tell()
			}
		}
	})
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(stop)
	return stop
}

// put renames a services file into place.
func (p *pipeline) put(t *testing.T, text string) {
	t.Helper()
	aside := filepath.Join(p.dir, ".aside")
	if err := os.WriteFile(aside, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, filepath.Join(p.dir, "services.yaml")); err != nil {
		t.Fatal(err)
	}
}

// expectServing waits until exactly these addresses may take new flows.
func (p *pipeline) expectServing(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for deadline := time.Now().Add(patient); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if got = p.serving(t); slices.Equal(got, want) {
			return
		}
	}
	t.Fatalf("%v take new flows, want %v", got, want)
}

func (p *pipeline) serving(t *testing.T) []string {
	t.Helper()
	backends, err := p.maps.Backends()
	if err != nil {
		t.Fatal(err)
	}
	backends = maps.Clone(backends)
	maps.DeleteFunc(backends, func(_ uint32, b datapath.Backend) bool { return !b.New })
	var out []string
	for _, b := range backends {
		out = append(out, b.Address.String())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// checked is a services file with three backends and one each that is draining, in maintenance and
// on another node.
func checked(check string) string {
	return fmt.Sprintf(`services:
- name: web
  vips: [10.97.0.1]
  ports: [{protocol: udp, port: 53}, {protocol: tcp, port: 80, targetPort: 8080}]
  healthCheck: %s
  backends:
  - {address: 198.51.100.1}
  - {address: 198.51.100.2}
  - {address: 198.51.100.3}
  - {address: 198.51.100.4, state: draining}
  - {address: 198.51.100.5, weight: 0}
  - {address: 198.51.100.6, node: node-b}
`, check)
}

func TestVerdictsReachTheMaps(t *testing.T) {
	p := startPipeline(t)
	by := &prober{asked: make(map[netip.AddrPort]lb.HealthCheck)}
	p.check(t, by, t.TempDir())
	p.put(t, checked("{type: tcp, interval: 100ms, rise: 1, fall: 1}"))
	p.expectServing(t, "198.51.100.1", "198.51.100.2", "198.51.100.3")
	by.fail("198.51.100.2")
	p.expectServing(t, "198.51.100.1", "198.51.100.3")
	want := []string{"198.51.100.1:8080", "198.51.100.2:8080", "198.51.100.3:8080", "198.51.100.4:8080"}
	time.Sleep(300 * time.Millisecond)
	if got := by.probed(); !slices.Equal(got, want) {
		t.Errorf("probed %v, want %v", got, want)
	}

	by.fail("198.51.100.1", "198.51.100.2", "198.51.100.3")
	p.expectServing(t, "198.51.100.4") // draining, but well
	by.fail("198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4")
	p.expectServing(t, "198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4")
	by.fail("198.51.100.2")
	p.expectServing(t, "198.51.100.1", "198.51.100.3")

	p.put(t, checked("{type: http, port: 9000, interval: 100ms, rise: 1, fall: 1}"))
	time.Sleep(300 * time.Millisecond)
	by.probed()
	time.Sleep(300 * time.Millisecond)
	if got := by.probed(); len(got) != 4 || got[0] != "198.51.100.1:9000" {
		t.Errorf("after the port changed %v was probed", got)
	}
	p.expectServing(t, "198.51.100.1", "198.51.100.3")

	p.put(t, checked("{type: none}"))
	p.expectServing(t, "198.51.100.1", "198.51.100.2", "198.51.100.3")
}

func TestRestartRemembersWhoIsUnhealthy(t *testing.T) {
	p := startPipeline(t)
	runDir := t.TempDir()
	by := &prober{asked: make(map[netip.AddrPort]lb.HealthCheck)}
	stop := p.check(t, by, runDir)
	p.put(t, checked("{type: tcp, interval: 100ms, rise: 1, fall: 1}"))
	by.fail("198.51.100.2")
	p.expectServing(t, "198.51.100.1", "198.51.100.3")
	stop()

	// A store that starts with that file never lets anybody see the dead backend serve.
	store := state.New("node-a", t.TempDir(), datapath.DefaultTimeouts, quiet)
	h := newChecks(store, health.New(health.Options{Probe: by.probe, Log: quiet}), runDir, quiet)
	old := p.store.Snapshot()
	store.SetServices([]state.Definition{{Spec: old.Services[0].Spec}})
	store.SetEndpoints(nil)
	first := store.Snapshot()
	if first.Revision != 1 || first.Services[0].Backends[1].State != lb.Unhealthy {
		t.Fatalf("revision %d: %+v", first.Revision, first.Services[0].Backends[1])
	}
	h.sync(first)
	if r := h.checker.Unhealthy(); len(r) != 1 || r[0].Reason != "refused" || store.Snapshot() != first {
		t.Errorf("the checker knows %+v, the store has revision %d", r, store.Snapshot().Revision)
	}
}

// Sockets do not reach into VLANs.
func TestBackendsInVLANsAreNotProbed(t *testing.T) {
	plain := state.Backend{Backend: lb.Backend{Address: netip.MustParseAddr("198.51.100.1"), Weight: 1}}
	tagged := plain
	tagged.VLAN = lb.VLAN{Device: "eth1", ID: 100}
	svc := &state.Service{Backends: []state.Backend{plain, tagged}}
	svc.Spec.HealthCheck = lb.HealthCheck{Type: "tcp", Port: 80}
	if got := new(checks).targets(svc); len(got) != 1 || got[0].Address != plain.Address {
		t.Errorf("probed: %+v", got)
	}
}
