package reconcile

import (
	"fmt"
	"slices"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// commit writes changes: backends, then records and allowed sources, then frontends. Each step is one
// batch; if a batch fails it is repeated service by service, so that the error finds its service.
func (r *Reconciler) commit(changes []*change) {
	r.commitBackends(changes)
	for _, c := range changes {
		if !c.failed {
			r.commitRecord(c)
		}
	}
	r.commitFrontends(changes)
	for _, c := range changes {
		if !c.failed {
			r.commitDirect(c)
		}
	}
}

// resetFresh clears the counters of ids that are given anew. Their records get the new generation first,
// not live: a flow of the one before that ends meanwhile must not be taken off the new one's count.
func (r *Reconciler) resetFresh(changes []*change) {
	var ids []uint32
	var records []datapath.Backend
	fresh := make(map[uint32]bool)
	for _, c := range changes {
		for _, id := range c.fresh {
			fresh[id] = true
		}
		for i, id := range c.writeIDs {
			if fresh[id] {
				record := c.writes[i]
				record.Live, record.New = false, false
				record.Group = r.recordOf(id).Group
				ids, records = append(ids, id), append(records, record)
			}
		}
	}
	if len(ids) == 0 {
		return
	}
	if err := r.maps.PutBackends(ids, records); err != nil {
		r.log.Warn("counters of new backends may include those of old ones", "err", err)
	}
	for _, id := range ids {
		r.maps.ResetBackendStat(id, r.recordOf(id).Group)
	}
}

func (r *Reconciler) commitBackends(changes []*change) {
	var ids []uint32
	var records []datapath.Backend
	for _, c := range changes {
		ids = append(ids, c.writeIDs...)
		records = append(records, c.writes...)
	}
	if len(ids) == 0 {
		return
	}
	r.resetFresh(changes)
	if err := r.maps.PutBackends(ids, records); err == nil {
		for i, id := range ids {
			r.wrote(id, records[i])
		}
		return
	}
	for _, c := range changes {
		if len(c.writeIDs) == 0 {
			continue
		}
		if err := r.maps.PutBackends(c.writeIDs, c.writes); err != nil {
			c.fail(fmt.Errorf("write backends: %w", err))
			c.failed = true
			continue
		}
		for i, id := range c.writeIDs {
			r.wrote(id, c.writes[i])
		}
	}
}

// wrote notes a record that was written. Flows that go on are counted in its group from now on.
func (r *Reconciler) wrote(id uint32, b datapath.Backend) {
	if before := r.recordOf(id); before.Gen == b.Gen && before.Group != b.Group {
		r.maps.MoveLoad(id, before.Group, b.Group)
	}
	r.setRecord(id, b)
}

// commitRecord writes what frontends rely on besides their tables.
func (r *Reconciler) commitRecord(c *change) {
	if !sameRecord(c.record, c.svc.record) || c.svc.rewrite || c.svc.applied == nil && len(c.svc.keys) == 0 {
		if err := r.maps.PutService(c.svc.id, c.record); err != nil {
			c.fail(fmt.Errorf("write service record: %w", err))
			c.failed = true
			return
		}
		c.svc.record, c.svc.rewrite = c.record, false
	}
	for _, k := range c.allow {
		if _, ok := r.allows[k]; ok {
			continue
		}
		if err := r.maps.PutAllow(k); err != nil {
			// The rest is refused, which is the safe side.
			c.fail(fmt.Errorf("allow %s: %w", k.Prefix, err))
			continue
		}
		r.allows[k] = struct{}{}
	}
}

func (r *Reconciler) commitFrontends(changes []*change) {
	batch := make(map[lb.Frontend]datapath.Frontend, len(changes))
	for _, c := range changes {
		if !c.failed {
			for key, f := range c.frontends {
				batch[key] = f
			}
		}
	}
	if len(batch) == 0 || r.putFrontends(batch) == nil {
		return
	}
	for _, c := range changes {
		if !c.failed && len(c.frontends) > 0 {
			r.putOneByOne(c, c.frontends)
		}
	}
}

// putFrontends writes a batch and notes it. After an error nothing is noted, although some may be
// written: who calls it writes all of them again.
func (r *Reconciler) putFrontends(batch map[lb.Frontend]datapath.Frontend) error {
	if err := r.maps.PutFrontends(batch); err != nil {
		return err
	}
	for key, f := range batch {
		r.frontends[key] = f
	}
	return nil
}

// putOneByOne writes what fits, in order, so that the outcome of each is known.
func (r *Reconciler) putOneByOne(c *change, batch map[lb.Frontend]datapath.Frontend) {
	keys := make([]lb.Frontend, 0, len(batch))
	for key := range batch {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, compareFrontends)
	for _, key := range keys {
		if err := r.putFrontends(map[lb.Frontend]datapath.Frontend{key: batch[key]}); err != nil {
			c.fail(fmt.Errorf("write frontend %v: %w", key, err))
		}
	}
}

// commitDirect counts who uses the backends' own addresses.
func (r *Reconciler) commitDirect(c *change) {
	for _, key := range c.direct {
		if _, ok := slices.BinarySearchFunc(c.svc.direct, key, compareFrontends); !ok {
			r.direct[key]++
		}
	}
}

// putDirect writes the entries of backends' own addresses that are missing. A VIP's key is never
// overwritten.
func (r *Reconciler) putDirect(changes []*change) {
	entry := datapath.Frontend{Kind: datapath.KindBackend}
	most := 0
	for _, c := range changes {
		most += len(c.direct)
	}
	batch := make(map[lb.Frontend]datapath.Frontend, most)
	for _, c := range changes {
		for _, key := range c.direct {
			if _, ok := r.frontends[key]; !ok && r.direct[key] > 0 {
				batch[key] = entry
			}
		}
	}
	if len(batch) == 0 || r.putFrontends(batch) == nil {
		return
	}
	for _, c := range changes {
		missing := make(map[lb.Frontend]datapath.Frontend)
		for _, key := range c.direct {
			if _, ok := r.frontends[key]; !ok && r.direct[key] > 0 {
				missing[key] = entry
			}
		}
		r.putOneByOne(c, missing)
	}
}
