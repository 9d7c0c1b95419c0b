package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/overlay"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
	"github.com/tc-loadbalancer/tclb/proxy/internal/host"
)

// runFiles are what tclb makes in the run directory, the lock of the proxy last. The state
// directory may lie there as well, and stays.
var runFiles = []string{api.SocketName, "sizes.json", ".sizes.json", "health.json", ".health.json", "mode", ".mode", "endpoints", "locks", lockFile}

func newUninstall(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "uninstall",
		Short: "Remove what tclb put into this node's kernel and run directory",
		Long: `Remove every program, link, pin, map, device, route and run file of tclb from this node, and say
what was removed. VIPs stop working; containers keep running.

Configuration, services files, conflists and the state directory stay: remove tclb-cni from the
conflists before the next container starts, or it installs itself again. Stop the proxy first.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.uninstall() },
	}
}

// uninstall goes on after an error: what can be removed is, and the next run does the rest.
func (a *app) uninstall() error {
	unlock, err := a.lockRunDir()
	if err != nil {
		return err
	}
	defer unlock()
	r := &removal{app: a}
	r.links()
	r.hostPath()
	r.localRoutes()
	r.tunnel()
	r.filters()
	r.pins()
	r.files()
	if err := errors.Join(r.errs...); err != nil {
		return fmt.Errorf("%w: correct that and run uninstall again", err)
	}
	if r.count == 0 {
		return a.say("nothing to remove")
	}
	return nil
}

// lockFile is what a proxy holds while it runs.
const lockFile = "proxy.lock"

// lockRunDir keeps proxies out. Where none has ever been there is nothing to lock, or to make.
func (a *app) lockRunDir() (unlock func(), err error) {
	if !exists(filepath.Join(a.runDir, lockFile)) {
		return func() {}, nil
	}
	dir, err := registry.Open(a.runDir)
	if err != nil {
		return nil, err
	}
	unlock, err = dir.LockProxy()
	if errors.Is(err, registry.ErrLocked) {
		return nil, fmt.Errorf(`a proxy runs on %s: stop it first, for example with "systemctl stop tclb"`, a.runDir)
	}
	return unlock, err
}

// removal is one run of uninstall.
type removal struct {
	*app
	count int
	errs  []error
}

func (r *removal) removed(what string) {
	r.count++
	r.check(r.say("removed %s", what))
}

func (r *removal) check(err error) {
	if err != nil {
		r.errs = append(r.errs, err)
	}
}

// links detaches what is pinned, of every layout: filters have to go before their record does.
func (r *removal) links() {
	pins, err := filepath.Glob(filepath.Join(globEscape(r.bpffs), "v[0-9]*", "links", "*"))
	r.check(err)
	for _, pin := range pins {
		if err := attach.Detach(pin, 0); err != nil {
			r.check(err)
			continue
		}
		r.removed(pin)
	}
}

// globEscape makes a path stand for itself in a pattern.
func globEscape(path string) string {
	var out []rune
	for _, c := range path {
		switch c {
		case '*', '?', '[', '\\':
			out = append(out, '\\')
		}
		out = append(out, c)
	}
	return string(out)
}

// hostPath removes the host's way to VIPs: the device pair and the routes to it.
func (r *removal) hostPath() {
	_, err := net.InterfaceByName(host.Device)
	present := err == nil
	if err := host.Remove(); err != nil {
		r.check(err)
		return
	}
	if present {
		r.removed("device " + host.Device + " and its routes")
	}
}

// localRoutes removes the routes of a proxy in userspace mode.
func (r *removal) localRoutes() {
	n, err := host.RemoveLocal()
	r.check(err)
	if n > 0 && err == nil {
		r.removed(fmt.Sprintf("local routes of VIPs: %d", n))
	}
}

// tunnel removes the way to other nodes.
func (r *removal) tunnel() {
	there, err := overlay.Remove()
	r.check(err)
	if there && err == nil {
		r.removed("device " + overlay.Device)
	}
}

// filters removes filters whose pins are lost, with their bpffs for example: Detach looks for
// them where it finds no pin.
func (r *removal) filters() {
	interfaces, err := net.Interfaces()
	r.check(err)
	lost := filepath.Join(datapath.LinkDir(r.bpffs), "lost")
	for _, i := range interfaces {
		r.check(attach.Detach(lost, i.Index))
	}
}

// pins removes the rest of the pins: maps and programs go with them.
func (r *removal) pins() {
	pins, err := datapath.Uninstall(r.bpffs)
	r.check(err)
	for _, pin := range pins {
		r.removed(pin)
	}
}

// files removes our files of the run directory, and the directory if nothing else is in it.
func (r *removal) files() {
	for _, name := range runFiles {
		path := filepath.Join(r.runDir, name)
		if !exists(path) {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			r.check(err)
			continue
		}
		r.removed(path)
	}
	err := os.Remove(r.runDir)
	switch {
	case err == nil:
		r.removed(r.runDir)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTEMPTY), errors.Is(err, syscall.EBUSY):
		// Not there, or something of others in it (the state directory), or a mount point.
	default:
		r.check(err)
	}
}
