package sweep

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

func TestADriftIsSaidOnceAndShown(t *testing.T) {
	var log bytes.Buffer
	var drift datapath.Drift
	var err error
	r := NewRecounter(func() (datapath.Drift, error) { return drift, err }, slog.New(slog.NewTextHandler(&log, nil)))
	r.once()
	if r.Drift().Active != 0 || log.Len() > 0 {
		t.Errorf("nothing differs: %+v, %s", r.Drift(), log.String())
	}
	drift = datapath.Drift{Active: 2, Load: 1, IDs: []uint32{7}}
	r.once()
	r.once()
	if r.Drift().Active != 2 || strings.Count(log.String(), "please report") != 1 || !strings.Contains(log.String(), "backends=[7]") {
		t.Errorf("%+v, %s", r.Drift(), log.String())
	}
	err = errors.New("gone")
	r.once()
	if r.Drift().Active != 2 || !strings.Contains(log.String(), "not recounted") {
		t.Errorf("after an error: %+v, %s", r.Drift(), log.String())
	}
}
