package main

import (
	"path/filepath"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

func TestSecondProxyOnARunDirectoryIsRefused(t *testing.T) {
	runDir := filepath.Join(t.TempDir(), "run")
	dir, err := registry.Open(runDir)
	must(t, err)
	unlock, err := dir.LockProxy()
	must(t, err)
	defer unlock()
	got := tclb(t, "", nil, "--run-dir", runDir, "--bpffs", filepath.Join(t.TempDir(), "bpf"), "proxy")
	want := result{exitFailed, "", "tclb: a proxy runs on " + runDir + " already: stop it, or give this one another --run-dir\n"}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestProxyNeedsTheConfigurationThatWasNamed(t *testing.T) {
	dir := t.TempDir()
	got := tclb(t, "", nil, "--run-dir", filepath.Join(dir, "run"), "--config", filepath.Join(dir, "none.yaml"), "proxy")
	if got.status != exitFailed || got.stdout != "" || exists(filepath.Join(dir, "run")) {
		t.Errorf("%+v, and a run directory: %t", got, exists(filepath.Join(dir, "run")))
	}
}
