package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

func TestGCKeepsOtherNetworksAndValidAttachments(t *testing.T) {
	w := newWorld(t)
	add := func(id, ifname, network string, ifindex uint32) {
		w.veths[ifname] = aVeth(ifindex, "192.0.2.7")
		r := w.request("ADD", "1.1.0", map[string]any{"name": network})
		r.Env["CNI_CONTAINERID"], r.Env["CNI_IFNAME"] = id, ifname
		w.mustCall(r)
	}
	add("c1", "eth0", "net", 7)
	add("c1", "eth1", "other", 8)
	add("c2", "eth0", "net", 9)
	add("c2", "eth1", "net", 10)
	left := func() string {
		var out []string
		for _, e := range w.registered() {
			out = append(out, e.ContainerID+"/"+e.Ifname)
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	gc := func(valid any) request {
		return w.request("GC", "1.1.0", map[string]any{"cni.dev/valid-attachments": valid, "prevResult": nil})
	}
	w.expectCode(gc(nil), types.ErrInvalidNetworkConfig) // the key is missing
	w.expectCode(gc("all"), types.ErrInvalidNetworkConfig)
	if got := left(); got != "c1/eth0 c1/eth1 c2/eth0 c2/eth1" {
		t.Fatalf("a refused GC removed something: left %s", got)
	}
	w.mustCall(gc([]types.GCAttachment{{ContainerID: "c1", IfName: "eth0"}, {ContainerID: "c2", IfName: "eth1"}}))
	if got := left(); got != "c1/eth0 c1/eth1 c2/eth1" {
		t.Errorf("left %s", got)
	}
	older := w.request("GC", "1.1.0", map[string]any{
		"cni.dev/valid-attachments": nil, "cni.dev/attachments": []types.GCAttachment{{ContainerID: "c2", IfName: "eth1"}}, "prevResult": nil,
	})
	w.mustCall(older)
	if got := left(); got != "c1/eth1 c2/eth1" {
		t.Errorf("older key: left %s", got)
	}
	w.detachErr = errInjected
	err := w.expectCode(gc(json.RawMessage("null")), types.ErrInternal)
	if !strings.Contains(err.Details, "injected") {
		t.Errorf("details %q", err.Details)
	}
	if got := left(); got != "c1/eth1" {
		t.Errorf("null: left %s", got)
	}
	if len(w.pins) != 2 || len(w.endpoints) != 1 {
		t.Errorf("left pins %v, endpoints %v", w.pins, w.endpoints)
	}
}

func TestGCGoesOnPastUnreadableFiles(t *testing.T) {
	w := newWorld(t)
	w.mustCall(w.request("ADD", "1.1.0", nil))
	w.must(os.WriteFile(filepath.Join(w.runDir, "endpoints", registry.EndpointID("x", "y")+".json"), []byte("{"), 0o600))
	w.expectCode(w.request("GC", "1.1.0", nil), types.ErrInternal)
	if len(w.pins) != 0 || len(w.endpoints) != 0 {
		t.Errorf("left pins %v, endpoints %v", w.pins, w.endpoints)
	}
}

func TestStatusFailsWhereAddWould(t *testing.T) {
	w := newWorld(t)
	w.mustCall(w.request("STATUS", "1.1.0", nil))
	for _, err := range []error{errInjected, &datapath.LayoutError{Dir: "/bpf", Found: 9, Want: 1}} {
		w.loadErr = err
		got := w.expectCode(w.request("STATUS", "1.1.0", nil), types.ErrPluginNotAvailable)
		if errors.As(err, new(*datapath.LayoutError)) && !(strings.Contains(got.Msg, "v9") && strings.Contains(got.Msg, "v1")) {
			t.Errorf("%q does not name both layouts", got.Msg)
		}
	}
	w = newWorld(t)
	w.block(w.runDir)
	w.expectCode(w.request("STATUS", "1.1.0", nil), types.ErrPluginNotAvailable)
}

func TestSizesComeFromTheRunDirectory(t *testing.T) {
	w := newWorld(t)
	var got datapath.Options
	load := w.p.load
	w.p.load = func(o datapath.Options) (maps, error) { got = o; return load(o) }
	w.must(os.MkdirAll(w.runDir, 0o700))
	for content, want := range map[string]uint32{`{"maxConntrack": 1000}`: 1000, `{"maxConn`: 0} {
		w.must(os.WriteFile(filepath.Join(w.runDir, "sizes.json"), []byte(content), 0o600))
		w.mustCall(w.request("ADD", "1.0.0", nil))
		if got.Sizes.MaxConntrack != want || got.BPFFS != w.bpffs {
			t.Errorf("%s: loaded with %+v", content, got)
		}
	}
}
