// Package runtimes tests tclb with real container runtimes: podman 4 with CNI, containerd with ctr,
// and the order in which nerdctl calls.
//
// Every test has a machine of its own: a process with network, mount and PID namespaces, in which
// /etc, /opt and /var/lib are copies on write, /run and bpffs are empty, and so everything lies where
// users have it. When that process ends, so does everything on the machine.
package runtimes

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// prefix begins the name of whatever a test makes.
const prefix = "tclbr-"

// actAsInit lets the test binary be the first process of a machine.
const actAsInit = "TCLB_TEST_ACT_AS_INIT"

// needed are the programs that the tests are about.
var needed = []string{"podman", "runc", "containerd", "ctr", "busybox", "iptables", "nsenter"}

var workDir string // of this run: binaries, image, what machines write

func TestMain(m *testing.M) {
	act()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") == "1" {
			fmt.Fprintln(os.Stderr, "runtimes: needs root")
			os.Exit(1)
		}
		fmt.Println("runtimes: skipped, needs root")
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if workDir, err = os.MkdirTemp("", prefix); err == nil {
		defer os.RemoveAll(workDir)
		err = prepare()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "runtimes:", err)
		return 1
	}
	defer removeGroups(groups())
	return m.Run()
}

// prepare builds the binaries and the image.
func prepare() error {
	for _, name := range needed {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%s is missing: run make e2e, which installs it: %w", name, err)
		}
	}
	for name, pkg := range map[string]string{"tclb": "../../proxy", "tclb-cni": "../../plugin"} {
		build := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(workDir, "bin", name), pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return makeRoot(filepath.Join(workDir, "root"))
}

// makeRoot makes the file system of the image: busybox alone.
func makeRoot(root string) error {
	for _, dir := range []string{"bin", "www", "tmp", "etc", "proc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	path, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "bin", "busybox"), data, 0o755); err != nil {
		return err
	}
	for _, applet := range []string{"sh", "sleep", "httpd", "wget", "cat", "ip", "timeout", "nc", "dd", "mkdir", "chmod"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil {
			return err
		}
	}
	return nil
}

// groups lists the control groups in which the runtimes put containers, inner ones first.
func groups() []string {
	var out []string
	for _, parent := range []string{prefix + "*", "default", "libpod_parent"} {
		for _, below := range []string{"/*/*", "/*", ""} {
			for _, top := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
				dirs, _ := filepath.Glob(top + parent + below) // the pattern is right
				out = append(out, dirs...)
			}
		}
	}
	return out
}

// removeGroups removes the control groups that were not there before: runtimes that are killed leave
// them. One that is in use cannot be removed.
func removeGroups(before []string) {
	for _, dir := range groups() {
		if !slices.Contains(before, dir) {
			_ = unix.Rmdir(dir)
		}
	}
}

// beInit makes the machine's file systems, says so by a line, and buries the dead for ever.
func beInit(dir string) {
	if err := mountMachine(dir); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err == unix.ECHILD {
			_, _ = unix.Poll(nil, 50)
		}
	}
}

// mountMachine gives this process's mount namespace directories of its own.
func mountMachine(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	scratch := filepath.Join(dir, "scratch")
	if err := os.MkdirAll(scratch, 0o755); err != nil {
		return err
	}
	// Upper layers must not be on a file system that is a layer itself, as in a container.
	if err := unix.Mount("tmpfs", scratch, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", scratch, err)
	}
	for _, lower := range []string{"/etc", "/opt", "/var/lib"} {
		upper, work := filepath.Join(scratch, lower, "upper"), filepath.Join(scratch, lower, "work")
		for _, d := range []string{upper, work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
		if err := unix.Mount("overlay", lower, "overlay", 0, options); err != nil {
			return fmt.Errorf("mount over %s: %w", lower, err)
		}
	}
	for _, m := range []struct{ kind, at string }{
		{"tmpfs", "/run"},
		{"proc", "/proc"},
		{"bpf", "/sys/fs/bpf"},
		{"tmpfs", "/var/lib/containers"},
		{"tmpfs", "/var/lib/containerd"},
		{"tmpfs", "/var/lib/cni"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return nil
}
