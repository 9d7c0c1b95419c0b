package main

import (
	"bytes"
	"context"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
	"github.com/tc-loadbalancer/tclb/proxy/internal/api/apitest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// result is what a command line did.
type result struct {
	status         int
	stdout, stderr string
}

// tclb runs a command line, given word by word, in an environment of its own.
func tclb(t *testing.T, stdin string, environ []string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status := run(env{
		args: args, stdin: strings.NewReader(stdin), stdout: &stdout, stderr: &stderr,
		environ: environ, dial: new(net.Dialer).DialContext,
	})
	return result{status, stdout.String(), stderr.String()}
}

// node is a run directory with a server in it.
type node struct {
	runDir string
	view   *apitest.View
	maps   *apitest.Maps
}

// startNode serves a view on a real socket until the test ends.
func startNode(t *testing.T) *node {
	t.Helper()
	// Not t.TempDir: a socket's name must be short.
	runDir, err := os.MkdirTemp("", "tclb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(runDir) })
	n := &node{runDir: runDir, view: apitest.NewView(), maps: apitest.NewMaps()}
	server := api.New(api.Options{
		View: n.view, Datapath: n.maps, Metrics: http.NotFoundHandler(), Version: "v1.2.3",
		Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return apitest.Now },
	})
	listener, err := api.ListenUnix(filepath.Join(runDir, api.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- server.Serve(ctx, listener, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return n
}

// run runs a command line, given as one string of words, against the node.
func (n *node) run(t *testing.T, line string) result {
	t.Helper()
	return tclb(t, "", []string{"TCLB_RUN_DIR=" + n.runDir}, strings.Fields(line)...)
}

// golden compares got with a file in testdata.
func golden(t *testing.T, file, got string) {
	t.Helper()
	file = filepath.Join("testdata", file)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test -update makes it)", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", file, diff)
	}
}

// commands returns every command of ours with its words.
func commands(cmd *cobra.Command) []string {
	out := []string{}
	for _, sub := range cmd.Commands() {
		if sub.Name() != "help" && sub.Name() != "completion" {
			out = append(append(out, sub.CommandPath()), commands(sub)...)
		}
	}
	return out
}

func TestHelpOfEveryCommand(t *testing.T) {
	all := append([]string{"tclb"}, commands(newRoot(&app{}))...)
	for _, path := range all {
		got := tclb(t, "", nil, append(strings.Fields(path)[1:], "--help")...)
		if got.status != exitDone || got.stderr != "" {
			t.Errorf("%s --help: status %d, stderr %q", path, got.status, got.stderr)
		}
		golden(t, "help/"+strings.ReplaceAll(path, " ", "-")+".txt", got.stdout)
	}
}

func TestReferenceHasEveryCommandAndNoOther(t *testing.T) {
	text, err := os.ReadFile("../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for line := range strings.Lines(string(text)) {
		if heading, ok := strings.CutPrefix(line, "### `"); ok {
			documented = append(documented, strings.TrimSuffix(strings.TrimSpace(heading), "`"))
		}
	}
	var want []string
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			if sub.HasSubCommands() {
				walk(sub)
			} else if sub.Name() != "help" && sub.Parent().Name() != "completion" {
				want = append(want, strings.TrimSuffix(sub.UseLine(), " [flags]"))
			}
		}
	}
	walk(newRoot(&app{}))
	less := func(a, b string) bool { return a < b }
	if diff := cmp.Diff(want, documented, sortStrings(less)); diff != "" {
		t.Errorf("docs/cli.md differs from the commands (-want +got):\n%s", diff)
	}
}

