// Package metrics turns what the proxy and its maps know into Prometheus metrics.
//
// Nothing is counted here: every scrape reads the daemon's view and the datapath's counters, so
// the figures survive a restart of the proxy as the maps do.
package metrics

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// Datapath is what a scrape reads from the maps; *datapath.Datapath is one.
type Datapath interface {
	Backends() (map[uint32]datapath.Backend, error)
	BackendStat(id uint32) datapath.BackendStat
	Drops() (map[datapath.DropReason]uint64, error)
	Rooms() (map[datapath.Room]datapath.RoomStat, error)
	Pairs(yield func(datapath.Pair) bool) error
}

// Collector answers /metrics. It is safe for concurrent use; scrapes take turns, so that each
// sees the traffic counters that the one before has reported.
type Collector struct {
	view     view.View
	datapath Datapath
	version  string
	log      *slog.Logger
	runtime  *prometheus.Registry // the Go runtime and the process

	mu      sync.Mutex
	traffic trafficReader // guarded by mu
}

// New returns a collector. version is the proxy's, for tclb_build_info.
func New(v view.View, d Datapath, version string, log *slog.Logger) *Collector {
	c := &Collector{
		view: v, datapath: d, version: version, log: log, runtime: prometheus.NewRegistry(),
		traffic: trafficReader{datapath: d},
	}
	c.runtime.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return c
}

// ServeHTTP writes all families in the text format. What cannot be read is left out and logged:
// the rest is worth more than an error page.
func (c *Collector) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	gathered, err := c.runtime.Gather()
	if err != nil {
		c.log.Error("read the runtime's metrics", "err", err)
	}
	s, err := c.read()
	if err != nil {
		c.log.Error("read metrics", "err", err)
	}
	w.Header().Set("Content-Type", string(expfmt.NewFormat(expfmt.TypeTextPlain)))
	out := bufio.NewWriterSize(w, 64<<10)
	for _, f := range gathered {
		if _, err := expfmt.MetricFamilyToText(out, f); err != nil {
			return // the client is gone
		}
	}
	e := emitter{out: out}
	for i := range families {
		e.emit(&families[i], s)
	}
	_ = out.Flush()
}

// read returns everything that a scrape needs, and what could not be read as error.
func (c *Collector) read() (*scrape, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &scrape{
		version: c.version, mode: c.view.Mode().Name, nodes: c.view.Nodes(), tunnel: c.view.Tunnel(), status: c.view.Status(), endpoints: len(c.view.Endpoints()),
		services: slices.DeleteFunc(c.view.Services(), func(s view.Service) bool { return s.ID == 0 }),
		findings: c.countFindings(),
	}
	backends := c.view.Backends("")
	s.last = countLast(backends)
	s.backends = slices.DeleteFunc(backends, func(b view.Backend) bool { return b.ID == 0 })
	var errs [3]error
	s.traffic, errs[0] = c.traffic.read(s.backends)
	if s.drops, errs[1] = c.datapath.Drops(); errs[1] != nil {
		errs[1] = fmt.Errorf("read drop counters: %w", errs[1])
	}
	if s.rooms, errs[2] = c.datapath.Rooms(); errs[2] != nil {
		errs[2] = fmt.Errorf("read connection table: %w", errs[2])
	}
	return s, errors.Join(errs[:]...)
}

// countLast counts, by service, the backends that stay as the last ones; one has a row for each port.
func countLast(rows []view.Backend) map[string]uint64 {
	type backend struct {
		service, node string
		address       netip.Addr
	}
	seen := make(map[backend]bool)
	out := make(map[string]uint64)
	for i := range rows {
		b := backend{rows[i].Service, rows[i].Node, rows[i].Address}
		if rows[i].Lost && !seen[b] {
			seen[b] = true
			out[b.service]++
		}
	}
	return out
}

// countFindings returns the number of findings of every file, those without any included.
func (c *Collector) countFindings() []fileFindings {
	count := make(map[string]int)
	for _, file := range c.view.Files() {
		count[file] = 0
	}
	for _, f := range c.view.Findings() {
		count[f.File]++
	}
	out := make([]fileFindings, 0, len(count))
	for file, n := range count {
		out = append(out, fileFindings{file, n})
	}
	slices.SortFunc(out, func(a, b fileFindings) int { return strings.Compare(a.file, b.file) })
	return out
}
