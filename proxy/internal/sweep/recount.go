package sweep

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// recountEvery is how often the counters of connections are compared with the connection table.
const recountEvery = 30 * time.Second

// Recounter compares the counters of connections with the connection table. Nothing is repaired: a
// difference is a bug, and who hides it helps nobody.
type Recounter struct {
	count func() (datapath.Drift, error)
	log   *slog.Logger
	last  atomic.Pointer[datapath.Drift]
}

// NewRecounter returns a recounter that counts by the given function, datapath.Recount.
func NewRecounter(count func() (datapath.Drift, error), log *slog.Logger) *Recounter {
	return &Recounter{count: count, log: log}
}

// Drift returns what the last recount found.
func (r *Recounter) Drift() datapath.Drift {
	if d := r.last.Load(); d != nil {
		return *d
	}
	return datapath.Drift{}
}

// Run recounts until ctx ends.
func (r *Recounter) Run(ctx context.Context) error {
	tick := time.NewTicker(recountEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			r.once()
		}
	}
}

func (r *Recounter) once() {
	d, err := r.count()
	if err != nil {
		r.log.Error("connections were not recounted", "err", err)
		return
	}
	before := r.Drift()
	r.last.Store(&d)
	if total(d) > 0 && total(d) != total(before) {
		r.log.Error("counters of connections differ from the connection table: please report this",
			"active", d.Active, "load", d.Load, "groups", d.Groups, "backends", d.IDs)
	}
}

func total(d datapath.Drift) uint64 { return d.Active + d.Load + d.Groups }
