package config

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSamplesAreValid(t *testing.T) {
	conf := filepath.Join("..", "..", "..", "conf")
	c, findings, err := Load(filepath.Join(conf, "tclb.yaml"), true)
	if err != nil || len(findings) > 0 {
		t.Fatalf("tclb.yaml: %v %v", err, findings)
	}
	files, err := ReadDir(filepath.Join(conf, "services.d"), nil)
	if err != nil || len(files) < 3 {
		t.Fatalf("services.d: %d files, %v", len(files), err)
	}
	if _, findings := Merge(nil, files, Surroundings{Pool: c.VIPPool}); len(findings) > 0 {
		t.Fatal(findings)
	}
	var paths []string
	for _, f := range files {
		paths = append(paths, f.Path)
	}
	if findings, err := Validate(append(paths, filepath.Join(conf, "tclb.yaml")), Here{}); err != nil || len(findings) > 0 {
		t.Fatal(findings, err)
	}
}

func TestRootlessSampleIsValid(t *testing.T) {
	c, findings, err := Load(filepath.Join("..", "..", "..", "conf", "rootless.yaml"), true)
	if err != nil || len(findings) > 0 {
		t.Fatal(findings, err)
	}
	if c.Datapath.Mode != ModeUserspace || !c.Surroundings(nil).Loopback {
		t.Errorf("the mode is %s", c.Datapath.Mode)
	}
}

// The commented sample promises that its values are the defaults; a reader copies from it.
func TestSampleSettingsAreTheDefaults(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "..", "conf", "tclb.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	got, findings := Parse("tclb.yaml", data)
	if len(findings) > 0 {
		t.Fatal(findings)
	}
	want := Default()
	// The values that the sample marks as examples.
	want.Node, want.VIPPool, want.Nodes = got.Node, got.VIPPool, got.Nodes
	want.Uplinks, want.Etcd.Endpoints = got.Uplinks, got.Etcd.Endpoints // [] in the file, nil in the code
	if len(got.Uplinks)+len(got.Etcd.Endpoints) > 0 {
		t.Error("the sample names uplinks or etcd endpoints")
	}
	want.file, want.at, want.etcd = got.file, got.at, got.etcd
	if diff := diff(want, got); diff != "" {
		t.Error(diff)
	}
}
