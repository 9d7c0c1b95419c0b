package config

import (
	"fmt"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Pending says which settings are accepted but not in effect, in this release or in the mode that the proxy runs in, a line
// each: what, and what happens instead.
func (c *Config) Pending(mode string) []string {
	var out []string
	if mode == ModeUserspace {
		out = c.userspace()
	}
	add := func(on bool, text string) {
		if on {
			out = append(out, text+" is not in this release")
		}
	}
	add(c.Datapath.SocketLB, "datapath.socketLB")
	return out
}

// PendingIn says the same of one service.
func PendingIn(s *lb.Service, mode string) []string {
	if mode == ModeUserspace {
		return userspaceIn(s)
	}
	var out []string
	add := func(on bool, format string, args ...any) {
		if on {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	add(s.Accelerate, "accelerate is not in this release")
	probed := s.HealthCheck.Type == "tcp" || s.HealthCheck.Type == "http"
	for _, b := range s.Backends {
		add(probed && b.VLAN.Device != "", "backend %s: healthCheck does not reach into VLAN %s: what counts is whether its neighbour there answers", b.Address, b.VLAN.Name())
	}
	return out
}
