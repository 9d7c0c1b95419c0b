package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/proxy/internal/api/apitest"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

func TestCommandsThatChangeSomething(t *testing.T) {
	cases := []struct {
		line  string
		want  result
		calls []string
	}{
		{"backend drain web web-1", result{0, "backend web-1 of service web: draining\n", ""}, []string{"drain web web-1 true"}},
		{"backend undrain web web-1", result{0, "backend web-1 of service web: no longer drained\n", ""}, []string{"drain web web-1 false"}},
		{"backend weight web web-1 0", result{0, "backend web-1 of service web: weight 0\n", ""}, []string{"weight web web-1 0"}},
		{"backend weight web web-1 default", result{0, "backend web-1 of service web: weight default\n", ""}, []string{"weight web web-1 default"}},
		{"backend drain web nope", result{1, "", `tclb: backend "nope" of service "web": no such backend` + "\n"}, []string{"drain web nope true"}},
		{"service delete late", result{0, "service late deleted\n", ""}, []string{"delete late"}},
		{
			"service delete web",
			result{1, "", `tclb: service "web": defined in a file that tclb did not write: change /etc/tclb/services.d/web.yaml` + "\n"},
			[]string{"delete web"},
		},
		{"service delete nope", result{1, "", `tclb: service "nope": no such service` + "\n"}, []string{"delete nope"}},
		{"conntrack flush", result{0, "removed 3 pairs and 1 entry of affinity\n", ""}, []string{`flush ""`}},
		{"conntrack flush --service web", result{0, "removed 3 pairs and 1 entry of affinity\n", ""}, []string{`flush "web"`}},
	}
	for _, c := range cases {
		t.Run(c.line, func(t *testing.T) {
			n := startNode(t)
			if got := n.run(t, c.line); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if diff := cmp.Diff(c.calls, n.view.Calls()); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
}

func TestApplyReadsFileOrStdin(t *testing.T) {
	n := startNode(t)
	environ := []string{"TCLB_RUN_DIR=" + n.runDir}
	file := filepath.Join(t.TempDir(), "web.yaml")
	if err := os.WriteFile(file, []byte("from file"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"service", "apply", "-f", "-"}, {"service", "apply", "-f", file}} {
		if got := tclb(t, "from stdin", environ, args...); got != (result{0, "service web applied\n", ""}) {
			t.Errorf("%v: %+v", args, got)
		}
	}
	want := []string{`apply stdin "from stdin"`, "apply " + file + ` "from file"`}
	if diff := cmp.Diff(want, n.view.Calls()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if got := tclb(t, "", environ, "service", "apply", "-f", file+".not"); got.status != 1 || !strings.Contains(got.stderr, "no such file") {
		t.Errorf("missing file: %+v", got)
	}
	got := tclb(t, strings.Repeat("x", maxApply+1), environ, "service", "apply", "-f", "-")
	if got.status != 1 || !strings.Contains(got.stderr, "larger than") {
		t.Errorf("too large: status %d, stderr %q", got.status, got.stderr)
	}
}

func TestApplyShowsFindingsAsValidateDoes(t *testing.T) {
	n := startNode(t)
	n.view.ApplyErr = &view.InvalidError{Findings: []config.Finding{
		{File: "stdin", Line: 2, Column: 3, Key: "services[0].name", Reason: "bad"},
		{File: "stdin", Line: 4, Column: 5, Key: "services[0].vips", Reason: "worse"},
	}}
	got := tclb(t, "x", []string{"TCLB_RUN_DIR=" + n.runDir}, "service", "apply", "-f", "-")
	want := result{
		1, "stdin:2:3: services[0].name: bad\nstdin:4:5: services[0].vips: worse\n",
		"tclb: 2 findings, nothing was changed: correct the file and apply it again\n",
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestDrainWaitsForTheLastConnection(t *testing.T) {
	n := startNode(t)
	n.view.BackendsChanged = func(*apitest.View) {
		time.AfterFunc(3*drainPoll/2, func() { n.maps.SetStat(12, datapath.BackendStat{Total: 2}) })
	}
	start := time.Now()
	if got := n.run(t, "backend drain web web-1 --wait"); got.status != exitDone {
		t.Fatalf("%+v", got)
	}
	if took := time.Since(start); took < 3*drainPoll/2 {
		t.Errorf("came back after %s, with a connection left", took)
	}
}

func TestDrainGivesUpWithStatusThree(t *testing.T) {
	n := startNode(t)
	got := n.run(t, "backend drain web web-1 --wait=50ms")
	want := result{
		exitTimeout, "backend web-1 of service web: draining\n",
		"tclb: backend web-1 of service web still has 1 connection after 50ms: wait longer, or stop it anyway\n",
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestDrainOfABackendThatLeavesIsDone(t *testing.T) {
	n := startNode(t)
	n.view.BackendsChanged = func(v *apitest.View) { v.BackendValues = nil }
	if got := n.run(t, "backend drain web web-1 --wait=5s"); got.status != exitDone {
		t.Errorf("%+v", got)
	}
}

func TestValidate(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good.yaml", "services:\n- name: web\n  vips: [198.51.100.10]\n  ports: [{name: http, protocol: tcp, port: 80}]\n")
	bad := write("bad.yaml", "services:\n- name: api\n  vips: [198.51.100.11]\n  ports: [{name: http, protocol: tcp, port: 0}]\n  colour: red\n")

	if got := tclb(t, "", nil, "validate", good); got != (result{0, "", "tclb: 1 file, no findings\n"}) {
		t.Errorf("good file: %+v", got)
	}
	got := tclb(t, "", nil, "validate", good, bad)
	lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
	if got.status != 1 || len(lines) != 2 ||
		!strings.HasPrefix(lines[0], bad+":4:45: services[0].ports[0].port: ") || !strings.HasPrefix(lines[1], bad+":5:3: services[0].colour: ") {
		t.Errorf("bad file: %+v", got)
	}
	if want := "tclb: 2 findings in 2 files: correct what the lines name, and validate again\n"; got.stderr != want {
		t.Errorf("stderr %q, want %q", got.stderr, want)
	}
	settings := write("settings.yaml", "nodes: [{name: node-b, address: 192.0.2.12}]\n")
	remote := write("remote.yaml", "services:\n- name: far\n  vips: [198.51.100.12]\n  ports: [{port: 80}]\n"+
		"  backends: [{address: 203.0.113.5, node: node-b}, {address: 203.0.113.5, node: node-x}]\n")
	got = tclb(t, "", nil, "validate", "--config", settings, remote)
	if got.status != 1 || strings.Count(got.stdout, "\n") != 1 || !strings.HasPrefix(got.stdout, remote+`:5:81: services[0].backends[1].node: node "node-x" is neither`) {
		t.Errorf("a node that the settings do not know: %+v", got)
	}
	got = tclb(t, "", nil, "validate", filepath.Join(dir, "none.yaml"))
	if got.status != 1 || got.stdout != "" || strings.Count(got.stderr, "\n") != 1 || !strings.Contains(got.stderr, "none.yaml") {
		t.Errorf("missing file: %+v", got)
	}
}
