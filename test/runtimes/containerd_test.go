package runtimes

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// needContainerd starts containerd with the image. CRI is off: it wants more rights than a test has.
func (m *machine) needContainerd() {
	m.Helper()
	m.needPodman() // which writes the format that containerd reads
	m.write("/etc/containerd/config.toml", "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n")
	m.background(filepath.Join(workDir, "containerd.log"), "containerd")
	m.eventually("containerd answers", func() error {
		_, err := m.try("ctr", "version")
		return err
	})
	m.podman("save", "-q", "--format", "oci-archive", "-o", "/run/image.tar", image)
	m.ctr("image", "import", "/run/image.tar")
}

// ctr runs ctr, with snapshots by copying: an overlay does not lie on every file system.
func (m *machine) ctr(args ...string) string {
	m.Helper()
	if args[0] == "image" && args[1] == "import" {
		args = []string{"image", "import", "--snapshotter", "native", args[2]}
	}
	return m.run(append([]string{"ctr"}, args...)...)
}

// ctrRun starts a container by ctr run --cni.
func (m *machine) ctrRun(name, script string, flags ...string) {
	m.Helper()
	args := append([]string{"run", "-d", "--cni", "--snapshotter", "native"}, flags...)
	m.ctr(append(args, image, name, "/bin/sh", "-c", script)...)
}

// ctrAsk is ask for a container of ctr.
func (m *machine) ctrAsk(name, address string, n int) map[string]int {
	m.Helper()
	loop := fmt.Sprintf("i=0; while [ $i -lt %d ]; do timeout 5 wget -q -O- http://%s/ || echo failed; i=$((i+1)); done", n, address)
	answers := make(map[string]int)
	for _, word := range strings.Fields(m.ctr("task", "exec", "--exec-id", "ask", name, "/bin/sh", "-c", loop)) {
		answers[word]++
	}
	return answers
}

// TestContainerdContainersWithoutADEL runs containers of ctr: labels make them members, changed labels
// change that, and since `ctr run -d` never sends a DEL, who is killed is reaped.
func TestContainerdContainersWithoutADEL(t *testing.T) {
	m := newMachine(t)
	m.write("/etc/cni/net.d/10-tclb.conflist", m.sample("nerdctl.conflist")) // ctr takes the first file
	m.needContainerd()
	m.write("/etc/tclb/services.d/api.yaml", service("api", "10.96.0.11"))
	m.startProxy()
	m.ctrRun(prefix+"client", "exec sleep 3600")
	m.ctrRun(prefix+"a", answering("a"), "--label", "tclb.services=web")
	m.ctrRun(prefix+"b", answering("b"), "--label", "tclb.services=web", "--label", "tclb.weight=50")
	m.waitServices("default-"+prefix+"a", "web")
	m.waitServices("default-"+prefix+"b", "web")
	if answers := m.ctrAsk(prefix+"client", vip, 40); len(answers) != 2 || answers["a"]+answers["b"] != 40 || answers["a"] <= answers["b"] {
		t.Errorf("answers %v, want more of a than of b, which has half its weight", answers)
	}

	m.ctr("task", "kill", "--signal", "SIGKILL", prefix+"b")
	m.waitBackends("web", 1)
	if answers := m.ctrAsk(prefix+"client", vip, 20); answers["a"] != 20 {
		t.Errorf("answers %v", answers)
	}

	m.ctr("container", "label", prefix+"a", "tclb.services=api")
	m.stopProxy() // a restart asks again at once, and otherwise it takes half a minute
	m.startProxy()
	m.waitServices("default-"+prefix+"a", "api")

	for _, name := range []string{"a", "client"} {
		m.ctr("task", "kill", "--signal", "SIGKILL", prefix+name)
	}
	m.waitBackends("api", 0)
	// The runtime's own leftovers, for want of a DEL, are not ours.
	m.run("sh", "-c", "rm -rf /var/lib/cni/results/*")
	m.expectNothingLeft("web", "api")
}

// TestContainerdAndPodmanShareAService: in the foreground ctr sends a DEL, and one machine can have
// both runtimes on one network.
func TestContainerdAndPodmanShareAService(t *testing.T) {
	m := newMachine(t)
	m.needContainerd()
	m.startProxy()
	m.server("a", "--network-alias", "web")
	m.waitBackends("web", 1)
	got := m.ctr("run", "--rm", "--cni", "--snapshotter", "native", image, prefix+"once", "/bin/wget", "-q", "-O-", "http://"+vip+"/")
	if got != "a" {
		t.Errorf("answer %q", got)
	}
	m.removeContainers("web")
}
