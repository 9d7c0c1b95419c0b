package main

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// userspaceWorld is a node whose proxy carries connections itself, and where nobody may use BPF.
func userspaceWorld(t *testing.T) *fakeWorld {
	t.Helper()
	w := newWorld(t)
	w.setMode(registry.ModeUserspace)
	w.loadErr = &os.PathError{Op: "mkdir", Path: w.bpffs, Err: syscall.EPERM}
	w.openErr = fmt.Errorf("list pins: %w", syscall.EACCES)
	return w
}

func (w *fakeWorld) setMode(mode string) {
	w.Helper()
	reg, err := registry.Open(w.runDir)
	if err != nil {
		w.Fatal(err)
	}
	if err := reg.PutMode(mode); err != nil {
		w.Fatal(err)
	}
}

func TestUserspaceModeNeedsNoBPF(t *testing.T) {
	w := userspaceWorld(t)
	w.mustCall(w.request("STATUS", "1.1.0", nil))
	for range 2 { // a second ADD replaces the first
		w.mustCall(w.request("ADD", "1.1.0", map[string]any{"services": []string{"web"}}))
	}
	got := w.registered()
	if len(got) != 1 || got[0].Attach != registry.AttachNone || len(got[0].Services) != 1 || len(got[0].Addresses) != 1 {
		t.Fatalf("registered %+v", got)
	}
	if len(w.pins) != 0 || len(w.endpoints) != 0 {
		t.Errorf("attached %v, in the map %v", w.pins, w.endpoints)
	}
	w.mustCall(w.request("CHECK", "1.1.0", nil))
	w.mustCall(w.request("GC", "1.1.0", nil))
	w.expectEmpty()
	w.mustCall(w.request("ADD", "1.1.0", nil))
	w.mustCall(w.request("DEL", "1.1.0", nil))
	w.expectEmpty()
	if log := w.log.String(); log != "" {
		t.Errorf("logged %s", log)
	}
}

// CHECK still finds what is wrong with the interface itself.
func TestCheckInUserspaceModeSeesTheInterface(t *testing.T) {
	w := userspaceWorld(t)
	w.veths["eth0"] = aVeth(7, "192.0.2.7")
	w.mustCall(w.request("ADD", "1.0.0", nil))
	w.veths["eth0"] = aVeth(8, "192.0.2.7")
	w.expectCode(w.request("CHECK", "1.0.0", nil), codeDrift)
}

func TestFailedAddInUserspaceModeLeavesNothing(t *testing.T) {
	w := userspaceWorld(t)
	w.p.out = brokenPipe{}
	if _, err := w.call(w.request("ADD", "1.0.0", nil)); err == nil {
		t.Fatal("ADD without a reader of its result is no error")
	}
	w.expectEmpty()
}

// Whatever the mode is when it ends: what ADD made is what DEL and CHECK go by.
func TestAttachmentsOutliveAChangeOfMode(t *testing.T) {
	w := userspaceWorld(t)
	w.mustCall(w.request("ADD", "1.0.0", nil))
	w.loadErr, w.openErr = nil, nil
	w.setMode("ebpf")
	w.mustCall(w.request("CHECK", "1.0.0", nil))
	w.mustCall(w.request("ADD", "1.0.0", nil))
	if got := w.registered(); len(got) != 1 || got[0].Attach != attach.KindTCX {
		t.Fatalf("registered %+v", got)
	}
	w.setMode(registry.ModeUserspace)
	w.mustCall(w.request("CHECK", "1.0.0", nil))
	w.openErr = datapath.ErrNotLoaded // after tclb uninstall
	clear(w.pins)
	w.expectCode(w.request("CHECK", "1.0.0", nil), codeDrift)
	w.openErr = nil
	w.mustCall(w.request("DEL", "1.0.0", nil))
	w.expectEmpty()
}

// Programs of an attachment before would take the packets to VIPs away from the proxy.
func TestAddInUserspaceModeDetachesWhatWasBefore(t *testing.T) {
	w := newWorld(t)
	w.mustCall(w.request("ADD", "1.0.0", nil))
	w.setMode(registry.ModeUserspace)
	w.mustCall(w.request("ADD", "1.0.0", nil))
	if len(w.pins) != 0 {
		t.Errorf("still attached: %v", w.pins)
	}
}

func TestModeThatCannotBeReadIsAnError(t *testing.T) {
	w := newWorld(t)
	if err := os.MkdirAll(w.runDir+"/mode", 0o700); err != nil {
		t.Fatal(err)
	}
	w.expectCode(w.request("ADD", "1.0.0", nil), types.ErrIOFailure)
	w.expectCode(w.request("STATUS", "1.1.0", nil), types.ErrPluginNotAvailable)
}
