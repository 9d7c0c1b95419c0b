package config

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// defaultService returns what holds where a service says nothing.
func defaultService() lb.Service {
	return lb.Service{
		Scheduler:   lb.Maglev,
		BoundedLoad: 1.25,
		Affinity:    lb.Affinity{Mode: lb.AffinityNone, Timeout: 3 * time.Hour},
		Members:     true,
		HealthCheck: lb.HealthCheck{Type: "none", Interval: 2 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3},
	}
}

// The words of the configuration and what they stand for.
var (
	protocols = choice([]option[lb.Protocol]{{"tcp", lb.TCP}, {"udp", lb.UDP}})

	schedulers = choice([]option[lb.Scheduler]{
		{"maglev", lb.Maglev},
		{"random", lb.Random},
		{"round-robin", lb.RoundRobin},
		{"least-conn", lb.LeastConn},
		{"bounded-load", lb.BoundedLoad},
		{"latency", lb.Latency},
	})

	affinityModes = choice([]option[lb.AffinityMode]{{"none", lb.AffinityNone}, {"client-ip", lb.AffinityClientIP}})
)

// read decodes one service.
func (d *Definition) read(m *mapping) {
	s := &d.Service
	m.require("name", "give the service a name")
	if at, ok := m.get("name"); ok {
		d.name = at.spot()
		s.Name, _ = value(at, label)
	}
	d.readVIPs(m)
	d.readPorts(m)
	set(m, "scheduler", &s.Scheduler, schedulers)
	m.fields("boundedLoad", func(m *mapping) { set(m, "factor", &s.BoundedLoad, fraction(1, 100)) })
	m.fields("affinity", func(m *mapping) {
		set(m, "mode", &s.Affinity.Mode, affinityModes)
		set(m, "timeout", &s.Affinity.Timeout, duration(time.Second, 30*24*time.Hour))
	})
	d.readBackends(m)
	set(m, "members", &s.Members, boolean)
	setList(m, "networks", &s.Networks, nonEmpty)
	m.fields("healthCheck", d.readHealthCheck)
	m.fields("outlier", func(m *mapping) { set(m, "enabled", &s.Outlier.Enabled, boolean) })
	m.fields("timeouts", func(m *mapping) { readTimeouts(m, &s.Timeouts) })
	d.dsr = setAt(m, "dsr", &s.DSR, boolean)
	d.fast = setAt(m, "accelerate", &s.Accelerate, boolean)
	setList(m, "allow", &s.Allow, prefix)
}

// readVIPs decodes the service's own addresses.
func (d *Definition) readVIPs(m *mapping) {
	seen := make(firsts[netip.Addr])
	for _, e := range m.elements("vips") {
		vip, ok := value(e, local("VIP"))
		d.vipLost = d.vipLost || !ok
		if ok && seen.add(e, vip, "VIP "+vip.String()) {
			d.Service.VIPs = append(d.Service.VIPs, vip)
			d.vips = append(d.vips, e.spot())
		}
	}
}

// frontPort is what makes a port of a service different from another.
type frontPort struct {
	protocol lb.Protocol
	port     uint16
}

// readPorts decodes the ports: at least one, each (protocol, port) and each name once.
func (d *Definition) readPorts(m *mapping) {
	m.require("ports", "give at least one, such as {port: 80}")
	at, ok := m.get("ports")
	if !ok {
		return
	}
	elements := at.elements()
	if at.node.Value == "" && len(at.node.Content) == 0 {
		at.fail("ports are empty: give at least one, such as {port: 80}")
	}
	numbers, names := make(firsts[frontPort]), make(firsts[string])
	for _, e := range elements {
		e.fields(func(m *mapping) {
			d.Service.Ports = append(d.Service.Ports, readPort(m, numbers, names))
		})
	}
}

// readPort decodes one port; numbers and names are those of the ports before it.
func readPort(m *mapping, numbers firsts[frontPort], names firsts[string]) lb.Port {
	p := lb.Port{Protocol: lb.TCP}
	if at, ok := m.get("name"); ok {
		if p.Name, ok = value(at, label); ok {
			names.add(at, p.Name, "port name "+show(p.Name))
		}
	}
	known := set(m, "protocol", &p.Protocol, protocols) || !m.has("protocol")
	m.require("port", "give the port that clients connect to")
	if at, ok := m.get("port"); ok {
		p.Port, ok = value(at, portNumber)
		if ok && known {
			numbers.add(at, frontPort{p.Protocol, p.Port}, fmt.Sprintf("port %d/%s", p.Port, p.Protocol))
		}
	}
	p.TargetPort = p.Port
	set(m, "targetPort", &p.TargetPort, portNumber)
	return p
}

// readHealthCheck decodes how backends are probed. What a type does not use is a mistake, except
// below none, which is how one switches a check off for a while.
func (d *Definition) readHealthCheck(m *mapping) {
	h := &d.Service.HealthCheck
	if len(m.entries) > 0 {
		m.require("type", "want none, tcp or http")
	}
	known := set(m, "type", &h.Type, choice(words("none", "tcp", "http")))
	set(m, "port", &h.Port, portNumber)
	readHTTPCheck(m, h)
	set(m, "interval", &h.Interval, duration(100*time.Millisecond, 24*time.Hour))
	h.Timeout = min(h.Timeout, h.Interval) // the default fits itself to a short interval
	if at, ok := m.get("timeout"); ok {
		if t, ok := value(at, duration(10*time.Millisecond, time.Hour)); ok {
			if h.Timeout = t; t > h.Interval {
				at.fail("timeout %s is longer than the interval %s: a probe must end before the next begins", plain(t), plain(h.Interval))
			}
		}
	}
	set(m, "rise", &h.Rise, integer(1, 100))
	set(m, "fall", &h.Fall, integer(1, 100))
	if known && h.Type != "none" && !m.has("port") && !d.hasTCP() {
		m.require("port", "the service has no tcp port to take it from")
	}
}

// readHTTPCheck decodes what only type http uses.
func readHTTPCheck(m *mapping, h *lb.HealthCheck) {
	if h.Type == "tcp" {
		for _, key := range []string{"path", "expect"} {
			if at, ok := m.get(key); ok {
				at.fail("%s is for type http: remove it or set type: http", key)
			}
		}
		return
	}
	if h.Type == "http" {
		h.Path = "/"
	}
	set(m, "path", &h.Path, urlPath)
	set(m, "expect", &h.Expect, integer(100, 599))
}

// hasTCP says whether a TCP port was decoded, or none at all, which is reported elsewhere.
func (d *Definition) hasTCP() bool {
	for _, p := range d.Service.Ports {
		if p.Protocol == lb.TCP {
			return true
		}
	}
	return len(d.Service.Ports) == 0
}

// urlPath accepts what follows the host in a URL.
var urlPath = matching(func(s string) error {
	if len(s) == 0 || s[0] != '/' {
		return errors.New("is no path: begin with /")
	}
	for _, r := range s {
		if r <= ' ' || r == 0x7f {
			return errors.New("has spaces or control characters: write them as %20")
		}
	}
	return nil
})
