package userspace

import (
	"container/list"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// affinityKey is a client of a service: all its ports, protocols and VIPs.
type affinityKey struct {
	client  netip.Addr
	service uint32
}

// affinity is the client's choice.
type affinity struct {
	seat    uint32
	baseGen uint32
	seen    time.Duration // of the last new flow
}

// affinities are the choices that are kept: the datapath's map of as many entries. Where it is full, the
// least recently used goes.
type affinities struct {
	seed   maphash.Seed
	shards [affinityShards]affinityShard
}

const (
	affinityShards  = 64
	affinityEntries = 65536
)

type affinityShard struct {
	mu sync.Mutex
	of map[affinityKey]*list.Element // of binding; guarded by mu, as order
	// order has who was used last in front.
	order list.List
}

type binding struct {
	key affinityKey
	affinity
}

func (a *affinities) shard(key affinityKey) *affinityShard {
	return &a.shards[maphash.Comparable(a.seed, key)%affinityShards]
}

// find returns the seat that a client is bound to, and binds it for longer.
func (a *affinities) find(key affinityKey, s *datapath.Service, now time.Duration) (uint32, bool) {
	shard := a.shard(key)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	at := shard.of[key]
	if at == nil {
		return 0, false
	}
	b := at.Value.(*binding)
	if b.baseGen != s.BaseGen || now-b.seen > s.Affinity {
		return 0, false
	}
	b.seen = now
	shard.order.MoveToFront(at)
	return b.seat, true
}

// bind binds a client.
func (a *affinities) bind(key affinityKey, to affinity) {
	shard := a.shard(key)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if at := shard.of[key]; at != nil {
		at.Value.(*binding).affinity = to
		shard.order.MoveToFront(at)
		return
	}
	if shard.of == nil {
		shard.of = make(map[affinityKey]*list.Element)
	}
	if shard.order.Len() >= affinityEntries/affinityShards {
		last := shard.order.Back()
		delete(shard.of, last.Value.(*binding).key)
		shard.order.Remove(last)
	}
	shard.of[key] = shard.order.PushFront(&binding{key, to})
}

// FlushAffinity forgets the clients' choices of a service, of all services if it is 0. It returns how many.
func (m *Maps) FlushAffinity(service uint32) (int, error) {
	n := 0
	for i := range m.bound.shards {
		shard := &m.bound.shards[i]
		shard.mu.Lock()
		for key, at := range shard.of {
			if service == 0 || key.service == service {
				delete(shard.of, key)
				shard.order.Remove(at)
				n++
			}
		}
		shard.mu.Unlock()
	}
	return n, nil
}

// FlushFragments has nothing to forget: fragments are the kernel's.
func (m *Maps) FlushFragments() error { return nil }
