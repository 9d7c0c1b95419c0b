package state

import (
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

func TestSinceIsWhenTheStateChanged(t *testing.T) {
	s := newStore(t)
	now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	begin := now
	s.now = func() time.Time { return now }
	d := service("web", "10.96.0.1")
	d.Spec.Backends = []lb.Backend{{Address: addr("198.51.100.1"), Weight: 100}, {Address: addr("198.51.100.2"), Weight: 100}}
	s.SetServices([]Definition{d})
	first := s.Snapshot().Service("web")
	want := func(times ...time.Time) {
		t.Helper()
		for i, b := range s.Snapshot().Service("web").Backends {
			if !b.Since.Equal(times[i]) {
				t.Errorf("%s is %s since %s, want %s", b.Key(), b.State, b.Since, times[i])
			}
		}
	}
	want(begin, begin)

	now = now.Add(time.Minute)
	s.SetServices([]Definition{d, service("api", "10.96.0.2")})
	if s.Snapshot().Service("web") != first {
		t.Error("a service that did not change is another one")
	}
	if err := s.SetDrain("web", "198.51.100.1", true); err != nil {
		t.Fatal(err)
	}
	drained := now
	want(drained, begin)

	now = now.Add(time.Minute)
	weight := 7
	if err := s.SetWeight("web", "198.51.100.1", &weight); err != nil {
		t.Fatal(err)
	}
	want(drained, begin) // another weight is no other state
	if err := s.SetDrain("web", "198.51.100.1", false); err != nil {
		t.Fatal(err)
	}
	want(now, begin)
}
