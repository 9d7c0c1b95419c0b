package daemon

import (
	"net/netip"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

func TestUnhealthySinceTheReport(t *testing.T) {
	started := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	earlier, before := started.Add(-2*time.Hour), started.Add(-time.Hour)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	reports := []view.Unhealthy{
		{Service: "web", Address: a, Node: "n", Since: before},
		{Service: "web", Address: a, Node: "n", Since: earlier, Ejected: true},
		{Service: "web", Address: b, Node: "n", Since: before},
	}
	tests := []struct {
		row  view.Backend
		want time.Time
	}{
		{view.Backend{Service: "web", Address: a, Node: "n", Port: 80, State: lb.Unhealthy}, earlier},
		{view.Backend{Service: "web", Address: a, Node: "n", Port: 81, State: lb.Unhealthy}, earlier},
		{view.Backend{Service: "web", Address: b, Node: "n", State: lb.Unhealthy}, before},
		{view.Backend{Service: "web", Address: b, Node: "n", State: lb.Draining}, started}, // it fails, but that is not its state
		{view.Backend{Service: "web", Address: b, Node: "m", State: lb.Unhealthy}, started},
		{view.Backend{Service: "api", Address: b, Node: "n", State: lb.Unhealthy}, started},
	}
	rows := make([]view.Backend, len(tests))
	for i := range tests {
		rows[i] = tests[i].row
		rows[i].Since = started
	}
	backdate(rows, reports)
	for i, tt := range tests {
		if !rows[i].Since.Equal(tt.want) {
			t.Errorf("%+v: since %s, want %s", tt.row, rows[i].Since, tt.want)
		}
	}
}
