package runtimes

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// needPodman imports the image.
func (m *machine) needPodman() {
	m.Helper()
	m.run("sh", "-c", fmt.Sprintf("tar -C %s -c . | podman import -q -c 'ENV PATH=/bin' - %s", filepath.Join(workDir, "root"), image))
}

// podman runs podman.
func (m *machine) podman(args ...string) string {
	m.Helper()
	return m.run(append([]string{"podman"}, args...)...)
}

// answering is the command of a container that answers on 8080 with a word.
func answering(word string) string {
	return fmt.Sprintf("echo %s >/www/index.html; exec httpd -f -p 8080 -h /www", word)
}

// server runs a container that answers with its name, and returns its id.
func (m *machine) server(name string, flags ...string) string {
	m.Helper()
	args := append([]string{"run", "-d", "--cgroup-parent", "/" + prefix + "podman", "--name", name}, flags...)
	return m.podman(append(args, image, "sh", "-c", answering(name))...)
}

// client runs a container that sleeps.
func (m *machine) client(name string, flags ...string) {
	m.Helper()
	args := append([]string{"run", "-d", "--cgroup-parent", "/" + prefix + "podman", "--name", name}, flags...)
	m.podman(append(args, image, "sleep", "3600")...)
}

// ask sends requests to an address from a container, one after the other, and returns who answered how
// often. No request is repeated; one that fails counts as "failed".
func (m *machine) ask(client, address string, n int) map[string]int {
	m.Helper()
	loop := fmt.Sprintf("i=0; while [ $i -lt %d ]; do timeout 5 wget -q -O- http://%s/ || echo failed; i=$((i+1)); done", n, address)
	out := m.podman("exec", client, "sh", "-c", loop)
	answers := make(map[string]int)
	for _, word := range strings.Fields(out) {
		answers[word]++
	}
	return answers
}

// expectAnswers checks that just these answered, each of them and without a failure.
func (m *machine) expectAnswers(client, address string, want ...string) {
	m.Helper()
	answers := m.ask(client, address, 40)
	var got []string
	for who := range answers {
		got = append(got, who)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		m.Errorf("%s is answered by %v, want %v", address, answers, want)
	}
}

// end removes every container and checks that nothing is left.
func (m *machine) removeContainers(services ...string) {
	m.Helper()
	m.podman("rm", "--all", "--force", "--time", "0")
	m.expectNothingLeft(services...)
}

func TestPodmanContainersComeAndGo(t *testing.T) {
	m := newMachine(t)
	m.needPodman()
	m.startProxy()
	m.client("client")
	m.server("a", "--network-alias", "web")
	m.server("b", "--network-alias", "web")
	m.waitBackends("web", 2)
	m.expectAnswers("client", vip, "a", "b")
	if got := m.run("busybox", "wget", "-q", "-O-", "http://"+vip+"/"); got != "a" && got != "b" {
		t.Errorf("the host is answered by %q", got)
	}

	m.podman("stop", "--time", "0", "a")
	m.waitBackends("web", 1)
	m.expectAnswers("client", vip, "b")
	m.podman("start", "a")
	m.waitBackends("web", 2)
	m.expectAnswers("client", vip, "a", "b")
	m.podman("kill", "b")
	m.waitBackends("web", 1)
	m.expectAnswers("client", vip, "a")
	m.podman("restart", "--time", "0", "a")
	m.podman("start", "b")
	m.waitBackends("web", 2)
	m.expectAnswers("client", vip, "a", "b")
	m.removeContainers("web")
}

func TestPodmanPodIsOneMember(t *testing.T) {
	m := newMachine(t)
	m.needPodman()
	m.startProxy()
	m.podman("pod", "create", "--name", "group", "--network-alias", "web", "--label", "tclb.weight=7",
		"--infra-image", image, "--infra-command", "/bin/sleep 3600")
	m.server("a", "--pod", "group")
	m.client("b", "--pod", "group", "--label", "tclb.services=other")
	m.client("client")
	m.waitServices("group", "web")
	m.eventually("the pod's weight", func() error {
		if rows := m.waitBackends("web", 1); rows[0].Weight != 7 {
			return fmt.Errorf("backends %v", rows)
		}
		return nil
	})
	m.expectAnswers("client", vip, "a")
	m.expectAnswers("b", vip, "a") // the pod reaches itself
	m.podman("pod", "rm", "--force", "--time", "0", "group")
	m.removeContainers("web")
}

