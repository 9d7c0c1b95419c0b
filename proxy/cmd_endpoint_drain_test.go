package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/api/apitest"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// anyBackend lets the node drain its container by its addresses, as the real one does.
func anyBackend(n *node) {
	n.view.KnowsBackend = func(service, _ string) bool { return service == "web" || service == "api" }
	n.view.ServiceValues = append(n.view.ServiceValues, view.Service{Service: lb.Service{Name: "api"}, ID: 4})
	n.view.BackendValues = append(n.view.BackendValues, view.Backend{
		ID: 10, Service: "api", Address: netip.MustParseAddr("192.0.2.105"), Port: 9000, Protocol: lb.TCP, Local: true, Endpoint: "e1",
	})
}

func TestEndpointDrainCoversAllServices(t *testing.T) {
	n := startNode(t)
	anyBackend(n)
	for _, word := range []string{"web-1", "c0ffee0123456789ab", "c0ffee012345"} {
		got := n.run(t, "endpoint drain "+word)
		if want := (result{exitDone, "container " + word + ": draining in 2 services\n", ""}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		want := []string{"drain api 192.0.2.105 true", "drain web 192.0.2.105 true", "drain web 2001:db8::5 true"}
		calls := n.view.Calls()
		if diff := cmp.Diff(want, calls[len(calls)-3:]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", word, diff)
		}
	}
	if got := n.run(t, "endpoint undrain web-1"); got.status != exitDone || !strings.Contains(got.stdout, "no longer drained in 2 services") {
		t.Errorf("%+v", got)
	}
	for _, word := range []string{"nobody", "c0ffee"} {
		got := n.run(t, "endpoint drain "+word)
		if got.status != exitFailed || !strings.Contains(got.stderr, "is not attached here: tclb endpoint list shows who is") {
			t.Errorf("%s: %+v", word, got)
		}
	}
}

func TestEndpointDrainWaitsForTheLastConnection(t *testing.T) {
	n := startNode(t)
	anyBackend(n)
	got := n.run(t, "endpoint drain web-1 --wait=50ms")
	if got.status != exitTimeout || !strings.Contains(got.stderr, "container web-1 still has 1 connection after 50ms") {
		t.Errorf("%+v", got)
	}
	once := false
	n.view.BackendsChanged = func(*apitest.View) {
		if !once {
			once = true
			time.AfterFunc(3*drainPoll/2, func() { n.maps.SetStat(12, datapath.BackendStat{Total: 2}) })
		}
	}
	start := time.Now()
	if got := n.run(t, "endpoint drain web-1 --wait"); got.status != exitDone {
		t.Errorf("%+v", got)
	}
	if took := time.Since(start); took < 3*drainPoll/2 {
		t.Errorf("came back after %s, with a connection left", took)
	}
}

// A container that serves nothing has nothing to wait for.
func TestEndpointDrainOfABystander(t *testing.T) {
	n := startNode(t)
	n.view.BackendValues = nil
	if got := n.run(t, "endpoint drain web-1 --wait"); got.status != exitDone || !strings.Contains(got.stdout, "0 services") {
		t.Errorf("%+v", got)
	}
}
