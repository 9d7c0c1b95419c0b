package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// fixture is a recorded call of a plugin by a real runtime.
type fixture struct {
	Note  string            `json:"note"`
	Env   map[string]string `json:"env"`
	Stdin json.RawMessage   `json:"stdin"`
}

// recordedProcess is a namespace by its process. The number may be anybody's here, this test's own
// namespace among them; one beyond the kernel's largest is nobody's.
var recordedProcess = regexp.MustCompile(`/proc/\d+/ns/net`)

func fixtures(t *testing.T) map[string]fixture {
	t.Helper()
	paths, err := filepath.Glob("testdata/fixtures/*.json")
	if err != nil || len(paths) < 40 {
		t.Fatalf("%d fixtures: %v", len(paths), err)
	}
	out := map[string]fixture{}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data = recordedProcess.ReplaceAll(data, []byte("/proc/4194305/ns/net"))
		var f fixture
		if err := json.Unmarshal(data, &f); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		out[strings.TrimSuffix(filepath.Base(path), ".json")] = f
	}
	return out
}

// here is the recorded call with this test's places. Everything else stays byte for byte.
func (w *fakeWorld) here(f fixture) request {
	w.Helper()
	if f.Env["CNI_COMMAND"] == "VERSION" {
		return request{Env: f.Env, Stdin: f.Stdin}
	}
	places, err := json.Marshal(map[string]string{"bpffs": w.bpffs, "runDir": w.runDir})
	w.must(err)
	rest := bytes.TrimSpace(f.Stdin)
	stdin := append(append([]byte{}, places[:len(places)-1]...), ',')
	return request{Env: f.Env, Stdin: append(stdin, rest[1:]...)}
}

func TestRecordedCallsOfEveryRuntime(t *testing.T) {
	for name, f := range fixtures(t) {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			r := w.here(f)
			switch f.Env["CNI_COMMAND"] {
			case "ADD":
				expectEcho(t, w.mustCall(r), f.Stdin)
				if len(w.registered()) != 1 || len(w.pins) != 2 {
					t.Errorf("registered %+v, pins %v", w.registered(), w.pins)
				}
			case "DEL", "STATUS":
				if out := w.mustCall(r); out != "" {
					t.Errorf("printed %q", out)
				}
				w.expectEmpty()
			case "CHECK":
				add := request{Env: map[string]string{}, Stdin: r.Stdin}
				for k, v := range r.Env {
					add.Env[k] = v
				}
				w.expectCode(r, codeDrift) // before ADD
				add.Env["CNI_COMMAND"] = "ADD"
				w.giveAddresses(f)
				w.mustCall(add)
				w.mustCall(r)
			case "GC":
				if name == "cnitool-gc" { // cnitool sends no list
					w.expectCode(r, types.ErrInvalidNetworkConfig)
				} else {
					w.mustCall(r)
				}
			case "VERSION":
				// Only skel sees it, and it prints to the process's standard output.
				if _, err := w.call(r); err != nil {
					t.Error(err)
				}
			default:
				t.Fatalf("unknown command %q", f.Env["CNI_COMMAND"])
			}
		})
	}
}

// giveAddresses makes the container have what the recorded result says.
func (w *fakeWorld) giveAddresses(f fixture) {
	w.Helper()
	conf, err := parseConf(f.Stdin)
	w.must(err)
	prev, err := conf.prevResult()
	w.must(err)
	v := aVeth(7)
	v.Addresses = prev.addresses(f.Env["CNI_IFNAME"])
	w.veths[f.Env["CNI_IFNAME"]] = v
}

// expectEcho checks that out is the prevResult of stdin, byte for byte but for white space.
func expectEcho(t *testing.T, out string, stdin json.RawMessage) {
	t.Helper()
	var conf struct {
		PrevResult json.RawMessage `json:"prevResult"`
	}
	if err := json.Unmarshal(stdin, &conf); err != nil {
		t.Fatal(err)
	}
	var got, want bytes.Buffer
	if err := json.Compact(&got, []byte(out)); err != nil {
		t.Fatalf("printed %q: %v", out, err)
	}
	if err := json.Compact(&want, conf.PrevResult); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Errorf("printed\n%s\nwant\n%s", &got, &want)
	}
}

