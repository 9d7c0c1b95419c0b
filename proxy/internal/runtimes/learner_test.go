package runtimes

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// fake is a runtime that answers from a table.
type fake struct {
	called string
	moving bool

	mu    sync.Mutex
	table map[string]map[string]string
	err   error
	asked [][]string
}

func (f *fake) name() string                { return f.called }
func (f *fake) mutable() bool               { return f.moving }
func (f *fake) mine(registry.Endpoint) bool { return true }

func (f *fake) labels(_ context.Context, ids []string) (map[string]map[string]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, ids)
	if f.err != nil {
		return nil, f.err
	}
	out := make(map[string]map[string]string)
	for _, id := range ids {
		if l, ok := f.table[id]; ok {
			out[id] = l
		}
	}
	return out, nil
}

func (f *fake) rounds() [][]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

// pupil is a learner with fake runtimes and what it published last.
type pupil struct {
	*Learner
	last []registry.Endpoint // guarded by the learner's mutex, which is held while publishing
}

func learn(dir string, runtimes ...runtime) *pupil {
	p := &pupil{}
	p.Learner = NewLearner(Options{
		Podman: Off, Containerd: Off, StateDir: dir, Log: slog.New(slog.DiscardHandler),
		Publish: func(e []registry.Endpoint) { p.last = e },
	})
	p.runtimes = runtimes
	return p
}

// services returns what endpoints join, "id:source:services".
func (p *pupil) services() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, e := range p.last {
		out = append(out, e.ID+":"+e.Source+":"+strings.Join(append(slices.Clone(e.Services), e.Names...), ","))
	}
	return out
}

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func endpoint(id, container string) registry.Endpoint {
	return registry.Endpoint{ID: id, ContainerID: container, Created: t0, Names: []string{"alias"}}
}

func expectServices(t *testing.T, p *pupil, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, p.services()); d != "" {
		t.Errorf("services (-want +got):\n%s", d)
	}
}

func TestLabelsReplaceConflistAndNamesOnly(t *testing.T) {
	five, nine := 5, 9
	l := Labels{Services: []string{"web"}, Weight: &five, Port: 8080}
	args := registry.Endpoint{Services: []string{"api"}, Source: registry.SourceArgs}
	tests := []struct {
		name     string
		labels   Labels
		in, want registry.Endpoint
	}{
		{"names", l, registry.Endpoint{Names: []string{"x"}}, registry.Endpoint{Services: []string{"web"}, Source: SourceLabels, Weight: &five, Port: 8080}},
		{
			"conflist", l,
			registry.Endpoint{Services: []string{"all"}, Source: registry.SourceConflist},
			registry.Endpoint{Services: []string{"web"}, Source: SourceLabels, Weight: &five, Port: 8080},
		},
		{"CNI_ARGS", l, args, args},
		{
			"annotations", l,
			registry.Endpoint{Services: []string{"api"}, Source: registry.SourceAnnotations},
			registry.Endpoint{Services: []string{"api"}, Source: registry.SourceAnnotations},
		},
		{"weight alone", Labels{Weight: &five}, registry.Endpoint{Names: []string{"x"}}, registry.Endpoint{Names: []string{"x"}, Weight: &five}},
		{
			"weight of CNI_ARGS without services", l,
			registry.Endpoint{Weight: &nine, Port: 1},
			registry.Endpoint{Services: []string{"web"}, Source: SourceLabels, Weight: &nine, Port: 1},
		},
		{"no labels", Labels{}, registry.Endpoint{Names: []string{"x"}}, registry.Endpoint{Names: []string{"x"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := tt.in
			if d := cmp.Diff(tt.want, tt.labels.apply(tt.in), cmp.Comparer(func(a, b registry.Endpoint) bool {
				return cmp.Equal(a.Services, b.Services) && cmp.Equal(a.Names, b.Names) && a.Source == b.Source && cmp.Equal(a.Weight, b.Weight) && a.Port == b.Port
			})); d != "" {
				t.Error(d)
			}
			if !slices.Equal(before.Services, tt.in.Services) {
				t.Error("the caller's endpoint changed")
			}
		})
	}
}

func TestWrongLabelsDoNotCountAndAreSaid(t *testing.T) {
	l, errs := parseLabels(map[string]string{
		labelServices: " web, Web,api,web,", labelWeight: "1001", labelPort: "0", "tclb.service": "x", "other": "y",
	})
	if want := []string{"web", "api"}; !slices.Equal(l.Services, want) || l.Weight != nil || l.Port != 0 {
		t.Errorf("got %+v", l)
	}
	var text []string
	for _, err := range errs {
		text = append(text, err.Error())
	}
	want := []string{
		`label tclb.port="0" is ignored: want a port from 1 to 65535`,
		`label tclb.service is unknown: want tclb.services, tclb.weight or tclb.port`,
		`label tclb.services=" web, Web,api,web," is ignored: want names of services, with commas between them`,
		`label tclb.weight="1001" is ignored: want a number from 0 to 1000`,
	}
	if d := cmp.Diff(want, text); d != "" {
		t.Error(d)
	}
	l, errs = parseLabels(map[string]string{labelServices: "web", labelWeight: "0", labelPort: "65535"})
	if len(errs) > 0 || l.Weight == nil || *l.Weight != 0 || l.Port != 65535 {
		t.Errorf("got %+v, %v", l, errs)
	}
}

func TestEachContainerIsAskedForOnce(t *testing.T) {
	r := &fake{called: "r", table: map[string]map[string]string{"c1": {labelServices: "web"}}}
	p := learn(t.TempDir(), r)
	p.SetEndpoints([]registry.Endpoint{endpoint("e1", "c1"), endpoint("e1b", "c1"), endpoint("e2", "c2")})
	expectServices(t, p, "e1::alias", "e1b::alias", "e2::alias")
	p.round(t.Context(), false)
	expectServices(t, p, "e1:labels:web", "e1b:labels:web", "e2::alias")
	p.round(t.Context(), true)
	p.SetEndpoints([]registry.Endpoint{endpoint("e1", "c1"), endpoint("e3", "c3")})
	p.round(t.Context(), false)
	if d := cmp.Diff([][]string{{"c1", "c2"}, {"c3"}}, r.rounds()); d != "" {
		t.Error(d)
	}
}

func TestASecondContainerOfTheSameIDIsAnother(t *testing.T) {
	r := &fake{called: "r", table: map[string]map[string]string{"c1": {labelServices: "web"}}}
	p := learn(t.TempDir(), r)
	p.SetEndpoints([]registry.Endpoint{endpoint("e1", "c1")})
	p.round(t.Context(), false)
	r.table["c1"] = nil
	again := endpoint("e1", "c1")
	again.Created = t0.Add(time.Minute)
	p.SetEndpoints([]registry.Endpoint{again})
	expectServices(t, p, "e1::alias")
	p.round(t.Context(), false)
	expectServices(t, p, "e1::alias")
}

func TestLabelsThatChangeAreFollowed(t *testing.T) {
	r := &fake{called: "r", moving: true, table: map[string]map[string]string{"c1": {labelServices: "web"}}}
	p := learn(t.TempDir(), &fake{called: "other"}, r)
	p.SetEndpoints([]registry.Endpoint{endpoint("e1", "c1")})
	p.round(t.Context(), false)
	r.table["c1"] = map[string]string{labelServices: "api"}
	p.round(t.Context(), false)
	expectServices(t, p, "e1:labels:web")
	p.round(t.Context(), true)
	expectServices(t, p, "e1:labels:api")
}

func TestASilentRuntimeIsLeftAloneForAWhile(t *testing.T) {
	broken := &fake{called: "broken", err: errors.New("no answer")}
	fine := &fake{called: "fine", table: map[string]map[string]string{"c1": {labelServices: "web"}}}
	p := learn(t.TempDir(), broken, fine)
	p.SetEndpoints([]registry.Endpoint{endpoint("e0", "c0"), endpoint("e1", "c1")})
	var waits []time.Duration
	for range 3 {
		waits = append(waits, p.round(t.Context(), false).Round(time.Second))
		p.round(t.Context(), false) // too early: asks nobody
		p.silent["broken"].until = time.Now()
	}
	expectServices(t, p, "e0::alias", "e1:labels:web")
	if d := cmp.Diff([]time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second}, waits); d != "" {
		t.Error(d)
	}
	if n := len(broken.rounds()); n != 3 {
		t.Errorf("asked %d times", n)
	}
	broken.err, broken.table = nil, map[string]map[string]string{"c0": {labelServices: "api"}}
	p.round(t.Context(), false)
	expectServices(t, p, "e0:labels:api", "e1:labels:web")
}

