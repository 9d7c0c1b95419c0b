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
	if !c.present() {
		return
	}
	if c.node.Kind != yaml.MappingNode {
		c.fail("want a map (key: value), got %s", kindOf(c.node))
		return
	}
	m := &mapping{cursor: c, entries: c.entries()}
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

// entries returns the usable entries of the map at c: plain keys, each once.
func (c cursor) entries() []entry {
	content := c.node.Content
	out := make([]entry, 0, len(content)/2)
	seen := make(map[string]position, len(content)/2)
	for i := 0; i+1 < len(content); i += 2 {
		name := resolve(content[i])
		key := c.child(content[i], path{key: name.Value})
		first, twice := seen[name.Value]
		switch {
		case name.Kind != yaml.ScalarNode || name.Value == "":
			c.rep.add(key.at, c.key(), "want a word as key, got "+kindOf(name))
		case name.Tag == "!!merge":
			key.fail("merge keys are not supported: write the keys out")
		case twice:
			key.fail("key %s is given twice: first on line %d", show(name.Value), first.line)
		default:
			seen[name.Value] = key.at
			out = append(out, entry{name: name.Value, key: key, value: c.child(content[i+1], path{key: name.Value})})
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
	asked   []string
}

// entry is one key of a map with its value.
type entry struct {
	name       string
	key, value cursor
	known      bool
}

// get returns the value of a key. A key that is there without a value is a finding.
func (m *mapping) get(key string) (cursor, bool) {
	m.asked = append(m.asked, key)
	for i := range m.entries {
		if e := &m.entries[i]; e.name == key {
			e.known = true
			return e.value, e.value.present()
		}
	}
	return cursor{}, false
}

// has says whether the key is there, with or without a usable value.
func (m *mapping) has(key string) bool {
	for i := range m.entries {
		if m.entries[i].name == key {
			return true
		}
	}
	return false
}

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
		e.key.fail("unknown key %s: %s", show(e.name), advice)
	}
}
