package metrics

import "github.com/tc-loadbalancer/tclb/proxy/internal/view"

// writeNodes has the known values of the label state. This node always reaches itself.
func writeNodes(s *scrape, e *emitter) {
	var reachable uint64
	for i := range s.nodes {
		reachable += number(s.nodes[i].Reachable)
	}
	e.sample(reachable, "reachable")
	e.sample(uint64(len(s.nodes))-reachable, "unreachable")
}

// probed calls f for every node that probes are sent to.
func (s *scrape) probed(f func(n *view.Node)) {
	for i := range s.nodes {
		if n := &s.nodes[i]; !n.Self && !n.Plain {
			f(n)
		}
	}
}

func writeNodeLatency(s *scrape, e *emitter) {
	s.probed(func(n *view.Node) { e.seconds(n.Latency, n.Name) })
}

func writeNodeBlackHole(s *scrape, e *emitter) {
	s.probed(func(n *view.Node) { e.sample(number(n.MTUBlackHole), n.Name) })
}

func writeNodeMTU(s *scrape, e *emitter) {
	for _, n := range s.nodes {
		if !n.Self {
			e.sample(uint64(n.MTU), n.Name)
		}
	}
}

// writeNodeProbes has the known values of the label result.
func writeNodeProbes(s *scrape, e *emitter) {
	s.probed(func(n *view.Node) {
		e.sample(n.Probes.Answered, n.Name, "answered")
		e.sample(n.Probes.Late, n.Name, "late")
		e.sample(n.Probes.Lost, n.Name, "lost")
	})
}

// writeTunnelPackets and writeTunnelBytes have the known values of the label direction.
func writeTunnelPackets(s *scrape, e *emitter) {
	e.sample(s.tunnel.PacketsIn, "in")
	e.sample(s.tunnel.PacketsOut, "out")
}

func writeTunnelBytes(s *scrape, e *emitter) {
	e.sample(s.tunnel.BytesIn, "in")
	e.sample(s.tunnel.BytesOut, "out")
}
