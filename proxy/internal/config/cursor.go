package config

import (
	"fmt"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// cursor stands at one value of a document. Reading through it records every mistake with
// position and path, and goes on: a decoder sees only what is right.
type cursor struct {
	rep     *report
	node    *yaml.Node // aliases are followed
	at      position   // where the value stands; at and below an alias, where the alias stands
	aliased bool       // at or below an alias
	path    *path
}

// path is the way from the document's root to a value, linked upwards: most are never printed.
type path struct {
	parent *path
	key    string // "" for an element of a list
	index  int
}

// String returns "services[0].backends[1].weight".
func (p *path) String() string {
	switch {
	case p == nil:
		return ""
	case p.key == "":
		return p.parent.String() + "[" + strconv.Itoa(p.index) + "]"
	case p.parent == nil:
		return printable(p.key)
	}
	return p.parent.String() + "." + printable(p.key)
}

// newCursor returns a cursor at the root of a document.
func newCursor(rep *report, root *yaml.Node) cursor {
	return cursor{rep: rep, node: resolve(root), at: position{root.Line, root.Column}}
}

// child returns a cursor at a node below c.
func (c cursor) child(n *yaml.Node, p path) cursor {
	p.parent = c.path
	at := position{n.Line, n.Column}
	if c.aliased {
		at = c.at
	}
	return cursor{rep: c.rep, node: resolve(n), at: at, aliased: c.aliased || n.Kind == yaml.AliasNode, path: &p}
}

// key returns the path as findings show it.
func (c cursor) key() string {
	if c.path == nil {
		return keyYAML
	}
	return c.path.String()
}

// fail records that the value at c is wrong.
func (c cursor) fail(format string, args ...any) {
	if c.rep.cut {
		return
	}
	c.rep.add(c.at, c.key(), fmt.Sprintf(format, args...))
}

// present records a finding if there is no value at c.
func (c cursor) present() bool {
	if isNull(c.node) {
		c.fail("value is missing: give one or remove the key")
		return false
	}
	return true
}

// fields reads the value at c as a map: read asks for its keys, and what it did not ask for is unknown.
func (c cursor) fields(read func(m *mapping)) {
	if c.rep.cut || !c.present() { // nobody would see what is wrong below
		return
	}
	if c.node.Kind != yaml.MappingNode {
		c.fail("want a map (key: value), got %s", kindOf(c.node))
		return
	}
	m := newMapping(c)
	read(m)
	m.reportUnknown()
}

// elements returns a cursor at each element of the list at c.
func (c cursor) elements() []cursor {
	if !c.present() {
		return nil
	}
	if c.node.Kind != yaml.SequenceNode {
		c.fail("want a list, got %s: write [...] or begin each element with \"- \"", kindOf(c.node))
		return nil
	}
	out := make([]cursor, 0, len(c.node.Content))
	for i, n := range c.node.Content {
		if e := c.child(n, path{index: i}); e.present() {
			out = append(out, e)
		}
	}
	return out
}

// kindOf says in the user's words what a node is.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a map"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if n.Value == "" {
			return "nothing"
		}
		return show(n.Value)
	}
	return "something else"
}

// mapping is a map being read. A key is known because the decoder asks for it, so the list of
// known keys cannot differ from what is decoded.
type mapping struct {
	cursor
	entries []entry
	index   map[string]int // into entries; nil for small maps, which are searched
	asked   []string
}

// entry is one key of a map with its value.
type entry struct {
	name       string
	key, value *yaml.Node
	known      bool
}

// smallMap is up to how many keys searching is faster than an index. No valid map has more.
const smallMap = 32

// newMapping returns the usable entries of the map at c: plain keys, each once.
func newMapping(c cursor) *mapping {
	content := c.node.Content
	m := &mapping{cursor: c, entries: make([]entry, 0, len(content)/2), asked: make([]string, 0, 8)}
	if len(content)/2 > smallMap {
		m.index = make(map[string]int, len(content)/2)
	}
	for i := 0; i+1 < len(content); i += 2 {
		m.add(content[i], content[i+1])
	}
	return m
}

// add takes an entry in, or records why its key cannot be used.
func (m *mapping) add(key, value *yaml.Node) {
	word := resolve(key)
	first := m.find(word.Value)
	switch {
	case word.Kind != yaml.ScalarNode || word.Value == "":
		m.rep.add(m.child(key, path{}).at, m.cursor.key(), "want a word as key, got "+kindOf(word))
	case word.Tag == "!!merge":
		m.child(key, path{key: word.Value}).fail("merge keys are not supported: write the keys out")
	case first != nil:
		m.child(key, path{key: word.Value}).fail("key %s is given twice: first on line %d", show(word.Value), first.key.Line)
	default:
		if m.index != nil {
			m.index[word.Value] = len(m.entries)
		}
		m.entries = append(m.entries, entry{name: word.Value, key: key, value: value})
	}
}

// find returns the entry of a key, nil if there is none.
func (m *mapping) find(key string) *entry {
	if m.index != nil {
		if i, ok := m.index[key]; ok {
			return &m.entries[i]
		}
		return nil
	}
	for i := range m.entries {
		if m.entries[i].name == key {
			return &m.entries[i]
		}
	}
	return nil
}

// get returns the value of a key. A key that is there without a value is a finding.
func (m *mapping) get(key string) (cursor, bool) {
	m.asked = append(m.asked, key)
	e := m.find(key)
	if e == nil {
		return cursor{}, false
	}
	e.known = true
	c := m.child(e.value, path{key: key})
	return c, c.present()
}

// has says whether the key is there, with or without a usable value.
func (m *mapping) has(key string) bool { return m.find(key) != nil }

// require records a finding if the key is not there.
func (m *mapping) require(key, advice string) {
	if !m.has(key) {
		m.rep.add(m.at, (&path{parent: m.path, key: key}).String(), key+" is missing: "+advice)
	}
}

// fields reads the map under a key, if the key is there.
func (m *mapping) fields(key string, read func(m *mapping)) {
	if c, ok := m.get(key); ok {
		c.fields(read)
	}
}

// elements returns a cursor at each element of the list under a key, none if there is no such key.
func (m *mapping) elements(key string) []cursor {
	if c, ok := m.get(key); ok {
		return c.elements()
	}
	return nil
}

// reportUnknown records the keys that nobody asked for.
func (m *mapping) reportUnknown() {
	for _, e := range m.entries {
		if e.known {
			continue
		}
		advice := "want " + oneOf(m.asked)
		if near := nearest(e.name, m.asked); near != "" {
			advice = fmt.Sprintf("did you mean %q?", near)
		}
		m.child(e.key, path{key: e.name}).fail("unknown key %s: %s", show(e.name), advice)
	}
}
