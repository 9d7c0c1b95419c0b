package cluster

import (
	"bytes"
	"hash/fnv"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/sched"
)

// tableKey names a base table that nodes share. files stands for what this node's files say of the
// service's backends, "" for a service of etcd: nodes whose files differ do not share, or each would undo
// what the other does.
func tableKey(service, family, files string) string {
	key := tablesDir + service + "/" + family
	if files != "" {
		key += "-" + files
	}
	return key
}

// sharedTable is a table as etcd has it.
type sharedTable struct {
	table
	service  string
	revision int64
	decoded  *sched.Base // nil until somebody asks
}

// ledTable is a table that this node would lead.
type ledTable struct {
	data  []byte    // the base's stored form
	since time.Time // when this node first wanted to lead it
}

// leadAfter is how long a node lets another one that comes before it create a table, or take one over:
// fifty nodes that start together would all write all tables.
const leadAfter = 2 * time.Second

func (m *mirror) decodeTable(key, rest string, it item) error {
	parts, ok := split(rest, 2)
	if !ok {
		return errForeign
	}
	t, err := decodeTable(it.value)
	if err != nil {
		return err
	}
	next := &sharedTable{table: t, service: parts[0], revision: it.revision}
	if t.Owner != m.self {
		if next.decoded, err = t.base(); err != nil {
			return err
		}
		m.tablesChanged[parts[0]] = true
	}
	m.tables[key] = next
	return nil
}

func (m *mirror) forgetTable(key string) {
	if t := m.tables[key]; t != nil {
		delete(m.tables, key)
		m.tablesChanged[t.service] = true
	}
}

// there says whether a node is not known to be lost, so that it goes on leading its tables.
func (m *mirror) there(node string, now time.Time) bool {
	if node == m.self {
		return true
	}
	p := m.nodes[node]
	return p != nil && (p.known || p.kept != nil && now.Before(p.kept.gone))
}

// first says whether this node comes before all others that are there in the order of a table.
func (m *mirror) first(key string) bool {
	mine := rank(key, m.self)
	for name, p := range m.nodes {
		if p.known && (rank(key, name) < mine || rank(key, name) == mine && name < m.self) {
			return false
		}
	}
	return true
}

func rank(key, node string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(key))
	h.Write([]byte{0})
	h.Write([]byte(node))
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	return x ^ x>>33
}

// Follow returns the base that the nodes share, not to be changed, or nil if this node goes on from its
// own. follow says that another node leads it: then who is in it stays in it.
//
// A node that leads a table but has none (have is false), or has not led it since it started, goes on
// from the shared one too.
func (s *Source) Follow(service, family, files string, have bool) (base *sched.Base, follow bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := tableKey(service, family, files)
	s.rename(service+"/"+family, key)
	shared := s.mirror.tables[key]
	if shared == nil {
		return nil, false
	}
	mine := shared.Owner == s.self
	if mine && s.current[key] && have {
		return nil, false
	}
	if shared.decoded == nil {
		var err error
		if shared.decoded, err = shared.base(); err != nil {
			s.mirror.foreign[key] = err.Error()
			return nil, false
		}
	}
	s.current[key] = mine
	return shared.decoded, !mine && s.mirror.there(shared.Owner, s.now())
}

// rename notes which key a table of this node has, and gives up the one that it had before.
func (s *Source) rename(at, key string) {
	if old := s.tableKeys[at]; old != "" && old != key {
		s.giveUp(old)
	}
	s.tableKeys[at] = key
}

// giveUp lets others lead a table. s.mu is held.
func (s *Source) giveUp(key string) {
	delete(s.led, key)
	s.dropped[key] = true
	s.kickWrites()
}

// Lead offers a base, in its stored form, for a table that no other node leads.
func (s *Source) Lead(service, family, files string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := tableKey(service, family, files)
	s.rename(service+"/"+family, key)
	delete(s.dropped, key)
	led, t := s.led[key], s.mirror.tables[key]
	if led != nil && bytes.Equal(led.data, data) && t != nil && t.Owner == s.self {
		return
	}
	if led == nil {
		led = &ledTable{since: s.now()}
		s.led[key] = led
	}
	led.data = data
	s.offered[key] = true
	s.kickWrites()
}

// Drop says that this node has a service no more.
func (s *Source) Drop(service string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, family := range [...]string{"v4", "v6"} {
		at := service + "/" + family
		if key := s.tableKeys[at]; key != "" {
			s.giveUp(key)
			delete(s.tableKeys, at)
		}
	}
}

// TablesChanged yields when other nodes changed tables: TakeTables says which services'.
func (s *Source) TablesChanged() <-chan struct{} { return s.tables }

// TakeTables returns the services whose tables other nodes changed since the last call.
func (s *Source) TakeTables() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]string, 0, len(s.mirror.tablesChanged))
	for name := range s.mirror.tablesChanged {
		out = append(out, name)
	}
	clear(s.mirror.tablesChanged)
	return out
}

// tableWrites returns what is to be written for the tables that this node leads or gave up, and when to
// look again; zero if nothing waits.
func (s *Source) tableWrites() (writes []write, again time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for key := range s.dropped {
		if t := s.mirror.tables[key]; t != nil && t.Owner == s.self {
			writes = append(writes, write{conds: []cond{{key, t.revision}}, ops: []op{{key: key, delete: true}}})
		}
		delete(s.dropped, key)
	}
	for key := range s.offered {
		led, t := s.led[key], s.mirror.tables[key]
		if led == nil || t != nil && t.Owner != s.self && s.mirror.there(t.Owner, now) {
			delete(s.offered, key) // another node leads
			delete(s.led, key)
			continue
		}
		if due := led.since.Add(leadAfter); (t == nil || t.Owner != s.self) && now.Before(due) && !s.mirror.first(key) {
			if again.IsZero() || due.Before(again) {
				again = due
			}
			continue
		}
		delete(s.offered, key)
		value, err := encodeTable(s.self, led.data)
		if err != nil {
			s.note("table "+key, err.Error())
			continue
		}
		c := cond{key: key}
		if t != nil && t.Owner == s.self && !s.current[key] {
			// Written by the proxy before: what it led goes on, not what this one made without knowing it.
			s.mirror.tablesChanged[t.service] = true
			kick(s.news)
			continue
		}
		if t != nil {
			if c.revision = t.revision; string(s.mirror.raw[key].value) == string(value) {
				continue
			}
		}
		writes = append(writes, write{conds: []cond{c}, ops: []op{{key: key, value: value}}, table: key})
	}
	return writes, again
}

// wrote notes whether a table was written. If not, somebody was first: the mirror will say who.
func (s *Source) wrote(key string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ok {
		s.current[key] = true
	} else {
		s.offered[key] = true
	}
}
