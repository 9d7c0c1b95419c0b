package runtimes

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

var (
	id1   = strings.Repeat("1a", 32)
	id2   = strings.Repeat("2b", 32)
	podID = strings.Repeat("9f", 32)
)

// Rows as podman 4.3 prints them, shortened.
var (
	containerRows = fmt.Sprintf(`[
 {"AutoRemove":false,"Id":%q,"IsInfra":false,"Labels":{"tclb.services":"web"},"Names":["w1"],"Pod":"","State":"running"},
 {"Id":%q,"IsInfra":true,"Labels":null,"Names":["p-infra"],"Pod":%q,"PodName":"p"}]`, id1, id2, podID)
	podRows = fmt.Sprintf(`[{"Id":%q,"InfraId":%q,"Labels":{"tclb.services":"api"},"Name":"p"}]`, podID, id2)
)

var wantLabels = map[string]map[string]string{id1: {"tclb.services": "web"}, id2: {"tclb.services": "api"}}

// podmanAt serves an API at a socket and returns the path.
func podmanAt(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "podman.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	return socket
}

func TestPodmanIsAskedOverItsSocket(t *testing.T) {
	var asked []string
	socket := podmanAt(t, func(w http.ResponseWriter, r *http.Request) {
		var filters map[string][]string
		if err := json.Unmarshal([]byte(r.URL.Query().Get("filters")), &filters); err != nil {
			t.Error(err)
		}
		asked = append(asked, r.URL.Path+" "+r.URL.Query().Get("all")+" "+strings.Join(filters["id"], " "))
		switch r.URL.Path {
		case "/v4.0.0/libpod/containers/json":
			fmt.Fprint(w, containerRows)
		case "/v4.0.0/libpod/pods/json":
			fmt.Fprint(w, podRows)
		}
	})
	got, err := newPodman(socket).labels(t.Context(), []string{id1, id2})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(wantLabels, got); d != "" {
		t.Error(d)
	}
	want := []string{"/v4.0.0/libpod/containers/json true " + id1 + " " + id2, "/v4.0.0/libpod/pods/json true " + podID}
	if d := cmp.Diff(want, asked); d != "" {
		t.Error(d)
	}
}

func TestPodmanThatAnswersWronglyIsAnError(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"status": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"cause":"no storage"}`, http.StatusInternalServerError)
		},
		"no JSON": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") },
	} {
		t.Run(name, func(t *testing.T) {
			got, err := newPodman(podmanAt(t, handler)).labels(t.Context(), []string{id1})
			if err == nil || errors.Is(err, errAbsent) {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

// command makes a podman of a shell script and returns its directory, the only one in PATH.
func command(t *testing.T, script string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "podman"), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	return dir
}

// unnamed is a podman whose socket no setting names, and whose usual one is elsewhere than this
// machine's, which may exist.
func unnamed(usual string) *podman {
	p := newPodman("")
	p.usual = usual
	return p
}

func TestTheUsualSocketComesBeforeTheCommand(t *testing.T) {
	if p := newPodman(""); p.usual != podmanSocket {
		t.Errorf("looks for %q, want %q", p.usual, podmanSocket)
	}
	command(t, "echo the command was run >&2; exit 1")
	socket := podmanAt(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v4.0.0/libpod/pods/json" {
			fmt.Fprint(w, podRows)
			return
		}
		fmt.Fprint(w, containerRows)
	})
	got, err := unnamed(socket).labels(t.Context(), []string{id1, id2})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(wantLabels, got); d != "" {
		t.Error(d)
	}
}

func TestPodmanIsRunWhereThereIsNoSocket(t *testing.T) {
	nowhere := filepath.Join(t.TempDir(), "none.sock")
	dir := command(t, fmt.Sprintf(`echo "$*" >>"${0%%/*}/args"
if [ "$1" = pod ]; then echo '%s'; else echo '%s'; fi
`, podRows, containerRows))
	got, err := unnamed(nowhere).labels(t.Context(), []string{id1, id2})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(wantLabels, got); d != "" {
		t.Error(d)
	}
	args, err := os.ReadFile(filepath.Join(dir, "args"))
	if err != nil {
		t.Fatal(err)
	}
	want := "ps --all --no-trunc --format json --filter id=" + id1 + " --filter id=" + id2 + "\npod ps --no-trunc --format json --filter id=" + podID + "\n"
	if d := cmp.Diff(want, string(args)); d != "" {
		t.Error(d)
	}
	command(t, "echo warning >&2; echo 'Error: no storage' >&2; exit 125")
	if _, err := unnamed(nowhere).labels(t.Context(), []string{id1}); err == nil || !strings.HasSuffix(err.Error(), "exit status 125: Error: no storage") {
		t.Error(err)
	}
}

func TestMissingRuntimesAreAbsent(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	nowhere := filepath.Join(t.TempDir(), "none.sock")
	if _, err := newPodman(nowhere).labels(t.Context(), []string{id1}); !errors.Is(err, errAbsent) {
		t.Error(err)
	}
	if _, err := newContainerd(nowhere).labels(t.Context(), []string{id1}); !errors.Is(err, errAbsent) {
		t.Error(err)
	}
	if _, err := unnamed(nowhere).labels(t.Context(), []string{id1}); !errors.Is(err, errAbsent) {
		t.Error(err)
	}
}

func TestWhoseContainerItIs(t *testing.T) {
	tests := []struct {
		name, id, netns string
		podman          bool
	}{
		{"podman", id1, "/run/netns/netns-33c71400-527c-bddb-8d5e-268efe40ca7e", true},
		{"containerd CRI", id1, "/var/run/netns/cni-0d6a2f2e", false},
		{"CRI-O", id1, "/var/run/netns/2c60b3e4", false},
		{"ctr", "default-c1", "/proc/123/ns/net", false},
		{"nerdctl", "default-" + id1, "/proc/123/ns/net", false},
	}
	for _, tt := range tests {
		e := registry.Endpoint{ContainerID: tt.id, Netns: tt.netns}
		if (*podman)(nil).mine(e) != tt.podman || (*containerd)(nil).mine(e) == tt.podman {
			t.Errorf("%s is taken for the other's", tt.name)
		}
	}
}
