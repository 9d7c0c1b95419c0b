package config

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

func TestPendingNamesWhatIsNotInEffect(t *testing.T) {
	c := Default()
	if got := c.Pending("ebpf"); len(got) != 0 {
		t.Errorf("defaults: %v", got)
	}
	c.Uplinks, c.Datapath.SocketLB = []string{"eth0"}, true
	if got := strings.Join(c.Pending("ebpf"), "\n"); strings.Contains(got, "uplinks") || !strings.Contains(got, "socketLB") {
		t.Errorf("got %q", got)
	}
}

func TestPendingInNamesWhatAServiceWaitsFor(t *testing.T) {
	plain := lb.Service{Scheduler: lb.LeastConn, Affinity: lb.Affinity{Mode: lb.AffinityClientIP}, HealthCheck: lb.HealthCheck{Type: "http"}, Outlier: lb.Outlier{Enabled: true}, Backends: []lb.Backend{{Address: netip.MustParseAddr("192.0.2.1")}}}
	if got := PendingIn(&plain, "ebpf"); len(got) != 0 {
		t.Errorf("plain service: %v", got)
	}
	for want, change := range map[string]func(*lb.Service){
		"accelerate": func(s *lb.Service) { s.Accelerate = true },
		"healthCheck does not reach into VLAN eth1.5": func(s *lb.Service) {
			s.Backends = []lb.Backend{{Address: netip.MustParseAddr("192.0.2.2"), VLAN: lb.VLAN{Device: "eth1", ID: 5}}}
		},
	} {
		s := plain
		change(&s)
		if got := PendingIn(&s, "ebpf"); len(got) != 1 || !strings.Contains(got[0], want) {
			t.Errorf("%s: %q", want, got)
		}
	}
}
