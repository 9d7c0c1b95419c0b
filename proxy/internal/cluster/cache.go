package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"

	"github.com/tc-loadbalancer/tclb/proxy/internal/diskfile"
)

// cacheFile keeps what the cluster looked like, for a start without etcd.
const cacheFile = "cluster.json"

// cache is the form of cacheFile.
type cache struct {
	Keys map[string]string `json:"keys"` // but for tables, and for what this node says itself
	Lost []lostNode        `json:"lost,omitempty"`
}

// lostNode is a node whose record is gone, as it was.
type lostNode struct {
	Record  Node                          `json:"record"`
	Members []member                      `json:"members,omitempty"`
	Health  map[string][]state.PeerHealth `json:"health,omitempty"`
	Gone    time.Time                     `json:"gone"`
}

// loadCache makes the mirror what it was.
func (s *Source) loadCache() {
	path := filepath.Join(s.StateDir, cacheFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var c cache
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		s.Log.Error("what was known of the cluster is lost", "err", fmt.Errorf("load %s: %w", path, err))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, value := range c.Keys {
		s.mirror.put(key, item{value: []byte(value)})
	}
	for _, l := range c.Lost {
		p := s.mirror.node(l.Record.Name)
		if p.known {
			continue
		}
		k := &kept{record: l.Record, members: make(map[string]registry.Endpoint), health: l.Health, gone: l.Gone}
		for _, m := range l.Members {
			k.members[m.ID] = m.endpoint()
		}
		p.kept = k
	}
}

// saveUntil writes the cache when it changed, not too often, and at the end.
func (s *Source) saveUntil(ctx context.Context) {
	ticker := time.NewTicker(saveEvery)
	defer ticker.Stop()
	saved := int64(-1)
	for {
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
		s.mu.Lock()
		shows := s.showCount
		s.mu.Unlock()
		if shows != saved {
			data, err := json.Marshal(s.toCache())
			if err == nil {
				err = diskfile.Replace(filepath.Join(s.StateDir, cacheFile), data)
			}
			if err != nil {
				s.Log.Error("a restart without etcd will know nothing of the cluster", "err", err)
			}
			saved = shows
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// toCache returns what a restart needs.
func (s *Source) toCache() cache {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := cache{Keys: make(map[string]string, len(s.mirror.raw))}
	for key, it := range s.mirror.raw {
		if !s.mirror.own(key) && !strings.HasPrefix(key, tablesDir) {
			c.Keys[key] = string(it.value)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.mirror.nodes)) {
		k := s.mirror.nodes[name].kept
		if s.mirror.nodes[name].known || k == nil {
			continue
		}
		l := lostNode{Record: k.record, Health: k.health, Gone: k.gone}
		for _, id := range slices.Sorted(maps.Keys(k.members)) {
			e := k.members[id]
			l.Members = append(l.Members, memberOf(&e))
		}
		c.Lost = append(c.Lost, l)
	}
	return c
}
