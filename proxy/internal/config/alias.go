package config

import (
	"fmt"

	"go.yaml.in/yaml/v3"
)

// maxExpanded is how many values a file may have once its aliases are followed. The largest file
// without aliases has fewer; nested aliases reach any number in a few lines.
const maxExpanded = MaxFileSize

// checkAliases refuses a document whose aliases contain themselves or grow without measure.
// Afterwards every walk over the document ends, and soon.
func checkAliases(rep *report, root *yaml.Node) bool {
	e := expansion{size: make(map[*yaml.Node]int)}
	e.measure(root)
	if e.bad == nil {
		return true
	}
	rep.add(position{e.bad.Line, e.bad.Column}, keyYAML, e.reason)
	return false
}

// expansion counts the values below anchored nodes, each of them once.
type expansion struct {
	size   map[*yaml.Node]int // by anchored node; 0 while it is being counted
	bad    *yaml.Node         // the alias to blame
	reason string
}

// measure returns the number of values at and below n. After the first mistake it counts no more.
func (e *expansion) measure(n *yaml.Node) int {
	if e.bad != nil {
		return 0
	}
	if n.Kind == yaml.AliasNode {
		return e.follow(n)
	}
	if n.Anchor != "" {
		e.size[n] = 0
	}
	total := 1
	for _, child := range n.Content {
		total += e.measure(child)
		if total > maxExpanded && e.bad == nil {
			e.bad = child
			e.reason = fmt.Sprintf("aliases expand to more than %d values: write them out", maxExpanded)
		}
	}
	if n.Anchor != "" {
		e.size[n] = total
	}
	return total
}

// follow returns the size of what an alias stands for. Aliases only point backwards, so that
// was counted before, or surrounds the alias.
func (e *expansion) follow(alias *yaml.Node) int {
	size := e.size[alias.Alias]
	if size == 0 {
		e.bad = alias
		e.reason = fmt.Sprintf("alias %s contains itself", show(alias.Value))
	}
	return size
}

// resolve returns what an alias stands for, and any other node as it is.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// isNull says whether n is YAML's "no value".
func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}
