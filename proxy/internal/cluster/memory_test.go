package cluster

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// memory is a store in memory, with leases that end when a test says so.
type memory struct {
	mu       sync.Mutex
	revision int64
	items    map[string]item
	history  []batch
	oldest   int64 // watches from before are refused
	leases   map[int64]time.Duration
	lastID   int64
	down     bool
	changed  chan struct{}
	commits  int
}

func newMemory() *memory {
	return &memory{revision: 1, items: make(map[string]item), leases: make(map[int64]time.Duration), changed: make(chan struct{})}
}

var errDown = errors.New("down")

// link is a client's connection, which fails once dead is set.
func (m *memory) link(dead *atomic.Bool) *memoryLink { return &memoryLink{m, dead} }

// tell wakes watches. m.mu is held.
func (m *memory) tell() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// setDown lets the store be away, or back.
func (m *memory) setDown(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
	m.tell()
}

// compact forgets all changes, and breaks watches that have not seen them.
func (m *memory) compact() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.oldest, m.history = m.revision, nil
}

// do changes keys as one revision. m.mu is held.
func (m *memory) do(ops []op) {
	m.revision++
	b := batch{revision: m.revision}
	for _, o := range ops {
		if o.delete {
			for key := range m.items {
				if key == o.key || o.dir && strings.HasPrefix(key, o.key) {
					delete(m.items, key)
					b.changes = append(b.changes, change{key: key, item: item{revision: m.revision}})
				}
			}
			continue
		}
		it := item{value: append([]byte{}, o.value...), lease: o.lease, revision: m.revision}
		m.items[o.key] = it
		b.changes = append(b.changes, change{key: o.key, item: it})
	}
	if len(b.changes) == 0 {
		m.revision--
		return
	}
	m.history = append(m.history, b)
	m.tell()
}

// put is somebody with etcdctl.
func (m *memory) put(key, value string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.do([]op{{key: key, value: []byte(value)}})
}

func (m *memory) remove(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.do([]op{{key: key, delete: true}})
}

// expire ends a lease.
func (m *memory) expire(lease int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.end(lease)
}

func (m *memory) end(lease int64) {
	delete(m.leases, lease)
	var ops []op
	for key, it := range m.items {
		if it.lease == lease {
			ops = append(ops, op{key: key, delete: true})
		}
	}
	m.do(ops)
}

func (m *memory) get(key string) (item, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	it, ok := m.items[key]
	return it, ok
}

func (m *memory) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.commits
}

func (m *memory) ttl(lease int64) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leases[lease]
}

// memoryLink is one client's connection.
type memoryLink struct {
	m    *memory
	dead *atomic.Bool
}

// away says whether there is no way to the store. m.mu is held.
func (l *memoryLink) away() bool { return l.m.down || l.dead.Load() }

func (l *memoryLink) close() error { return nil }

func (l *memoryLink) load(context.Context) (map[string]item, int64, error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.away() {
		return nil, 0, errDown
	}
	out := make(map[string]item, len(l.m.items))
	for k, v := range l.m.items {
		out[k] = v
	}
	return out, l.m.revision, nil
}

func (l *memoryLink) watch(ctx context.Context, from int64, changed func(batch)) error {
	for {
		l.m.mu.Lock()
		next, down, compacted := l.m.changed, l.away(), from <= l.m.oldest
		var todo []batch
		for _, b := range l.m.history {
			if b.revision >= from {
				todo = append(todo, b)
				from = b.revision + 1
			}
		}
		l.m.mu.Unlock()
		switch {
		case down:
			return errDown
		case compacted:
			return errCompacted
		}
		changed(batch{}) // a sign of life
		for _, b := range todo {
			changed(b)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-next:
		}
	}
}

func (l *memoryLink) poke(context.Context) error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.away() {
		return errDown
	}
	l.m.tell()
	return nil
}

func (l *memoryLink) commit(_ context.Context, conds []cond, ops []op) (bool, int64, error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.away() {
		return false, 0, errDown
	}
	l.m.commits++
	if len(ops) > 128 {
		return false, 0, errors.New("too many operations")
	}
	for _, c := range conds {
		if l.m.items[c.key].revision != c.revision {
			return false, l.m.revision, nil
		}
	}
	for _, o := range ops {
		if _, ok := l.m.leases[o.lease]; o.lease != 0 && !ok {
			return false, 0, errNoLease
		}
	}
	l.m.do(ops)
	return true, l.m.revision, nil
}

func (l *memoryLink) grant(_ context.Context, ttl time.Duration) (int64, error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.away() {
		return 0, errDown
	}
	l.m.lastID++
	l.m.leases[l.m.lastID] = ttl
	return l.m.lastID, nil
}

func (l *memoryLink) keep(_ context.Context, lease int64) error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.away() {
		return errDown
	}
	if _, ok := l.m.leases[lease]; !ok {
		return errNoLease
	}
	return nil
}

func (l *memoryLink) revoke(_ context.Context, lease int64) error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.away() {
		return errDown
	}
	l.m.end(lease)
	return nil
}
