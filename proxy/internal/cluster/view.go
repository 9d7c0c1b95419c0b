package cluster

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// KnownNode is another node and how it stands in etcd.
type KnownNode struct {
	Node
	Alive bool      // its lease lives
	Gone  time.Time // when the lease of one that is not alive ended, as far as this node saw
}

// forgetNodes is how long listings show a node whose lease has ended.
const forgetNodes = 24 * time.Hour

// peers returns the other nodes for the state store. What did not change keeps its pointer.
func (m *mirror) peers(now time.Time) map[string]*state.Peer {
	out := make(map[string]*state.Peer, len(m.nodes))
	for name, p := range m.nodes {
		if lost := p.lost(now); p.view == nil || p.view.Lost != lost {
			p.view = p.make(lost)
		}
		if p.known || p.kept != nil {
			out[name] = p.view
		}
	}
	return out
}

// lost says whether the node's lease has ended.
func (p *peer) lost(now time.Time) bool { return !p.known && p.kept != nil && !now.Before(p.kept.gone) }

// make builds what others see of the node.
func (p *peer) make(lost bool) *state.Peer {
	members, health := p.members, p.health
	if !p.known && p.kept != nil {
		members, health = p.kept.members, p.kept.health
	}
	v := &state.Peer{Lost: lost, Health: maps.Clone(health), Members: slices.Collect(maps.Values(members))}
	slices.SortFunc(v.Members, func(a, b registry.Endpoint) int { return strings.Compare(a.ID, b.ID) })
	return v
}

// nextLoss returns when the next node will count as lost; zero if none will.
func (m *mirror) nextLoss(now time.Time) time.Time {
	var next time.Time
	for _, p := range m.nodes {
		if !p.known && p.kept != nil && now.Before(p.kept.gone) && (next.IsZero() || p.kept.gone.Before(next)) {
			next = p.kept.gone
		}
	}
	return next
}

// known returns the other nodes by name: those that are there, and those that were lately.
func (m *mirror) known(now time.Time) []KnownNode {
	var out []KnownNode
	for _, p := range m.nodes {
		switch {
		case p.known:
			out = append(out, KnownNode{Node: p.record, Alive: true})
		case p.kept != nil && now.Sub(p.kept.gone) < forgetNodes:
			out = append(out, KnownNode{Node: p.kept.record, Alive: now.Before(p.kept.gone), Gone: p.kept.gone})
		}
	}
	slices.SortFunc(out, func(a, b KnownNode) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// definitions returns the services of etcd by name.
func (m *mirror) definitions() []state.Definition {
	out := make([]state.Definition, 0, len(m.services))
	for _, f := range m.services {
		out = append(out, state.Definition{Spec: f.Services[0].Service, File: state.FileEtcd})
	}
	slices.SortFunc(out, func(a, b state.Definition) int { return cmp.Compare(a.Spec.Name, b.Spec.Name) })
	return out
}

// files returns the services of etcd as files, by name, but for those named.
func (m *mirror) files(without map[string]bool) []config.File {
	out := make([]config.File, 0, len(m.services))
	for name, f := range m.services {
		if !without[name] {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b config.File) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
