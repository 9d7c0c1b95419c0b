package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// node is a host: a namespace that forwards, places of its own, and perhaps a proxy.
type node struct {
	*place
	dir                                    string
	bpffs, runDir, stateDir, services, cfg string

	subnets  []string   // of its containers
	underlay netip.Addr // that other nodes tunnel to; not valid for a node alone

	userspace   bool      // the proxy carries connections itself
	user        uint32    // who runs the proxy and commands; 0 = root
	proxy       *exec.Cmd // nil while none runs
	exited      chan error
	errorsAreOK bool // the proxy's log may have errors
}

var nodes atomic.Int32

// newNode makes a host without containers. extra lines are added to its tclb.yaml.
func newNode(t *testing.T, extra ...string) *node {
	t.Helper()
	name := fmt.Sprintf("n%d", nodes.Add(1))
	dir := filepath.Join(workDir, name)
	n := &node{
		subnets: subnetsA,
		dir:     dir, bpffs: filepath.Join(dir, "bpf"), runDir: filepath.Join(dir, "run"),
		stateDir: filepath.Join(dir, "state"), services: filepath.Join(dir, "services.d"), cfg: filepath.Join(dir, "tclb.yaml"),
	}
	for _, d := range []string{n.services, n.runDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(n.unmount)
	n.place = newPlace(t, name)
	n.sysctl("net/ipv4/ip_forward", "1")
	n.sysctl("net/ipv6/conf/all/forwarding", "1")
	n.configureProxy(extra...)
	t.Cleanup(n.end)
	return n
}

// configureProxy writes tclb.yaml with maps that are small enough to have many nodes. The plugin is
// told their sizes as by a proxy of an earlier boot, for it may come first.
func (n *node) configureProxy(extra ...string) {
	n.t.Helper()
	self := "name: " + n.name
	if n.underlay.IsValid() {
		self += fmt.Sprintf(", address: %q", n.underlay)
	}
	lines := append([]string{"node: {" + self + "}", "servicesDir: " + n.services}, extra...)
	for key, small := range map[string]string{"datapath": smallMaps, "conntrack": "maxEntries: 4096"} {
		if !strings.Contains(strings.Join(extra, "\n"), key+":") {
			lines = append(lines, key+": {"+small+"}")
		}
	}
	n.userspace = strings.Contains(strings.Join(extra, "\n"), "mode: userspace")
	n.write(n.cfg, strings.Join(lines, "\n")+"\n")
	n.write(filepath.Join(n.runDir, "sizes.json"), `{"maxServices":256,"maxBackends":1024,"tableSlots":65536,"maxConntrack":4096}`)
}

const smallMaps = "maxServices: 256, maxBackends: 1024, tableSlots: 65536"

func (n *node) write(path, content string) {
	n.t.Helper()
	err := os.WriteFile(path, []byte(content), 0o600)
	if err == nil && n.user != 0 {
		err = os.Chown(path, int(n.user), int(n.user))
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// writeServices puts a services file into place by renaming, as careful writers do.
func (n *node) writeServices(name, yaml string) {
	n.t.Helper()
	tmp := filepath.Join(n.services, "."+name)
	n.write(tmp, yaml)
	if err := os.Rename(tmp, filepath.Join(n.services, name)); err != nil {
		n.t.Fatal(err)
	}
}

// start runs a proxy and waits until it is ready.
func (n *node) start() {
	n.t.Helper()
	if err := n.launch(); err != nil {
		n.t.Fatalf("start proxy: %v", err)
	}
	n.ready()
}

// expectNoStart runs a proxy that must end by itself, with an error.
func (n *node) expectNoStart() {
	n.t.Helper()
	if err := n.launch(); err != nil {
		n.t.Fatalf("start proxy: %v", err)
	}
	select {
	case err := <-n.exited:
		if n.proxy = nil; err == nil {
			n.t.Fatal("the proxy ends without an error")
		}
	case <-time.After(startTime):
		n.t.Fatal("the proxy runs")
	}
}

// launch runs a proxy.
func (n *node) launch() error {
	log, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(binDir, "tclb"), n.flags("proxy", "--log-level", "debug")...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = n.as()
	if err := n.place.start(cmd); err != nil {
		return err
	}
	n.proxy, n.exited = cmd, make(chan error, 1)
	go func(exited chan error) { exited <- cmd.Wait() }(n.exited)
	return nil
}

func (n *node) flags(args ...string) []string {
	return append(args, "--bpffs", n.bpffs, "--run-dir", n.runDir, "--state-dir", n.stateDir, "--config", n.cfg)
}

// as makes a process one of the node's user, who has no capabilities.
func (n *node) as() *syscall.SysProcAttr {
	if n.user == 0 {
		return nil
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: n.user, Gid: n.user}}
}

func (n *node) logFile() string { return filepath.Join(n.dir, "proxy.log") }

func (n *node) log() string {
	data, _ := os.ReadFile(n.logFile())
	return string(data)
}

// startTime is what a proxy may take to start on a machine that is busy with other tests: the kernel
// verifies the programs anew each time.
const startTime = 30 * time.Second

// ready waits until the proxy has made the maps as they should be.
func (n *node) ready() {
	n.t.Helper()
	eventually(n.t, startTime, "the proxy is ready", func() error {
		select {
		case err := <-n.exited:
			n.proxy = nil
			n.t.Fatalf("the proxy ends: %v", err)
		default:
		}
		status, body, err := n.get("/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("/readyz: %d %s", status, body)
		}
		return err
	})
}

// stop ends the proxy by SIGTERM, which must be a clean exit.
func (n *node) stop() {
	n.t.Helper()
	if err := n.signal(syscall.SIGTERM); err != nil {
		n.t.Errorf("the proxy stopped with %v\n%s", err, tail(n.log()))
	}
}

// hurry ends the proxy without waiting for connections to end: the second signal means that.
func (n *node) hurry() {
	n.t.Helper()
	if err := n.proxy.Process.Signal(syscall.SIGTERM); err != nil {
		n.t.Error(err)
	}
	select {
	case err := <-n.exited:
		if n.proxy = nil; err != nil {
			n.t.Errorf("the proxy stopped with %v\n%s", err, tail(n.log()))
		}
	case <-time.After(100 * time.Millisecond): // the kernel makes one of two that come at once
		n.stop()
	}
}

// kill ends the proxy by SIGKILL.
func (n *node) kill() { _ = n.signal(syscall.SIGKILL) }

func (n *node) signal(s syscall.Signal) error {
	cmd := n.proxy
	n.proxy = nil
	if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-n.exited:
		return err
	case <-time.After(5 * time.Second):
		return errors.Join(errors.New("it does not exit"), cmd.Process.Kill())
	}
}

// end stops the node at the end of its test, and shows the proxy's log if something was wrong.
func (n *node) end() {
	if n.proxy != nil && n.userspace {
		n.hurry()
	} else if n.proxy != nil {
		n.stop()
	}
	log := n.log()
	if !n.errorsAreOK && strings.Contains(log, "level=ERROR") {
		n.t.Error("the proxy logged errors")
	}
	if n.t.Failed() && log != "" {
		n.t.Logf("log of %s:\n%s", n.name, tail(log))
	}
}

func tail(s string) string {
	const most = 6000
	if len(s) > most {
		s = "..." + s[len(s)-most:]
	}
	return s
}

// unmount removes the node's bpffs. Where nothing was loaded there is none.
func (n *node) unmount() {
	if err := unix.Unmount(n.bpffs, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		n.t.Errorf("unmount %s: %v", n.bpffs, err)
	}
}

// get makes a request to the proxy's `listen` address, from the node itself.
func (n *node) get(path string) (status int, body string, err error) {
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, address string) (c net.Conn, err error) {
			err = n.try(func() (err error) { c, err = net.DialTimeout(network, address, patience); return err })
			return c, err
		},
	}}
	r, err := client.Get("http://127.0.0.1:9464" + path)
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close()
	data, err := io.ReadAll(r.Body)
	return r.StatusCode, string(data), err
}