func TestRecordedMemberships(t *testing.T) {
	all := fixtures(t)
	for name, want := range map[string]struct{ names, container, addresses string }{
		"podman-add":                          {"web,web-alias", "rt-web", "10.201.0.7"},
		"podman-add-kube":                     {"", "rt-kp", "10.201.0.89"},
		"podman-add-multi-eth0":               {"a2", "rt-multi", "10.210.40.50,fd00:210:40::3"},
		"podman-add-031-dual":                 {"", "rt-x", "10.210.31.2,fd00:210:31::2"},
		"nerdctl-add-compose":                 {"web", "", "10.201.0.126"},
		"nomad-add":                           {"rtgrp", "", "10.206.0.2"},
		"containerd-cri-add":                  {"", "rt-pod", "10.205.0.2"},
		"shape-ptp-add":                       {"", "", "10.213.0.2"},
		"shape-macvlan-add":                   {"", "", "10.214.0.2"},
		"shape-bridge-bandwidth-firewall-add": {"", "", "10.216.0.2"},
	} {
		f, ok := all[name]
		if !ok {
			t.Errorf("no fixture %s", name)
			continue
		}
		w := newWorld(t)
		w.veths[f.Env["CNI_IFNAME"]] = aVeth(7) // the addresses come from the result
		w.mustCall(w.here(f))
		e := w.registered()[0]
		var addrs []string
		for _, a := range e.Addresses {
			addrs = append(addrs, a.String())
		}
		if got := strings.Join(e.Names, ","); got != want.names {
			t.Errorf("%s: names %q, want %q", name, got, want.names)
		}
		if e.Container != want.container {
			t.Errorf("%s: container %q, want %q", name, e.Container, want.container)
		}
		if got := strings.Join(addrs, ","); got != want.addresses {
			t.Errorf("%s: addresses %s, want %s", name, got, want.addresses)
		}
	}
}

func TestResultKeepsUnknownKeysAndGetsTheConfsVersion(t *testing.T) {
	w := newWorld(t)
	raw := `{"futureKey": {"b":1, "a":[2]},"cniVersion":"1.0.0","interfaces":[],"ips":[],"dns":{}}`
	stdin := w.request("ADD", "1.0.0", map[string]any{"prevResult": json.RawMessage(raw)})
	expectEcho(t, w.mustCall(stdin), stdin.Stdin)

	for _, prev := range []string{
		`{"ips":[{"version":"4","address":"192.0.2.7/24"}],"dns":{}}`,
		`{"cniVersion":"1.0.0","ips":[{"address":"192.0.2.7/24"}],"dns":{}}`,
	} {
		out := w.mustCall(w.request("ADD", "0.4.0", map[string]any{"prevResult": json.RawMessage(prev)}))
		var got struct {
			CNIVersion string
			IPs        []struct{ Version, Address string }
		}
		w.must(json.Unmarshal([]byte(out), &got))
		if got.CNIVersion != "0.4.0" || len(got.IPs) != 1 || got.IPs[0].Version != "4" || got.IPs[0].Address != "192.0.2.7/24" {
			t.Errorf("%s was printed as %s", prev, out)
		}
	}
}

// What we ship has to load where it is used: podman 4 and containerd 1.6 know 1.0.0 at most.
func TestSampleConflistsLoad(t *testing.T) {
	paths, err := filepath.Glob("../conf/*.conflist")
	if err != nil || len(paths) < 4 {
		t.Fatalf("samples %v: %v", paths, err)
	}
	names := map[string]string{}
	for _, path := range paths {
		list, err := libcni.ConfListFromFile(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if list.CNIVersion != "1.0.0" {
			t.Errorf("%s: cniVersion %s, want 1.0.0", path, list.CNIVersion)
		}
		if other, twice := names[list.Name]; twice {
			t.Errorf("%s and %s are both named %s", path, other, list.Name)
		}
		names[list.Name] = path
		ours := 0
		for i, pl := range list.Plugins {
			if pl.Network.Type != "tclb-cni" {
				continue
			}
			ours++
			conf, err := parseConf(pl.Bytes)
			if err != nil || conf.BPFFS == "" || conf.RunDir != registry.DefaultRunDir {
				t.Errorf("%s: %+v, %v", path, conf, err)
			}
			if _, err := conf.membership("c1", ""); err != nil {
				t.Errorf("%s: %v", path, err)
			}
			if i == 0 {
				t.Errorf("%s: tclb-cni comes first, so it gets no prevResult", path)
			}
			for _, c := range []string{"aliases", "io.kubernetes.cri.pod-annotations"} {
				if !pl.Network.Capabilities[c] {
					t.Errorf("%s: capability %s is not asked for", path, c)
				}
			}
		}
		if ours != 1 {
			t.Errorf("%s: %d entries of type tclb-cni, want one", path, ours)
		}
	}
}
