package runtimes

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// scale is how much comes and goes. TCLB_LIFECYCLE=full is what a release has to stand.
type scale struct {
	containers, workers int
	length              time.Duration
}

func lifecycleScale() scale {
	if os.Getenv("TCLB_LIFECYCLE") == "full" {
		return scale{200, 6, 3 * time.Minute}
	}
	return scale{30, 2, 30 * time.Second}
}

// TestContainersComeAndGoUnderLoad starts and stops containers of a service at random while a client
// sends steady requests. Two backends stay. Every connection must come about. It may be cut if its
// backend is killed; there is one at a time, and it is short, so few are.
func TestContainersComeAndGoUnderLoad(t *testing.T) {
	m := newMachine(t)
	m.needPodman()
	m.startProxy()
	m.client("client")
	m.server("stays-1", "--network-alias", "web")
	m.server("stays-2", "--network-alias", "web")
	m.waitBackends("web", 2)

	load := m.steadyLoad("client", vip+":80")
	killed := m.churn(lifecycleScale())
	out := load()
	total, cuts := 0, 0
	for line := range strings.Lines(out) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case refused:
			t.Errorf("no connection: %s", rest)
		case cut:
			cuts++
			t.Logf("cut: %s", rest)
		case requested:
			_, err := fmt.Sscan(rest, &total)
			m.must(err)
		default:
			t.Errorf("the client says %q", line)
		}
	}
	t.Logf("%d requests, %d cut, %d containers ended", total, cuts, killed)
	if cuts > 1+killed/10 {
		t.Errorf("%d connections were cut by the end of %d containers", cuts, killed)
	}
	if least := 10 * int(lifecycleScale().length/time.Second); total < least {
		t.Errorf("%d requests, want at least %d", total, least)
	}
	m.waitBackends("web", 2)
	m.expectAnswers("client", vip, "stays-1", "stays-2")
	m.removeContainers("web")
}

// steadyLoad starts a client in a container's network. The function that it returns stops it and
// returns what it wrote.
func (m *machine) steadyLoad(container, address string) func() string {
	m.Helper()
	pid := m.podman("inspect", "-f", "{{.State.Pid}}", container)
	cmd := m.self(actAsClient, address, "nsenter", "-t", pid, "-n", "--")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	in, err := cmd.StdinPipe()
	m.must(err)
	m.must(cmd.Start())
	return func() string {
		m.must(in.Close())
		m.must(cmd.Wait())
		return out.String()
	}
}

// churn starts containers of the service web and stops them by all the ways there are, and at last
// removes them. It returns how many ended.
func (m *machine) churn(s scale) int {
	m.Helper()
	until := time.Now().Add(s.length)
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		ended int
	)
	for w := range s.workers {
		group.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(w)))
			running := make(map[string]bool)
			for time.Now().Before(until) {
				// Each worker has its own part of the containers.
				name := fmt.Sprintf("c%d-%d", w, random.IntN(s.containers/s.workers))
				if err := m.step(random, name, running); err != nil {
					m.Errorf("%s: %v", name, err)
					return
				}
				if !running[name] {
					mu.Lock()
					ended++
					mu.Unlock()
				}
			}
			for name := range running {
				if _, err := m.try("podman", "rm", "--force", "--time", "0", "--ignore", name); err != nil {
					m.Error(err)
				}
				mu.Lock()
				ended++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	return ended
}

// step starts a container that does not run, or ends one that does. It is a backend from its ADD until
// its DEL, and so also in the moments before it listens and after it was killed, when it refuses.
func (m *machine) step(random *rand.Rand, name string, running map[string]bool) error {
	if !running[name] {
		_, err := m.try("podman", "run", "-d", "--rm", "--cgroup-parent", "/"+prefix+"podman", "--name", name,
			"--network-alias", "web", image, "sh", "-c", answering(name))
		running[name] = err == nil
		return err
	}
	delete(running, name)
	ways := [][]string{{"stop", "--time", "0", name}, {"kill", name}, {"rm", "--force", "--time", "0", name}}
	if _, err := m.try(append([]string{"podman"}, ways[random.IntN(len(ways))]...)...); err != nil {
		return err
	}
	// --rm removes it when it has ended, which kill does not wait for.
	_, err := m.try("podman", "rm", "--force", "--time", "0", "--ignore", name)
	return err
}
