package cluster

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// mirror is what is known of etcd's keys, decoded. It has no lock: Source guards it.
type mirror struct {
	self     string // this node: its own keys are kept as they are, the others' are decoded
	revision int64
	raw      map[string]item // everything, as it is there
	mine     map[string]item // of raw: what this node says

	nodes     map[string]*peer // the others
	services  map[string]config.File
	vips      map[string]string // address to service
	overrides map[string]state.Override
	tables    map[string]*sharedTable
	foreign   map[string]string // why a key does not count, by key

	// What changed since the last view was made.
	servicesChanged bool
	tablesChanged   map[string]bool // by service
}

// peer is another node.
type peer struct {
	known   bool // it has presented itself
	record  Node
	members map[string]registry.Endpoint
	health  map[string][]state.PeerHealth

	// kept is what is in force of a node whose record is gone: as it was then.
	kept *kept
	view *state.Peer // made of the above; nil = to be made
}

// kept is a node as it was when its record vanished.
type kept struct {
	record  Node
	members map[string]registry.Endpoint
	health  map[string][]state.PeerHealth
	gone    time.Time // when its lease ended, or will count as ended
}

func newMirror(self string) *mirror {
	return &mirror{
		self: self, raw: make(map[string]item), mine: make(map[string]item), nodes: make(map[string]*peer), services: make(map[string]config.File),
		vips: make(map[string]string), overrides: make(map[string]state.Override), tables: make(map[string]*sharedTable),
		foreign: make(map[string]string), tablesChanged: make(map[string]bool),
	}
}

// replace makes the mirror equal to all that etcd holds. A node that is missing was there when changes were
// seen last, so nobody saw it go: its backends stay for another grace, since after a loss of etcd's
// data, or of the connection, it may be about to return.
func (m *mirror) replace(all map[string]item, revision int64, now time.Time, grace time.Duration) {
	for name, p := range m.nodes {
		if _, there := all[nodesDir+name]; !there && p.known {
			p.keep(now.Add(grace))
		}
	}
	for key := range m.raw {
		if _, there := all[key]; !there {
			m.drop(key)
		}
	}
	for key, it := range all {
		m.put(key, it)
	}
	m.revision = revision
}

// apply takes a batch of changes over. A node whose record goes is lost from now on, with what it had
// before the batch: its lease takes the other keys away at the same revision.
func (m *mirror) apply(b batch, now time.Time) {
	last := make(map[string]bool) // whether a record is there in the end
	for _, c := range b.changes {
		if name, ok := strings.CutPrefix(c.key, nodesDir); ok {
			last[name] = c.value != nil
		}
	}
	for name, there := range last {
		if p := m.nodes[name]; p != nil && p.known && !there {
			p.keep(now)
		}
	}
	for _, c := range b.changes {
		if c.value == nil {
			m.drop(c.key)
		} else {
			m.put(c.key, c.item)
		}
	}
	m.revision = max(m.revision, b.revision)
}

// keep remembers the node as it is.
func (p *peer) keep(gone time.Time) {
	p.kept = &kept{record: p.record, members: maps.Clone(p.members), health: maps.Clone(p.health), gone: gone}
	p.view = nil
}

func (m *mirror) node(name string) *peer {
	p := m.nodes[name]
	if p == nil {
		p = &peer{members: make(map[string]registry.Endpoint), health: make(map[string][]state.PeerHealth)}
		m.nodes[name] = p
	}
	return p
}

// put takes one key over, if it is news. What cannot be read changes nothing: what the key said before
// stays in force.
func (m *mirror) put(key string, it item) {
	old, known := m.raw[key]
	m.raw[key] = it
	if m.own(key) {
		m.mine[key] = it
	}
	if known && slices.Equal(old.value, it.value) {
		if t := m.tables[key]; t != nil {
			t.revision = it.revision
		}
		return
	}
	if err := m.decode(key, it); err != nil {
		m.foreign[key] = err.Error()
		return
	}
	delete(m.foreign, key)
}

// own says whether a key is one that this node writes.
func (m *mirror) own(key string) bool {
	dir, rest, _ := strings.Cut(key, "/")
	switch dir + "/" {
	case nodesDir:
		return rest == m.self
	case membersDir, healthDir:
		node, id, _ := strings.Cut(rest, "/")
		return node == m.self && id != "" && !strings.Contains(id, "/")
	}
	return false
}

// decode sorts a key into its place.
func (m *mirror) decode(key string, it item) error {
	dir, rest, _ := strings.Cut(key, "/")
	switch dir + "/" {
	case nodesDir:
		return m.decodeNode(rest, it)
	case membersDir, healthDir:
		return m.decodeOfNode(dir+"/", rest, it)
	case serviceDir:
		f, err := decodeService(key, rest, it.value)
		if err == nil {
			m.services[rest], m.servicesChanged = f, true
		}
		return err
	case vipsDir:
		m.vips[rest] = string(it.value)
		return nil
	case overridDir:
		o, err := decodeOverride(key, it.value)
		if err == nil {
			m.overrides[key] = o
		}
		return err
	case tablesDir:
		return m.decodeTable(key, rest, it)
	}
	return errForeign
}

func (m *mirror) decodeNode(name string, it item) error {
	n, err := decodeNode(name, it.value)
	if err != nil || name == m.self {
		return err
	}
	p := m.node(name)
	p.known, p.record, p.kept, p.view = true, n, nil, nil
	return nil
}

// decodeOfNode decodes what a node says of its containers.
func (m *mirror) decodeOfNode(dir, rest string, it item) error {
	parts, ok := split(rest, 2)
	if !ok {
		return errForeign
	}
	name, id := parts[0], parts[1]
	if dir == membersDir {
		e, err := decodeMember(id, it.value)
		if err != nil || name == m.self {
			return err
		}
		m.node(name).members[id] = e
	} else {
		var list []state.PeerHealth
		if err := decodeJSON(it.value, &list); err != nil || name == m.self {
			return err
		}
		m.node(name).health[id] = list
	}
	m.node(name).view = nil
	return nil
}

// drop takes a key that is gone out.
func (m *mirror) drop(key string) {
	delete(m.raw, key)
	delete(m.mine, key)
	delete(m.foreign, key)
	m.forget(key)
}

// forget takes what a key said out of its place.
func (m *mirror) forget(key string) {
	dir, rest, _ := strings.Cut(key, "/")
	switch dir + "/" {
	case nodesDir:
		if p := m.nodes[rest]; p != nil {
			p.known, p.view = false, nil
		}
	case membersDir, healthDir:
		if parts, ok := split(rest, 2); ok && m.nodes[parts[0]] != nil {
			p := m.nodes[parts[0]]
			if dir+"/" == membersDir {
				delete(p.members, parts[1])
			} else {
				delete(p.health, parts[1])
			}
			p.view = nil
		}
	case serviceDir:
		if _, ok := m.services[rest]; ok {
			delete(m.services, rest)
			m.servicesChanged = true
		}
	case vipsDir:
		delete(m.vips, rest)
	case overridDir:
		delete(m.overrides, key)
	case tablesDir:
		m.forgetTable(key)
	}
}
