package datapath

import (
	"slices"
	"testing"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// A count that is wrong shows in the recount, whichever it is, and no other one does.
func TestAWrongCountShows(t *testing.T) {
	w := scheduledWorld(t, 3, schedule{scheduler: lb.RoundRobin})
	w.spread(6, 40000)
	f := w.flow(vips[0], 0, lb.TCP, 41000)
	f.establish()
	recount := func() datapath.Drift {
		t.Helper()
		drift, err := w.d.Recount()
		w.check(err)
		return drift
	}
	if d := recount(); d.Active+d.Load+d.Groups != 0 || len(d.IDs) != 0 {
		t.Fatalf("nothing is wrong yet: %+v", d)
	}
	id := backendID(serviceID, 1, 0, lb.TCP)
	stats := w.openMap(bpf.MapsMapBackendStats)
	miscount := func(active, load uint32) {
		t.Helper()
		var v bpf.MapsBackendStat
		w.check(stats.Lookup(id, &v))
		v.Active += active
		v.Load += load
		w.check(stats.Put(id, &v))
	}
	miscount(3, 0)
	if d := recount(); d.Active != 3 || d.Load != 0 || d.Groups != 0 || !slices.Equal(d.IDs, []uint32{id}) {
		t.Errorf("three active ones too many: %+v", d)
	}
	less := ^uint32(0)
	miscount(less-2, less) // back, and a load of one too few
	if d := recount(); d.Active != 0 || d.Load != 1 || d.Groups != 1 {
		t.Errorf("a load of one too few: %+v", d)
	}
	// A flow that is counted wrongly from another life of the backend is none of the present one's.
	miscount(0, 1)
	w.give(id, func(*datapath.Backend) {})
	if d := recount(); d.Active+d.Load+d.Groups != 0 {
		t.Errorf("after another generation: %+v", d)
	}
}
