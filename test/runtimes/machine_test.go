package runtimes

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Where things are on every machine.
const (
	image   = "localhost/" + prefix + "bb:latest"
	vip     = "10.96.0.10" // of the service web
	network = "tclb-podman"
)

// machine is a host of containers, with default places for everything.
type machine struct {
	*testing.T
	init  *exec.Cmd
	proxy *exec.Cmd
	log   string
}

// newMachine makes a machine with our binaries, podman's configuration, the sample conflist for
// podman, and a service web on vip:80, whose backends listen on 8080.
func newMachine(t *testing.T) *machine {
	t.Helper()
	dir, err := os.MkdirTemp(workDir, "machine")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{T: t, log: filepath.Join(dir, "proxy.log")}
	m.init = exec.Command("/proc/self/exe")
	m.init.Env = append(os.Environ(), actAsInit+"="+dir)
	m.init.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
	}
	out, err := m.init.StdoutPipe()
	m.must(err)
	m.must(m.init.Start())
	t.Cleanup(m.end)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the machine does not start: %s %v", line, err)
	}
	m.run("ip", "link", "set", "lo", "up")
	m.install()
	return m
}

func (m *machine) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

// path is a file of the machine, as seen from outside.
func (m *machine) path(inside string) string {
	return fmt.Sprintf("/proc/%d/root%s", m.init.Process.Pid, inside)
}

// write writes a file of the machine aside and renames it into place.
func (m *machine) write(inside, text string) {
	m.Helper()
	path := m.path(inside)
	m.must(os.MkdirAll(filepath.Dir(path), 0o755))
	tmp := filepath.Join(filepath.Dir(path), ".new~")
	m.must(os.WriteFile(tmp, []byte(text), 0o600))
	m.must(os.Rename(tmp, path))
}

// sample returns a file of conf/.
func (m *machine) sample(name string) string {
	m.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "conf", name))
	m.must(err)
	return string(data)
}

// service is a services file with one service.
func service(name, vip string) string {
	return fmt.Sprintf("services:\n- {name: %s, vips: [%s], ports: [{port: 80, targetPort: 8080}]}\n", name, vip)
}

func (m *machine) install() {
	m.Helper()
	// Debian's own conflists would come first for ctr.
	m.must(os.RemoveAll(m.path("/etc/cni/net.d")))
	m.write("/etc/cni/net.d/10-tclb.conflist", m.sample("podman.conflist"))
	m.write("/etc/tclb/services.d/web.yaml", service("web", vip))
	m.must(os.MkdirAll(m.path("/opt/cni/bin"), 0o755))
	for _, dir := range []string{"/usr/lib/cni", "/usr/libexec/cni"} {
		plugins, _ := os.ReadDir(dir)
		for _, p := range plugins {
			_ = os.Symlink(filepath.Join(dir, p.Name()), m.path("/opt/cni/bin/"+p.Name()))
		}
	}
	m.must(os.Symlink(filepath.Join(workDir, "bin", "tclb-cni"), m.path("/opt/cni/bin/tclb-cni")))
	m.write("/etc/containers/storage.conf", "[storage]\ndriver = \"vfs\"\ngraphroot = \"/var/lib/containers/storage\"\nrunroot = \"/run/containers/storage\"\n")
	m.write("/etc/containers/containers.conf", podmanConf(m.T))
}

// podmanConf is for machines with few capabilities: limits that may be set, runc, no systemd.
func podmanConf(t *testing.T) string {
	t.Helper()
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	processes, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		t.Fatal(err)
	}
	pids := strings.TrimSpace(string(processes))
	limit := min(files.Max, 1<<20)
	return fmt.Sprintf(`[containers]
default_ulimits = ["nofile=%d:%d", "nproc=%s:%s"]
[network]
network_backend = "cni"
default_network = %q
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
`, limit, limit, pids, pids, network)
}

// end takes the machine away, and shows the proxy's log if the test failed.
func (m *machine) end() {
	if m.Failed() {
		if text, err := os.ReadFile(m.log); err == nil {
			m.Logf("the proxy's log:\n%s", text)
		}
	}
	_ = m.init.Process.Kill() // and with it whatever runs there
	_ = m.init.Wait()
}

// command returns a command that runs on the machine.
func (m *machine) command(args ...string) *exec.Cmd {
	pid := fmt.Sprint(m.init.Process.Pid)
	cmd := exec.Command("nsenter", append([]string{"-t", pid, "-m", "-n", "-p", "-i", "--"}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(workDir, "bin")+":"+os.Getenv("PATH"), "HOME=/run/home", "TMPDIR=/run")
	return cmd
}

// try runs a command on the machine and returns what it wrote to stdout.
func (m *machine) try(args ...string) (string, error) {
	return output(m.command(args...), args)
}

func output(cmd *exec.Cmd, args []string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err != nil && !errors.Is(err, exec.ErrWaitDelay) { // conmon keeps the output of podman open
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// run is try that must succeed.
func (m *machine) run(args ...string) string {
	m.Helper()
	out, err := m.try(args...)
	m.must(err)
	return out
}

// background starts a daemon on the machine.
func (m *machine) background(log string, args ...string) *exec.Cmd {
	m.Helper()
	cmd := m.command(args...)
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	m.must(err)
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	m.must(cmd.Start())
	go func() { _ = cmd.Wait() }()
	return cmd
}

// startProxy starts tclb proxy and waits until it is ready.
func (m *machine) startProxy(flags ...string) {
	m.Helper()
	// A shell that waits for nobody: the signal of stopProxy must reach the proxy itself.
	m.proxy = m.background(m.log, append([]string{"sh", "-c", `echo $$ >/run/proxy.pid; exec tclb proxy "$@"`, "sh"}, flags...)...)
	m.eventually("the proxy is ready", func() error {
		_, err := m.try("tclb", "status")
		return err
	})
}

func (m *machine) stopProxy() {
	m.Helper()
	m.run("sh", "-c", "pid=$(cat /run/proxy.pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.05; done")
}

// patience is how long something may take that is waited for.
const patience = 20 * time.Second

// eventually waits until check succeeds.
func (m *machine) eventually(what string, check func() error) {
	m.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			m.Fatalf("%s: not within %s: %v", what, patience, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// list returns the rows of a listing.
func list[T any](m *machine, args ...string) []T {
	m.Helper()
	var rows []T
	m.must(json.Unmarshal([]byte(m.run(append(append([]string{"tclb"}, args...), "-o", "json")...)), &rows))
	return rows
}

// backend is a row of tclb backend list.
type backend struct {
	Address string
	Port    int
	Weight  int
	State   string
	Local   bool
}

// endpoint is a row of tclb endpoint list.
type endpoint struct {
	ContainerID, Ifname, Network, Container string
	Services, Addresses, Notes              []string
}

// waitBackends waits until a service has so many backends.
func (m *machine) waitBackends(service string, n int) []backend {
	m.Helper()
	var rows []backend
	m.eventually(fmt.Sprintf("%d backends of %s", n, service), func() error {
		if rows = list[backend](m, "backend", "list", service); len(rows) != n {
			return fmt.Errorf("they are %v", rows)
		}
		return nil
	})
	return rows
}

// waitServices waits until a container, by name, is in just these services.
func (m *machine) waitServices(container string, want ...string) {
	m.Helper()
	m.eventually(fmt.Sprintf("%s in %v", container, want), func() error {
		rows := list[endpoint](m, "endpoint", "list")
		for _, e := range rows {
			if (e.Container == container || e.ContainerID == container) && slices.Equal(e.Services, want) {
				return nil
			}
		}
		return fmt.Errorf("endpoints are %+v", rows)
	})
}
