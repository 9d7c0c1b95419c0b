package api

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// nodeRows returns the rows of the node listing, by name.
func (s *Server) nodeRows() []Node {
	out := []Node{}
	for _, n := range s.view.Nodes() {
		row := Node{
			Name: n.Name, Address: n.Address, Reachable: n.Reachable, Self: n.Self, Plain: n.Plain,
			MTU: n.MTU, Version: n.Version, Since: someTime(n.Since), LastSeen: someTime(n.LastSeen), Notes: nodeNotes(n),
		}
		if n.Self {
			row.Version = s.version
		}
		if n.Latency > 0 {
			latency := n.Latency.Round(time.Microsecond).Seconds()
			row.Latency = &latency
		}
		if n.Probes != (view.NodeProbes{}) {
			row.LossRatio = &n.LossRatio
		}
		out = append(out, row)
	}
	return out
}

// noTunnel is the note on nodes that could be reached by a tunnel alone, where there is none.
const noTunnel = "not reached: this node is in userspace mode, which has no tunnel"

// nodeNotes says what is odd about a node, and what to do.
func nodeNotes(n view.Node) []string {
	out := []string{}
	if n.Plain {
		out = append(out, "a plain VXLAN peer: not probed")
	}
	if n.NoTunnel {
		out = append(out, noTunnel)
	}
	if n.MTUBlackHole {
		out = append(out, fmt.Sprintf("mtu-blackhole: packets of %d bytes are lost: set tunnel.mtu lower, or correct the network's", n.MTU))
	}
	if n.OffloadsBroken {
		out = append(out, "offloads: segmented packets are lost: update the kernel or the driver of the device to that node")
	}
	return out
}

// nodeProblems are the lines of status about nodes.
func nodeProblems(nodes []Node) []string {
	var out []string
	for _, n := range nodes {
		if !n.Reachable && !slices.Contains(n.Notes, noTunnel) {
			line := fmt.Sprintf("node %s (%s) is unreachable", n.Name, n.Address)
			if n.Since != nil {
				line += " since " + n.Since.Format(time.RFC3339)
			}
			out = append(out, line+": its backends get no new connections while others can; see that its tunnel port is open and its datapath loaded")
		}
		if !n.Plain {
			for _, note := range n.Notes {
				out = append(out, "node "+n.Name+": "+note)
			}
		}
	}
	return out
}

func someTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC().Truncate(time.Millisecond)
	return &t
}

func (s *Server) ping(w http.ResponseWriter, r *http.Request) {
	pong, err := s.view.PingNode(r.Context(), r.PathValue("name"))
	s.answer(w, r, Pong{
		Node: r.PathValue("name"), Address: pong.Address, Size: pong.Size, Answered: pong.Answered,
		Seconds: pong.Took.Round(time.Microsecond).Seconds(),
	}, err)
}
