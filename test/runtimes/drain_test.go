package runtimes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// stopCommands returns what the sample unit runs to stop a container, with its name filled in.
func (m *machine) stopCommands(container string) [][]string {
	m.Helper()
	unit, err := os.ReadFile(filepath.Join("..", "..", "conf", "tclb-container@.service"))
	m.must(err)
	var out [][]string
	for line := range strings.Lines(string(unit)) {
		command, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStop=")
		if ok {
			command = strings.ReplaceAll(strings.TrimPrefix(command, "-"), "%i", container)
			words := strings.Fields(command)
			words[0] = filepath.Base(words[0]) // the machine has them elsewhere
			out = append(out, words)
		}
	}
	if len(out) < 2 {
		m.Fatalf("the sample unit stops a container by %q", out)
	}
	return out
}

// slowServer runs a container of the service web that takes a while for each answer.
func (m *machine) slowServer(name string) {
	m.Helper()
	script := `mkdir -p /tmp/cgi/cgi-bin; printf '#!/bin/sh\necho "Content-Type: text/plain"; echo; sleep 0.3; echo ` + name +
		`\n' >/tmp/cgi/cgi-bin/slow; chmod +x /tmp/cgi/cgi-bin/slow; exec httpd -f -p 8080 -h /tmp/cgi`
	m.podman("run", "-d", "--cgroup-parent", "/"+prefix+"podman", "--name", name, "--network-alias", "web", image, "sh", "-c", script)
}

// requests asks for slow pages side by side from a container, until stop is called, which returns how
// often each server answered; "failed" stands for no answer.
func (m *machine) requests(container string, workers int) (stop func() map[string]int) {
	m.Helper()
	loop := `while [ ! -e /tmp/stop ]; do r=$(timeout 8 wget -q -O- http://` + vip + `/cgi-bin/slow); echo ${r:-failed}; done`
	script := ""
	for range workers {
		script += "(" + loop + ") & "
	}
	done := make(chan string, 1)
	go func() { done <- m.podman("exec", container, "sh", "-c", script+"wait") }()
	return func() map[string]int {
		m.podman("exec", container, "sh", "-c", ": >/tmp/stop")
		answers := make(map[string]int)
		for _, word := range strings.Fields(<-done) {
			answers[word]++
		}
		return answers
	}
}

// TestTheStopHookLosesNoRequest stops one of three containers under load by the commands of the sample unit.
func TestTheStopHookLosesNoRequest(t *testing.T) {
	m := newMachine(t)
	m.needPodman()
	m.startProxy()
	m.client("client")
	for i := range 3 {
		m.slowServer(fmt.Sprintf("web-%d", i))
	}
	m.waitBackends("web", 3)

	stop := m.requests("client", 6)
	time.Sleep(2 * time.Second)
	for _, command := range m.stopCommands("web-1") {
		began := time.Now()
		m.run(command...)
		t.Logf("%s: %s", strings.Join(command, " "), time.Since(began).Round(time.Millisecond))
	}
	m.waitBackends("web", 2)
	time.Sleep(time.Second)
	if answers := stop(); answers["failed"] > 0 || answers["web-0"] == 0 || answers["web-1"] == 0 || answers["web-2"] == 0 {
		t.Errorf("answers: %v", answers)
	}

	// The next container of that name is another one: it is not drained.
	m.podman("start", "web-1")
	for _, b := range m.waitBackends("web", 3) {
		if b.State != "active" {
			t.Errorf("%s is %s after a restart of its container", b.Address, b.State)
		}
	}
	m.removeContainers("web")
}

// The test above would notice a cut: without the drain there is one.
func TestWithoutTheStopHookConnectionsAreCut(t *testing.T) {
	m := newMachine(t)
	m.needPodman()
	m.startProxy()
	m.client("client")
	m.slowServer("web-0")
	m.slowServer("web-1")
	m.waitBackends("web", 2)
	stop := m.requests("client", 6)
	time.Sleep(2 * time.Second)
	m.podman("kill", "web-1")
	time.Sleep(time.Second)
	if answers := stop(); answers["failed"] == 0 {
		t.Errorf("none failed when a container was killed, this load proves nothing: %v", answers)
	}
	m.removeContainers("web")
}
