package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// write is one transaction.
type write struct {
	conds []cond
	ops   []op
	table string // the table's key, if it is one
}

// lagLimit is how long the mirror may lag behind what was written: longer is no slow etcd any more.
const lagLimit = 20 * time.Second

// parallelTables is how many tables are written at a time.
const parallelTables = 16

// writeUntil writes what this node knows and etcd does not, until ctx ends or a write fails.
//
// Comparisons are with the mirror, so it waits until the mirror shows what it wrote last.
func (s *Source) writeUntil(ctx context.Context, link kv) error {
	waiting := time.Time{} // since when the mirror lags
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	for {
		changed := s.Changed()
		s.mu.Lock()
		behind := s.mirror.revision < s.written
		s.mu.Unlock()
		switch {
		case behind && waiting.IsZero():
			waiting = s.now()
			again.Reset(lagLimit)
		case behind && s.now().Sub(waiting) >= lagLimit:
			return fmt.Errorf("the watch does not show what was written: %w", errCompacted)
		case !behind:
			waiting = time.Time{}
			next, err := s.writeAll(ctx, link)
			if err != nil {
				return err
			}
			if !next.IsZero() {
				again.Reset(max(pace, next.Sub(s.now())))
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-s.writes:
		case <-again.C:
		}
	}
}

// writeAll writes everything that differs, and returns when to look again.
func (s *Source) writeAll(ctx context.Context, link kv) (again time.Time, err error) {
	if err := s.writeOwn(ctx, link); err != nil {
		return again, err
	}
	if err := s.writeOverrides(ctx, link); err != nil {
		return again, err
	}
	tables, again := s.tableWrites()
	var g errgroup.Group
	g.SetLimit(parallelTables)
	for _, w := range tables {
		g.Go(func() error {
			ok, err := s.commit(ctx, link, w)
			if err == nil && w.table != "" {
				s.wrote(w.table, ok)
			}
			return err
		})
	}
	return again, g.Wait()
}

// commit is one transaction with a time limit. It notes the revision.
func (s *Source) commit(ctx context.Context, link kv, w write) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ok, revision, err := link.commit(ctx, w.conds, w.ops)
	if err == nil && ok {
		s.mu.Lock()
		s.written = max(s.written, revision)
		s.mu.Unlock()
	}
	return ok, err
}

// writeOwn publishes this node's record, containers and health, under its lease.
func (s *Source) writeOwn(ctx context.Context, link kv) error {
	want := s.own()
	if want == nil || s.nameTaken() {
		return nil
	}
	lease, err := s.takeLease(ctx, link)
	if err != nil {
		return err
	}
	ops, old := s.ownOps(want, lease)
	for len(ops) > 0 {
		n := min(len(ops), maxOps)
		if _, err := s.commit(ctx, link, write{ops: ops[:n]}); err != nil {
			return s.leaseLost(lease, err)
		}
		ops = ops[n:]
	}
	for _, lease := range old {
		// Of the proxy before: what hung on it hangs on ours now.
		if err := link.revoke(ctx, lease); err != nil {
			return err
		}
	}
	return nil
}

// leaseLost makes the next try take another lease if this one has ended, which is no error then.
func (s *Source) leaseLost(lease int64, err error) error {
	if !errors.Is(err, errNoLease) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease != lease {
		return nil
	}
	s.lease = 0
	s.Log.Warn("this node counted as dead for a while: its lease in etcd had ended", "node", s.self)
	s.kickWrites()
	return nil
}

