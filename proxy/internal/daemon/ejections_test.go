package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/outlier"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
)

// jury is a judge whose clock and polls are the test's.
type jury struct {
	*outlier.Judge
	now  time.Time
	mu   sync.Mutex
	seen map[uint32]bool // ids that were read
}

func (j *jury) poll(d time.Duration) {
	j.now = j.now.Add(d)
	j.Poll(j.now)
}

// expectWatching waits until that many ids are known.
func (j *jury) expectWatching(t *testing.T, n int) {
	t.Helper()
	got := 0
	for deadline := time.Now().Add(patient); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		j.mu.Lock()
		got = len(j.seen)
		j.mu.Unlock()
		if got == n {
			return
		}
	}
	t.Fatalf("%d ids are watched, want %d", got, n)
}

// watch follows the pipeline's snapshots with a judge of outliers.
func (p *pipeline) watch(t *testing.T) *jury {
	t.Helper()
	j := &jury{now: time.Unix(1000, 0), seen: make(map[uint32]bool)}
	read := countsOf(p.maps)
	j.Judge = outlier.New(func(id uint32) outlier.Counts {
		j.mu.Lock()
		j.seen[id] = true
		j.mu.Unlock()
		return read(id)
	}, quiet)
	e := newEjections(p.store, j.Judge, p.rec.Service)
	ctx, cancel := context.WithCancel(t.Context())
	passed := newSignal()
	var running sync.WaitGroup
	running.Go(func() { _ = e.follow(ctx, passed.next) })
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
	t.Cleanup(func() { cancel(); running.Wait() })
	return j
}

// outlying is a services file with backends 198.51.100.1 to 4.
func outlying(enabled bool, more string) string {
	text := fmt.Sprintf(`services:
- name: web
  vips: [10.97.0.1]
  ports: [{protocol: udp, port: 53}, {protocol: tcp, port: 80, targetPort: 8080}, {protocol: tcp, port: 81, targetPort: 8080}]
  outlier: {enabled: %t}
  backends:
  - {address: 198.51.100.9, node: node-b}
`, enabled)
	for i := range 4 {
		text += fmt.Sprintf("  - {address: 198.51.100.%d%s}\n", i+1, more)
		more = ""
	}
	return text
}

// refuse lets clients be refused by a backend.
func (p *pipeline) refuse(t *testing.T, address string, port uint16, protocol lb.Protocol, n uint32) {
	t.Helper()
	id := p.rec.Service("web").Backends[reconcile.Target{Address: netip.MustParseAddr(address), Port: port, Protocol: protocol}]
	if id == 0 {
		t.Fatalf("%s has no id", address)
	}
	s := p.maps.BackendStat(id)
	s.Total += uint64(n)
	s.SYNs += n
	s.Rejected += n
	p.maps.SetBackendStat(id, s)
}

// expectRecords waits until a record is as ok wants it.
func (p *pipeline) expectRecords(t *testing.T, what string, ok func(b datapath.Backend) bool) {
	t.Helper()
	for deadline := time.Now().Add(patient); ; time.Sleep(time.Millisecond) {
		backends, err := p.maps.Backends()
		if err != nil {
			t.Fatal(err)
		}
		all := true
		for _, b := range backends {
			all = all && (!b.Live || ok(b))
		}
		switch {
		case all:
			return
		case time.Now().After(deadline):
			t.Fatalf("not so: %s: %+v", what, backends)
		}
	}
}

func TestEjectionsReachTheMaps(t *testing.T) {
	p := startPipeline(t)
	judge := p.watch(t)
	p.put(t, outlying(true, ""))
	p.expectServing(t, "198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4")
	judge.expectWatching(t, 8) // two ports each

	judge.poll(outlier.Every)
	p.refuse(t, "198.51.100.2", 8080, lb.TCP, 3)
	p.refuse(t, "198.51.100.3", 53, lb.UDP, 3)
	judge.poll(outlier.Every)
	p.expectServing(t, "198.51.100.1", "198.51.100.4")

	judge.poll(5 * time.Second)
	p.expectServing(t, "198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4")
	p.expectRecords(t, "2 and 3 are on trial", func(b datapath.Backend) bool {
		return b.Trial == (b.Address.As4()[3] == 2 || b.Address.As4()[3] == 3)
	})
	p.refuse(t, "198.51.100.3", 53, lb.UDP, 1)
	judge.poll(outlier.Every)
	p.expectServing(t, "198.51.100.1", "198.51.100.2", "198.51.100.4")

	// Switched off it is over for everybody, with the next pass.
	p.put(t, outlying(false, ""))
	p.expectServing(t, "198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4")
	p.expectRecords(t, "nobody is on trial", func(b datapath.Backend) bool { return !b.Trial })
	p.refuse(t, "198.51.100.1", 8080, lb.TCP, 30)
	judge.poll(outlier.Every)
	if r := judge.Outliers(); len(r) != 0 {
		t.Errorf("%+v", r)
	}
}

// A backend that is ejected makes no room for another one; one that drains is nobody to fall back on.
func TestOnlyAbleBackendsAreAReserve(t *testing.T) {
	p := startPipeline(t)
	judge := p.watch(t)
	p.put(t, outlying(true, ", state: draining"))
	p.expectServing(t, "198.51.100.2", "198.51.100.3", "198.51.100.4")
	judge.expectWatching(t, 8) // two ports each
	for range 3 {
		for _, a := range []string{"198.51.100.2", "198.51.100.3", "198.51.100.4"} {
			p.refuse(t, a, 8080, lb.TCP, 3)
		}
		judge.poll(outlier.Every)
		p.expectServing(t, "198.51.100.3", "198.51.100.4")
	}
}
