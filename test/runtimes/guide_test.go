package runtimes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// blocks returns the shell commands of a page, block by block.
func blocks(t *testing.T, page string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, part := range strings.Split(string(text), "\n```sh\n")[1:] {
		block, _, _ := strings.Cut(part, "\n```\n")
		out = append(out, block)
	}
	if len(out) < 4 {
		t.Fatalf("docs/%s has %d blocks of commands", page, len(out))
	}
	return out
}

// follow types what a page says, and returns what it printed.
func (m *machine) follow(page string) string {
	m.Helper()
	top, err := filepath.Abs(filepath.Join("..", ".."))
	m.must(err)
	m.must(os.RemoveAll(m.path("/etc/cni/net.d")))
	m.must(os.RemoveAll(m.path("/etc/tclb")))
	m.startProxy()
	var printed []string
	for _, block := range blocks(m.T, page) {
		printed = append(printed, m.run("sh", "-euc", "cd "+top+"\n"+block))
	}
	return strings.Join(printed, "\n")
}

// expectLines checks that a page printed lines with these words, in any order.
func expectLines(t *testing.T, printed string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(printed, w) {
			t.Errorf("nothing printed says %q:\n%s", w, printed)
		}
	}
}

func TestPodmanGuide(t *testing.T) {
	m := newMachine(t)
	m.needPodman()
	m.podman("tag", image, "docker.io/library/busybox:latest")
	printed := m.follow("podman.md")
	t.Log(printed)
	expectLines(t, printed, network, " web-1\n", " web-2\n", " web-3\n", "9090")
	m.expectNothingLeft("web")
}

func TestContainerdGuide(t *testing.T) {
	m := newMachine(t)
	m.needContainerd()
	m.ctr("image", "tag", image, "docker.io/library/busybox:latest")
	printed := m.follow("containerd.md")
	t.Log(printed)
	expectLines(t, printed, " web-1\n", " web-2\n", "default-web")
	m.waitBackends("web", 0)
}
