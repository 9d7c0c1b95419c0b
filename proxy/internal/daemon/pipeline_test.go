package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/datapath/dptest"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
	"github.com/tc-loadbalancer/tclb/proxy/internal/source"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

var quiet = slog.New(slog.DiscardHandler)

// pipeline is everything between a services directory and the maps, in memory.
type pipeline struct {
	dir   string
	maps  *dptest.Maps
	store *state.Store
	rec   *reconcile.Reconciler
}

// startPipeline follows a directory until the test ends.
func startPipeline(t testing.TB) *pipeline {
	t.Helper()
	p := &pipeline{dir: t.TempDir(), maps: dptest.New(datapath.Sizes{})}
	stateDir := t.TempDir()
	p.store = state.New("node-a", stateDir, datapath.DefaultTimeouts, quiet)
	p.store.SetEndpoints(nil)
	p.rec = reconcile.New(reconcile.Options{
		Maps:  p.maps,
		Arena: datapath.NewArena(p.maps.Sizes().TableSlots, 0, time.Now), TableDir: filepath.Join(stateDir, "tables"),
		Now: time.Now, Log: quiet,
	})
	services := source.NewServices(p.dir, stateDir, p.store.SetServices, quiet)
	services.Start(config.Surroundings{Pool: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- services.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		services.Save()
	})
	return p
}

// write renames a file with that many services into place; the first one's first backend has the weight
// given.
func (p *pipeline) write(t testing.TB, services, weight int) {
	t.Helper()
	var text strings.Builder
	text.WriteString("services:\n")
	for i := range services {
		fmt.Fprintf(&text, "- name: s%d\n  vips: [10.97.0.%d]\n  ports: [{protocol: tcp, port: 80, targetPort: 8080}]\n  backends:\n", i, i+1)
		for b := range 5 {
			w := 100
			if i == 0 && b == 0 {
				w = weight
			}
			fmt.Fprintf(&text, "  - {address: 198.51.%d.%d, weight: %d}\n", b, i+1, w)
		}
	}
	aside := filepath.Join(p.dir, ".aside")
	if err := os.WriteFile(aside, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, filepath.Join(p.dir, "services.yaml")); err != nil {
		t.Fatal(err)
	}
}

// wait applies snapshots until the backend has that weight in the maps.
func (p *pipeline) wait(t testing.TB, weight uint32) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case <-p.store.Changed():
			p.rec.Apply(p.store.Snapshot())
		case <-deadline:
			t.Fatalf("weight %d never reached the maps", weight)
		}
		backends, err := p.maps.Backends()
		if err != nil {
			t.Fatal(err)
		}
		id := p.rec.Service("s0").Backends[reconcile.Target{Address: netip.MustParseAddr("198.51.0.1"), Port: 8080, Protocol: lb.TCP}]
		if backends[id].Weight == weight {
			return
		}
	}
}

func TestChangedFileReachesTheMaps(t *testing.T) {
	p := startPipeline(t)
	p.write(t, 3, 100)
	p.wait(t, 100)
	p.maps.Writes()
	p.write(t, 3, 50)
	p.wait(t, 50)
	// One record, the table and its seat list if it moved, and one frontend: nothing of the others.
	if w := p.maps.Writes(); w > 4 {
		t.Errorf("a changed weight wrote %d entries: %q", w, p.maps.Log())
	}
}

// BenchmarkChangedBackend is the way from a file of 100 services, in which one backend changed, into the
// maps.
func BenchmarkChangedBackend(b *testing.B) {
	p := startPipeline(b)
	p.write(b, 100, 100)
	p.wait(b, 100)
	weight := 100
	for b.Loop() {
		weight = 300 - weight
		p.write(b, 100, weight)
		p.wait(b, uint32(weight))
	}
}
