package runtimes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// podmanSocket is where podman.socket listens for root.
const podmanSocket = "/run/podman/podman.sock"

// maxAnswer bounds what is read of an answer.
const maxAnswer = 64 << 20

// podman asks podman: by its API where the socket is, else by its command, which is slower but
// needs nothing to be running.
//
// Either waits for the lock of a container that is being started. So it must never be asked inside
// an ADD, and is not: the endpoint file that makes us ask is there only when ADD is done with it.
type podman struct {
	socket  string // "" = usual if it is there, else the command
	usual   string
	command string
}

func newPodman(socket string) *podman {
	return &podman{socket: socket, usual: podmanSocket, command: "podman"}
}

func (*podman) name() string { return "podman" }

// mutable: podman sets labels when it creates a container.
func (*podman) mutable() bool { return false }

var hexID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// mine recognises podman's network namespaces, so that hosts of other runtimes never run podman.
func (*podman) mine(e registry.Endpoint) bool {
	return hexID.MatchString(e.ContainerID) && strings.HasPrefix(filepath.Base(e.Netns), "netns-")
}

// podmanContainer is a row of `podman ps` and of the API, as far as it matters.
type podmanContainer struct {
	ID      string            `json:"Id"`
	Labels  map[string]string `json:"Labels"`
	IsInfra bool              `json:"IsInfra"`
	Pod     string            `json:"Pod"`
}

// podmanPod is a row of `podman pod ps` and of the API.
type podmanPod struct {
	ID     string            `json:"Id"`
	Labels map[string]string `json:"Labels"`
}

// labels implements runtime. A pod has one attachment for all its containers, so the pod's labels
// count, not those of the containers in it.
func (p *podman) labels(ctx context.Context, ids []string) (map[string]map[string]string, error) {
	list, err := p.lister()
	if err != nil {
		return nil, err
	}
	var rows []podmanContainer
	if err := list(ctx, "containers", ids, &rows); err != nil {
		return nil, err
	}
	out := make(map[string]map[string]string, len(rows))
	infra := make(map[string]string) // pod to its infra container
	var pods []string
	for _, r := range rows {
		out[r.ID] = r.Labels
		if r.IsInfra && r.Pod != "" {
			infra[r.Pod] = r.ID
			pods = append(pods, r.Pod)
		}
	}
	if len(pods) == 0 {
		return out, nil
	}
	var found []podmanPod
	if err := list(ctx, "pods", pods, &found); err != nil {
		return nil, err
	}
	for _, pod := range found {
		if id := infra[pod.ID]; id != "" {
			out[id] = pod.Labels
		}
	}
	return out, nil
}

// lister lists containers or pods by id into rows.
type lister func(ctx context.Context, what string, ids []string, rows any) error

// lister chooses how to ask.
func (p *podman) lister() (lister, error) {
	socket := p.socket
	if socket == "" {
		socket = p.usual
	}
	if _, err := os.Stat(socket); err == nil {
		return overSocket(socket), nil
	}
	if p.socket != "" {
		return nil, fmt.Errorf("ask podman: no socket %s: %w", socket, errAbsent)
	}
	path, err := exec.LookPath(p.command)
	if err != nil {
		return nil, fmt.Errorf("ask podman: neither socket %s nor command: %w", socket, errAbsent)
	}
	return byCommand(path), nil
}

// overSocket asks podman's REST API. Servers accept the oldest version that they know; 4.0 is from
// 2022, and what is asked is the same since.
func overSocket(socket string) lister {
	return func(ctx context.Context, what string, ids []string, rows any) error {
		transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}
		defer transport.CloseIdleConnections()
		filters, err := json.Marshal(map[string][]string{"id": ids})
		if err != nil {
			return fmt.Errorf("ask podman: %w", err)
		}
		target := "http://podman/v4.0.0/libpod/" + what + "/json?all=true&filters=" + url.QueryEscape(string(filters))
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
		if err != nil {
			return fmt.Errorf("ask podman: %w", err)
		}
		answer, err := (&http.Client{Transport: transport}).Do(request)
		if err != nil {
			return fmt.Errorf("ask podman at %s: %w", socket, err)
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			text, _ := io.ReadAll(io.LimitReader(answer.Body, 200))
			return fmt.Errorf("ask podman at %s for %s: %s: %s", socket, what, answer.Status, bytes.TrimSpace(text))
		}
		if err := json.NewDecoder(io.LimitReader(answer.Body, maxAnswer)).Decode(rows); err != nil {
			return fmt.Errorf("ask podman at %s for %s: %w", socket, what, err)
		}
		return nil
	}
}

// byCommand asks `podman ps` or `podman pod ps`.
func byCommand(path string) lister {
	return func(ctx context.Context, what string, ids []string, rows any) error {
		args := []string{"ps", "--all", "--no-trunc", "--format", "json"}
		if what == "pods" {
			args = []string{"pod", "ps", "--no-trunc", "--format", "json"}
		}
		for _, id := range ids {
			args = append(args, "--filter", "id="+id)
		}
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.WaitDelay = time.Second // for what it started and left with our pipe
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("run podman ps: %w: enable podman.socket instead", err)
		}
		if err != nil {
			return fmt.Errorf("run podman ps: %w: %s", err, lastLine(stderr.Bytes()))
		}
		if err := json.Unmarshal(out, rows); err != nil {
			return fmt.Errorf("run podman ps: %w", err)
		}
		return nil
	}
}

// lastLine returns the line in which a command says what is wrong.
func lastLine(text []byte) []byte {
	text = bytes.TrimSpace(text)
	return text[bytes.LastIndexByte(text, '\n')+1:]
}