func TestRestartKeepsLabelsUntilRuntimesAnswer(t *testing.T) {
	dir := t.TempDir()
	r := &fake{called: "r", table: map[string]map[string]string{"c1": {labelServices: "web", labelWeight: "7"}}}
	p := learn(dir, r)
	p.SetEndpoints([]registry.Endpoint{endpoint("e1", "c1"), endpoint("e2", "c2")})
	p.round(t.Context(), false)

	r.err = errAbsent
	p = learn(dir, r)
	replaced := endpoint("e2", "c2")
	p.SetEndpoints([]registry.Endpoint{endpoint("e1", "c1"), replaced})
	expectServices(t, p, "e1:labels:web", "e2::alias")
	if p.last[0].Weight == nil || *p.last[0].Weight != 7 {
		t.Errorf("weight %v", p.last[0].Weight)
	}
	p.round(t.Context(), false)
	expectServices(t, p, "e1:labels:web", "e2::alias")

	r.err, r.table = nil, map[string]map[string]string{"c1": {labelServices: "api"}}
	delete(p.silent, "r")
	p.round(t.Context(), false)
	expectServices(t, p, "e1:labels:api", "e2::alias")

	if err := os.WriteFile(filepath.Join(dir, "labels.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	p = learn(dir, r)
	p.SetEndpoints([]registry.Endpoint{endpoint("e1", "c1")})
	expectServices(t, p, "e1::alias")
}

func TestManyChangesAreFewRounds(t *testing.T) {
	pause := askPause
	askPause = 200 * time.Millisecond
	t.Cleanup(func() { askPause = pause })
	r := &fake{called: "r"}
	p := learn(t.TempDir(), r)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	var all []registry.Endpoint
	start := time.Now()
	for i := range 100 {
		all = append(all, endpoint(string(rune('A'+i)), string(rune('a'+i))))
		p.SetEndpoints(slices.Clone(all))
		time.Sleep(5 * time.Millisecond)
	}
	deadline := time.Now().Add(5 * time.Second)
	for len(slices.Concat(r.rounds()...)) < len(all) && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	most := int(time.Since(start)/askPause) + 2
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := len(r.rounds()); n > most || len(slices.Concat(r.rounds()...)) != len(all) {
		t.Errorf("%d rounds for %d containers, want at most %d for %d", n, len(slices.Concat(r.rounds()...)), most, len(all))
	}
}
