package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// process is the proxy under test and its directories.
type process struct {
	binary, dir string
	cmd         *exec.Cmd
	log         *os.File
}

func (p *process) bpffs() string { return filepath.Join(p.dir, "bpf") }

func (p *process) prepare() error {
	err := errors.Join(
		os.Mkdir(p.bpffs(), 0o700), os.Mkdir(filepath.Join(p.dir, "services.d"), 0o700),
		os.WriteFile(filepath.Join(p.dir, "tclb.yaml"), fmt.Appendf(nil,
			"node: {name: bench, address: 192.0.2.1}\nservicesDir: %s/services.d\nlisten: \"\"\n", p.dir), 0o600),
	)
	if err != nil {
		return err
	}
	if err := unix.Mount("bpf", p.bpffs(), "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	return nil
}

// start starts the proxy and returns when the maps hold that many services.
func (p *process) start(services int) error {
	var err error
	if p.log, err = os.Create(filepath.Join(p.dir, "log")); err != nil {
		return err
	}
	p.cmd = exec.Command(p.binary, "proxy", "--bpffs", p.bpffs(), "--run-dir", filepath.Join(p.dir, "run"), "--config", filepath.Join(p.dir, "tclb.yaml"))
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start proxy: %w", err)
	}
	deadline := time.Now().Add(loadTimeout)
	for time.Now().Before(deadline) {
		ready, err := p.loaded(services)
		if err != nil || ready {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
	text, _ := os.ReadFile(p.log.Name())
	return fmt.Errorf("%d services were not in the maps after %s; the proxy's log:\n%s", services, loadTimeout, text)
}

// loaded says whether that many services are in the maps, every one with its table. Frontends come
// last, so when the last of them is there, all is.
func (p *process) loaded(services int) (bool, error) {
	log, err := os.ReadFile(p.log.Name())
	if err != nil {
		return false, err
	}
	if !strings.Contains(string(log), "ready") {
		return false, nil
	}
	d, err := datapath.Open(p.bpffs())
	if errors.Is(err, datapath.ErrNotLoaded) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer d.Close()
	frontends, err := d.Frontends()
	if err != nil {
		return false, err
	}
	balanced := 0
	for _, f := range frontends {
		if f.Kind == datapath.KindService && f.Table.Len > 0 {
			balanced++
		}
	}
	return balanced >= services, nil
}

// memory returns the resident set of the proxy, in bytes.
func (p *process) memory() int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(text), "VmRSS:")
	fields := strings.Fields(after)
	if len(fields) == 0 {
		return 0
	}
	kb, _ := strconv.Atoi(fields[0])
	return kb << 10
}

func (p *process) stop() error {
	defer p.log.Close()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop proxy: %w", err)
	}
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("proxy ended with: %w", err)
	}
	return nil
}