// result is what a command did.
type result struct {
	status         int
	stdout, stderr string
}

// tclb runs a command on the node.
func (n *node) tclb(args ...string) result {
	n.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(filepath.Join(binDir, "tclb"), n.flags(args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = n.as()
	err := n.try(cmd.Run)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		n.t.Fatalf("run tclb %v: %v", args, err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// mustTclb is tclb for commands that must succeed.
func (n *node) mustTclb(args ...string) string {
	n.t.Helper()
	r := n.tclb(args...)
	if r.status != 0 {
		n.t.Fatalf("tclb %v: exit status %d: %s", args, r.status, r.stderr)
	}
	return r.stdout
}

// tryList decodes what a command prints with -o json.
func tryList[T any](n *node, args ...string) (out T, err error) {
	n.t.Helper()
	r := n.tclb(append(args, "-o", "json")...)
	if r.status != 0 {
		return out, fmt.Errorf("tclb %v: exit status %d: %s", args, r.status, r.stderr)
	}
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil {
		return out, fmt.Errorf("tclb %v printed %s: %w", args, r.stdout, err)
	}
	return out, nil
}

// list is tryList for commands that must succeed.
func list[T any](n *node, args ...string) T {
	n.t.Helper()
	out, err := tryList[T](n, args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// maps opens the pinned maps for reading.
func (n *node) maps() *datapath.Datapath {
	n.t.Helper()
	d, err := datapath.Open(n.bpffs)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = d.Close() })
	return d
}

// eventually polls until ok returns nil, and fails with its last error.
func eventually(t testing.TB, within time.Duration, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s: %v", within, what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