func TestUsageErrorsExitWithTwo(t *testing.T) {
	for _, line := range []string{
		"", "nope", "service", "service nope", "backend", "conntrack nope", "status extra", "service list --nope",
		"service get", "service get a b", "service apply", "service delete", "backend list a b", "backend drain web",
		"backend drain web a --wait=-1s", "backend drain web a --wait 30s", "backend weight web a", "backend weight web a 1001",
		"backend weight web a x", "node ping", "node ping a b", "node ping a -c -1", "status -o xml", "validate", "--log-level loud status", "--log-format xml status",
		"--run-dir= status", "conntrack flush --service=", "version now", "uninstall now", "proxy now",
		// Not before their time.
		"explain", "monitor", "top", "check",
	} {
		got := tclb(t, "", nil, strings.Fields(line)...)
		if got.status != exitUsage || got.stdout != "" || strings.Count(got.stderr, "\n") != 1 || !strings.Contains(got.stderr, "--help") {
			t.Errorf("tclb %s: status %d, stdout %q, stderr %q; want status 2 and one line that names --help", line, got.status, got.stdout, got.stderr)
		}
	}
}

func TestWithoutProxyOneLineSaysWhatToDo(t *testing.T) {
	runDir := t.TempDir()
	want := result{exitFailed, "", "tclb: no proxy answers at " + runDir + "/tclb.sock: " +
		`start it with "tclb proxy", or choose another with --run-dir` + "\n"}
	for _, line := range []string{
		"status", "service list", "service get web", "service delete web", "backend list", "backend drain web a",
		"backend undrain web a", "backend weight web a 1", "endpoint list", "node list", "node ping node-b", "conntrack list", "conntrack flush",
	} {
		if got := tclb(t, "", nil, append([]string{"--run-dir", runDir}, strings.Fields(line)...)...); got != want {
			t.Errorf("tclb %s: %+v, want %+v", line, got, want)
		}
	}
}

func TestPlacesFromFlagsAndEnvironment(t *testing.T) {
	cases := []struct {
		name    string
		args    []string
		environ []string
		want    places
	}{
		{"defaults", nil, nil, places{"/sys/fs/bpf/tclb", "/run/tclb", "/var/lib/tclb", "/etc/tclb/tclb.yaml", false}},
		{"empty variables count as unset", nil, []string{"TCLB_RUN_DIR=", "TCLB_CONFIG="}, places{"/sys/fs/bpf/tclb", "/run/tclb", "/var/lib/tclb", "/etc/tclb/tclb.yaml", false}},
		{"run directory brings its state", []string{"--run-dir", "/r"}, nil, places{"/sys/fs/bpf/tclb", "/r", "/r/state", "/etc/tclb/tclb.yaml", false}},
		{"also from the environment", nil, []string{"TCLB_RUN_DIR=/r"}, places{"/sys/fs/bpf/tclb", "/r", "/r/state", "/etc/tclb/tclb.yaml", false}},
		{"unless a state directory is given", []string{"--run-dir=/r"}, []string{"TCLB_STATE_DIR=/s"}, places{"/sys/fs/bpf/tclb", "/r", "/s", "/etc/tclb/tclb.yaml", false}},
		{
			"flags win",
			[]string{"--bpffs=/b", "--run-dir=/r", "--state-dir=/s", "--config=/c"},
			[]string{"TCLB_BPFFS=/x", "TCLB_RUN_DIR=/x", "TCLB_STATE_DIR=/x", "TCLB_CONFIG=/x"},
			places{"/b", "/r", "/s", "/c", true},
		},
		{
			"variables alone", nil,
			[]string{"TCLB_BPFFS=/b", "TCLB_RUN_DIR=/r", "TCLB_STATE_DIR=/s", "TCLB_CONFIG=/c"},
			places{"/b", "/r", "/s", "/c", true},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			a := &app{env: env{environ: c.environ, stdout: io.Discard, stderr: io.Discard}}
			root := newRoot(a)
			root.SetArgs(append(c.args, "version"))
			if err := root.Execute(); err != nil {
				t.Fatal(err)
			}
			if a.places != c.want {
				t.Errorf("got %+v, want %+v", a.places, c.want)
			}
		})
	}
}
