// Package sweep takes away what nobody else does: flows that ended without saying so, and what
// containers leave behind whose DEL never came.
package sweep

import (
	"context"
	"log/slog"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

const (
	tick = time.Second
	// cycle is how long it takes until every pair was looked at, and so how late an idle flow may be
	// forgotten.
	cycle = 10 * time.Second
)

// Table is the connection table.
type Table interface {
	Sweep(datapath.SweepRequest) (datapath.SweepResult, error)
	Rooms() (map[datapath.Room]datapath.RoomStat, error)
}

// Flows expires idle flows, a bounded number each second, until ctx ends.
func Flows(ctx context.Context, t Table, log *slog.Logger) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		err := step(t)
		if err != nil && !failing {
			log.Error("idle flows are not forgotten", "err", err)
		}
		failing = err != nil
	}
}

// step looks at a share of the table such that a cycle is complete in time.
func step(t Table) error {
	rooms, err := t.Rooms()
	if err != nil {
		return err
	}
	var pairs uint64
	for _, r := range rooms {
		pairs += r.Capacity
	}
	share := pairs/uint64(cycle/tick) + 1
	_, err = t.Sweep(datapath.SweepRequest{Max: uint32(share)})
	return err
}
