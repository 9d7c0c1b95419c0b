package daemon

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// notePeerProblems keeps what is wrong, and logs what was not so before.
func (p *kernelMode) notePeerProblems(err error) {
	var now []string
	if err != nil {
		now = strings.Split(err.Error(), "\n")
	}
	p.peers.mu.Lock()
	before := p.peers.problems
	p.peers.problems = now
	p.peers.mu.Unlock()
	for _, text := range now {
		if !slices.Contains(before, text) {
			p.Log.Error("other nodes or clients outside are not reached as they should be", "err", text)
		}
	}
}

// lowMTU is what IPv6 needs of every way.
const lowMTU = 1280

// ways implements mode: what is wrong with the ways to other nodes and to clients outside, a line each.
func (p *kernelMode) ways() []string {
	n := p.peers
	known := n.table.Nodes()
	n.mu.Lock()
	out := slices.Clone(n.problems)
	for _, peer := range n.listed {
		if mtu := known[peer.Name].MTU; mtu < lowMTU {
			out = append(out, fmt.Sprintf("node %s: packets of %d bytes fit through the tunnel, and IPv6 needs %d: the underlay needs a larger MTU", peer.Name, mtu, lowMTU))
		}
	}
	n.mu.Unlock()
	p.trunks.mu.Lock()
	out = append(out, p.trunks.problems...)
	p.trunks.mu.Unlock()
	return append(out, p.apart()...)
}

// apart implements mode: backends are said to be on nodes that nobody knows.
func (p *kernelMode) apart() []string {
	s := p.store.Snapshot()
	if s == nil {
		return nil
	}
	return elsewhere(s, "which is not known: it gets no connections until that node is in etcd, or in nodes in tclb.yaml")
}

// elsewhere returns a line for each node with backends that there is no way to, with what follows.
func elsewhere(s *state.Snapshot, what string) []string {
	var out []string
	for _, svc := range s.Services {
		said := make(map[string]bool)
		for i := range svc.Backends {
			b := &svc.Backends[i]
			if b.Placed() || b.Tagged() || said[b.Node] {
				continue
			}
			said[b.Node] = true
			out = append(out, fmt.Sprintf("service %s (%s): backend %s is on node %s, %s",
				svc.Spec.Name, svc.File, b.Key(), b.Node, what))
		}
	}
	return out
}