func TestPodmanNetworks(t *testing.T) {
	m := newMachine(t)
	m.needPodman()
	m.write("/etc/cni/net.d/20-other.conflist", strings.NewReplacer(
		network, "other", "cni-tclb0", "cni-other", "10.89.0.0/24", "10.89.77.0/24").Replace(m.sample("podman.conflist")))
	m.startProxy()
	m.client("client")
	m.client("abroad", "--network", "other")
	m.server("a", "--network", network, "--network-alias", "web")
	m.server("b", "--network", "other")
	m.waitBackends("web", 1)

	m.podman("network", "connect", "--alias", "web", network, "b")
	m.waitBackends("web", 2)
	m.expectAnswers("client", vip, "a", "b")
	m.expectAnswers("abroad", vip, "a", "b")
	m.podman("network", "disconnect", network, "b")
	m.waitBackends("web", 1)
	m.expectAnswers("client", vip, "a")

	// Two networks from the start: an attachment each, and a client on both.
	m.server("both", "--network", network+",other", "--network-alias", "web")
	m.eventually("two attachments of one container", func() error {
		n := 0
		for _, e := range list[endpoint](m, "endpoint", "list") {
			if e.Container == "both" {
				n++
			}
		}
		if n != 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	m.waitBackends("web", 3) // both of its addresses serve
	m.expectAnswers("client", vip, "a", "both")
	m.client("two", "--network", network+",other")
	m.expectAnswers("two", vip, "a", "both")
	m.expectAnswers("both", vip, "a", "both") // itself by its other network, too
	m.removeContainers("web")
}

func TestPodmanTellsServicesByArguments(t *testing.T) {
	m := newMachine(t)
	m.needPodman()
	m.write("/etc/tclb/services.d/api.yaml", service("api", "10.96.0.11"))
	m.startProxy()
	m.client("client")
	args := []string{
		"env", "CNI_ARGS=TCLB_SERVICES=api;TCLB_WEIGHT=5;TCLB_PORT=9090", "podman", "run", "-d", "--name", "a",
		"--cgroup-parent", "/" + prefix + "podman", "--network-alias", "web", "--label", "tclb.services=web",
		image, "sh", "-c", strings.ReplaceAll(answering("a"), "8080", "9090"),
	}
	m.run(args...)
	rows := m.waitBackends("api", 1)
	if rows[0].Weight != 5 || rows[0].Port != 9090 || !rows[0].Local {
		t.Errorf("backend %+v", rows[0])
	}
	m.expectAnswers("client", "10.96.0.11", "a")
	// podman hands on the environment of who starts the container, this time, and remembers nothing.
	m.podman("restart", "--time", "0", "a")
	m.waitServices("a", "web")
	m.run("env", "CNI_ARGS=TCLB_SERVICES=api", "podman", "restart", "--time", "0", "a")
	m.waitServices("a", "api")
	m.removeContainers("web", "api")
}

// TestPodmanLabels learns labels by both ways to ask, and keeps them over a restart of the proxy.
func TestPodmanLabels(t *testing.T) {
	for _, way := range []string{"socket", "command"} {
		t.Run(way, func(t *testing.T) {
			m := newMachine(t)
			m.needPodman()
			m.write("/etc/tclb/services.d/api.yaml", service("api", "10.96.0.11"))
			if way == "socket" {
				m.must(os.MkdirAll(m.path("/run/podman"), 0o755))
				m.background(filepath.Join(workDir, "podman.log"), "podman", "system", "service", "--time", "0", "unix:///run/podman/podman.sock")
				m.eventually("podman's socket", func() error {
					_, err := os.Stat(m.path("/run/podman/podman.sock"))
					return err
				})
			}
			m.startProxy()
			m.client("client")
			m.server("a", "--network-alias", "web", "--label", "tclb.services=api", "--label", "tclb.weight=90")
			m.server("b", "--network-alias", "web")
			m.server("c", "--label", "tclb.services=api", "--label", "tclb.port=80a")
			m.waitServices("a", "api") // the label replaces the alias
			m.waitServices("b", "web")
			m.waitServices("c", "api")
			rows := m.waitBackends("api", 2)
			if weights := []int{rows[0].Weight, rows[1].Weight}; !slices.Contains(weights, 90) || !slices.Contains(weights, 100) {
				t.Errorf("weights %v", weights)
			}
			m.expectAnswers("client", "10.96.0.11", "a", "c")
			m.expectAnswers("client", vip, "b")
			log, err := os.ReadFile(m.log)
			m.must(err)
			if !strings.Contains(string(log), `want a port from 1 to 65535`) {
				t.Error("the wrong label is not in the log")
			}
			m.stopProxy()
			m.write("/etc/tclb/tclb.yaml", "runtimes: {podman: \"/run/nowhere.sock\"}\n")
			m.startProxy()
			m.waitServices("a", "api")
			m.waitServices("c", "api")
			m.waitServices("b", "web")
		})
	}
}