// takeLease returns the lease, a new one if there is none.
func (s *Source) takeLease(ctx context.Context, link kv) (int64, error) {
	s.mu.Lock()
	have := s.lease
	s.mu.Unlock()
	if have != 0 {
		return have, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	lease, err := link.grant(ctx, s.Etcd.LeaseTTL)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lease = lease
	return lease, nil
}

// own returns what this node publishes, by key; nil as long as it does not know itself.
func (s *Source) own() map[string][]byte {
	snap := s.Store.Snapshot()
	if snap == nil {
		return nil
	}
	n := s.Self()
	n.Name, n.Instance = s.self, s.instance
	out := make(map[string][]byte, len(snap.Endpoints)+1)
	add := func(key string, v any) {
		if data, err := json.Marshal(v); err == nil {
			out[key] = data
		}
	}
	add(nodesDir+s.self, n)
	for i := range snap.Endpoints {
		if e := &snap.Endpoints[i]; len(e.Services)+len(e.Names) > 0 && len(e.Addresses) > 0 {
			add(membersDir+s.self+"/"+e.ID, memberOf(e))
		}
	}
	for _, svc := range snap.Services {
		if list := state.HealthToTell(svc, s.self); len(list) > 0 {
			add(healthDir+s.self+"/"+svc.Spec.Name, list)
		}
	}
	return out
}

// ownOps returns what makes etcd's keys of this node equal to want, its record last: others count what
// it has from then on. old are leases of an earlier proxy that nothing hangs on any more.
func (s *Source) ownOps(want map[string][]byte, lease int64) (ops []op, old []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	leases := make(map[int64]bool)
	for _, key := range slices.Backward(slices.Sorted(maps.Keys(s.mirror.mine))) {
		if it := s.mirror.mine[key]; s.mirror.foreign[key] == "" && it.lease != 0 && it.lease != lease {
			leases[it.lease] = true
		}
		if want[key] == nil && s.mirror.foreign[key] == "" {
			ops = append(ops, op{key: key, delete: true})
		}
	}
	var record []op
	for _, key := range slices.Sorted(maps.Keys(want)) {
		it, there := s.mirror.mine[key]
		if there && it.lease == lease && bytes.Equal(it.value, want[key]) {
			continue
		}
		o := op{key: key, value: want[key], lease: lease}
		if key == nodesDir+s.self {
			record = append(record, o)
		} else {
			ops = append(ops, o)
		}
	}
	return append(ops, record...), slices.Collect(maps.Keys(leases))
}

// nameTaken says whether another node has this one's name.
func (s *Source) nameTaken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	const what = "name"
	it, there := s.mirror.raw[nodesDir+s.self]
	var n Node
	if !there || json.Unmarshal(it.value, &n) != nil || n.Instance == s.instance || n.Address == s.Self().Address {
		s.fine(what)
		return false
	}
	s.note(what, fmt.Sprintf("node name %s is that of the node at %s: set another node.name, or wait until its lease ends; this node's containers serve no other node", s.self, n.Address))
	return true
}

// writeOverrides tells the others what commands said here.
func (s *Source) writeOverrides(ctx context.Context, link kv) error {
	for _, o := range s.Store.Unsent() {
		key := overrideKey(&o)
		value, err := encodeOverride(o)
		if err != nil {
			return err
		}
		s.mu.Lock()
		sent, on := s.sent[key]
		_, there := s.mirror.raw[key]
		s.mu.Unlock()
		if on && sameOverride(sent.override, o) {
			continue // the mirror does not show it yet
		}
		var revision int64
		if !o.Ended() || there {
			w := write{ops: []op{{key: key, value: value, delete: o.Ended()}}}
			if _, err := s.commit(ctx, link, w); err != nil {
				return err
			}
		}
		s.mu.Lock()
		if !o.Ended() || there {
			revision = s.written
		}
		s.sent[key] = sentOverride{o, revision}
		s.mu.Unlock()
		kick(s.news)
	}
	return nil
}

// sameOverride compares what two overrides say.
func sameOverride(a, b state.Override) bool {
	x, errX := encodeOverride(a)
	y, errY := encodeOverride(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// leave hangs what this node has published on a lease that outlives a restart.
func (s *Source) leave(ctx context.Context, link kv) {
	s.mu.Lock()
	old := s.lease
	s.mu.Unlock()
	if old == 0 {
		return
	}
	if s.Etcd.RestartGrace > 0 {
		if err := s.move(ctx, link, old, s.Etcd.RestartGrace); err != nil {
			s.Log.Warn("this node counts as dead soon, though it was stopped on purpose", "err", err)
			return
		}
	}
	if err := link.revoke(ctx, old); err != nil {
		s.Log.Warn("the lease in etcd could not be ended: it will end by itself", "err", err)
	}
}

// move puts all keys of a lease as they are under another one.
func (s *Source) move(ctx context.Context, link kv, from int64, ttl time.Duration) error {
	all, _, err := link.load(ctx)
	if err != nil {
		return err
	}
	lease, err := link.grant(ctx, ttl)
	if err != nil {
		return err
	}
	var ops []op
	for key, it := range all {
		if it.lease == from {
			ops = append(ops, op{key: key, value: it.value, lease: lease})
		}
	}
	for chunk := range slices.Chunk(ops, maxOps) {
		if _, err := s.commit(ctx, link, write{ops: chunk}); err != nil {
			return err
		}
	}
	return nil
}
