// Package e2e tests tclb as users run it: the real binaries, upstream's CNI plugins, real sockets.
//
// A node is a network namespace with places of its own (bpffs, run and state directory, tclb.yaml);
// containers are further namespaces, attached by libcni as a runtime would. Nothing here knows
// the code behind the binaries but the pinned maps, which are read to prove that nothing is left.
package e2e

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// prefix marks whatever a run makes outside of its own namespaces.
const prefix = "tclbe-"

// layout is the version of the map layout, where pins are below bpffs.
const layout = "v5"

// Where named network namespaces are.
const netnsDir = "/run/netns"

var (
	workDir string // of this run; nodes have their directories here
	binDir  string // tclb and tclb-cni
	cniPath []string
)

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") == "1" {
			fmt.Fprintln(os.Stderr, "e2e: needs root")
			os.Exit(1)
		}
		fmt.Println("e2e: skipped, needs root")
		return
	}
	os.Exit(run(m))
}

// run lets one suite at a time use the machine: the sweep would take another's namespaces away.
func run(m *testing.M) int {
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), prefix+"lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		defer lock.Close()
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err == nil {
		sweepLeftovers()
		err = prepare()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	// Tests wait more than they compute.
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("4")
	}
	status := m.Run()
	for _, left := range leftovers() {
		fmt.Fprintln(os.Stderr, "e2e: left over:", left)
		status = 1
	}
	sweepLeftovers()
	return status
}

// prepare makes the working directory, builds the binaries and finds upstream's plugins.
func prepare() (err error) {
	if workDir, err = os.MkdirTemp("", prefix); err != nil {
		return err
	}
	if err := os.Chmod(workDir, 0o755); err != nil { // some tests run as another user
		return err
	}
	binDir = filepath.Join(workDir, "bin")
	for name, pkg := range map[string]string{"tclb": "../../proxy", "tclb-cni": "../../plugin"} {
		build := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(binDir, name), pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return findPlugins()
}

func findPlugins() error {
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"} {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil {
			cniPath = []string{binDir, dir}
			return nil
		}
	}
	return errors.New("the CNI plugins are missing: apt-get install containernetworking-plugins, or run make e2e")
}

// leftovers lists what outlived its test: namespaces, mounts and links.
func leftovers() []string {
	out, _ := filepath.Glob(filepath.Join(netnsDir, prefix+"*"))
	out = append(out, mounts()...)
	links, _ := net.Interfaces()
	for _, l := range links {
		if strings.HasPrefix(l.Name, prefix) || l.Name == "tclb0" && !hadHostPath {
			out = append(out, "link "+l.Name)
		}
	}
	return out
}

// hadHostPath says that this machine is a node itself, which is none of our business.
var hadHostPath = func() bool {
	_, err := net.InterfaceByName("tclb0")
	return err == nil
}()

// mounts lists the mount points of runs, inner ones first.
func mounts() []string {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return []string{err.Error()}
	}
	defer f.Close()
	var out []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); strings.HasPrefix(fields[1], filepath.Join(os.TempDir(), prefix)) {
			out = append([]string{fields[1]}, out...)
		}
	}
	return out
}

// sweepLeftovers removes what runs left, also those that were killed.
func sweepLeftovers() {
	spaces, _ := filepath.Glob(filepath.Join(netnsDir, prefix+"*"))
	for _, path := range append(spaces, mounts()...) {
		_ = unix.Unmount(path, unix.MNT_DETACH)
	}
	for _, path := range spaces {
		_ = os.Remove(path)
	}
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	for _, dir := range dirs {
		if !strings.HasSuffix(dir, "lock") {
			_ = os.RemoveAll(dir)
		}
	}
}
