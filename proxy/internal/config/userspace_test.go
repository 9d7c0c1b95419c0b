package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What only programs in the kernel do is a mistake where they are not wanted, at the value.
func TestUserspaceModeRefusesWhatItCannotDo(t *testing.T) {
	const advice = " is for programs in the kernel, and datapath.mode is userspace: remove it, or set datapath.mode to ebpf or auto"
	for _, tt := range []struct{ text, want string }{
		{"datapath: {mode: userspace, hostStack: true}", "1:40: datapath.hostStack: hostStack" + advice},
		{"datapath: {hostStack: false, socketLB: true, mode: userspace}", "1:40: datapath.socketLB: socketLB" + advice},
		{"datapath: {mode: userspace, antiSpoof: true, hairpinAddress: [169.254.1.1]}", ""},
		{"datapath: {mode: userspace}\nuplinks: [eth0]", "2:10: uplinks: uplinks" + advice},
		{"datapath: {mode: userspace}\nuplinks: []\nannounce: false\nnodes: []", ""},
		{"announce: true\ndatapath: {mode: userspace}", "1:11: announce: announce" + advice},
		{"datapath: {mode: userspace}\ntunnel: {mtu: 1400}", "2:9: tunnel: tunnel" + advice},
		{"datapath: {mode: userspace}\nnodes:\n- {name: b, address: 192.0.2.12}", "3:1: nodes: nodes" + advice},
		{"datapath: {mode: userspace}\nvipPool: [127.8.0.0/16, \"::1/128\"]", ""},
		{"datapath: {mode: auto}\nvipPool: [127.8.0.0/16]", "2:11: vipPool[0]: 127.8.0.0/16 " + notLoopback},
		{"datapath: {mode: auto, hostStack: true}\nuplinks: [eth0]\ntunnel: {mtu: 1400}", ""},
	} {
		_, findings := Parse("tclb.yaml", []byte(tt.text))
		if tt.want == "" {
			expect(t, findings, "")
		} else {
			expect(t, findings, "tclb.yaml:"+tt.want)
		}
	}
}

// The same, of services files; and what no mode can do here.
func TestServicesFitTheMode(t *testing.T) {
	const (
		head   = "services:\n- name: a\n  vips: [10.96.0.1]\n  ports: [{port: 80}]\n"
		advice = " is done by programs in the kernel, and datapath.mode is userspace: remove it, or set datapath.mode to ebpf or auto in tclb.yaml"
		vlan   = "  backends: [{address: 10.88.0.1}, {address: 10.88.0.2, vlan: {id: 5, device: eth7}}]\n"
	)
	for _, tt := range []struct{ settings, text, want string }{
		{"datapath: {mode: userspace}", head + "  dsr: true\n", "5:8: services[0].dsr: dsr" + advice},
		{"datapath: {mode: userspace}", head + "  accelerate: true\n  dsr: false\n", "5:15: services[0].accelerate: accelerate" + advice},
		{"datapath: {mode: userspace}", head + vlan, "5:63: services[0].backends[1].vlan: vlan" + advice},
		{"uplinks: [eth0]", head + "  dsr: true\n", ""},
		{"uplinks: []", head + "  dsr: true\n", "5:8: services[0].dsr: dsr needs uplinks, by which clients outside are answered: name the devices in uplinks in tclb.yaml, or remove dsr"},
		{"uplinks: []", head + vlan, "5:79: services[0].backends[1].vlan.device: device \"eth7\" is not there: make it, or correct the name"},
		{"uplinks: []", strings.Replace(head+vlan, "eth7", "eth0", 1), ""},
		{"uplinks: []", strings.Replace(head, "10.96.0.1", "127.0.0.1", 1), "3:10: services[0].vips[0]: VIP 127.0.0.1 " + notLoopback + ", or set datapath.mode to userspace in tclb.yaml"},
		{"uplinks: []", head + "  backends: [{address: 127.0.0.1}]\n", "5:24: services[0].backends[0].address: backend address 127.0.0.1 " + notLoopback + ", or set datapath.mode to userspace in tclb.yaml"},
		{"datapath: {mode: userspace}", strings.Replace(head, "10.96.0.1", "127.0.0.2", 1) + "  backends: [{address: 127.0.0.1}]\n", ""},
		{"datapath: {mode: userspace}\netcd: {endpoints: [\"http://192.0.2.1:2379\"]}", strings.Replace(head, "10.96.0.1", "127.0.0.2", 1), "3:10: services[0].vips[0]: VIP 127.0.0.2 " + notLoopback + ", since all nodes of etcd are to serve it"},
	} {
		dir := t.TempDir()
		write(t, dir, directory{"tclb.yaml": tt.settings + "\n", "a.yaml": tt.text})
		path := filepath.Join(dir, "a.yaml")
		findings, err := Validate([]string{path, filepath.Join(dir, "tclb.yaml")}, Here{Device: func(name string) bool { return name == "eth0" }})
		if err != nil {
			t.Fatal(err)
		}
		if tt.want != "" {
			expect(t, findings, path+":"+tt.want)
		} else {
			expect(t, findings, "")
		}
	}
}

// Without a tclb.yaml among the files this node's counts, or the defaults. What is wrong with a file comes all at once.
func TestServicesFitThisNode(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write(t, dir, directory{
		"outside.yaml": "uplinks: [eth0]\n",
		"wrong.yaml":   "uplink: [eth0]\nlisten: \"\"\n",
		"a.yaml": "services:\n- name: a\n  vips: [10.96.0.1]\n  ports: [{port: 80}]\n  dsr: true\n" +
			"  backends: [{address: 10.88.0.1, node: zoe}, {address: 10.88.0.2, vlan: {id: 0, device: eth0}}]\n",
	})
	for _, tt := range []struct {
		here  string
		among []string
		want  []string
	}{
		{"none.yaml", nil, []string{"5:8", "6:79"}},
		{"outside.yaml", nil, []string{"6:41", "6:79"}},
		{"none.yaml", []string{"wrong.yaml"}, []string{"6:79", "1:1"}},
		{"wrong.yaml", nil, []string{"6:79"}},
	} {
		paths := []string{path("a.yaml")}
		for _, name := range tt.among {
			paths = append(paths, path(name))
		}
		findings, err := Validate(paths, Here{Config: path(tt.here)})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range findings {
			got = append(got, fmt.Sprintf("%d:%d", f.Line, f.Column))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("with %s and %q: %v, want %v: %v", tt.here, tt.among, got, tt.want, findings)
		}
	}
}

// A file of loopback addresses that ran in userspace mode must not run on in another one.
func TestLoopbackAddressesEndWithTheMode(t *testing.T) {
	f := ParseServices("a.yaml", "a.yaml", []byte("services: [{name: a, vips: [127.0.0.2], ports: [{port: 80}]}]\n"))
	expect(t, f.Findings, "")
	accepted, findings := Merge([]File{f}, []File{f}, Surroundings{Loopback: true})
	if len(accepted) != 1 || len(findings) > 0 {
		t.Errorf("in userspace mode: %d accepted, findings %v", len(accepted), findings)
	}
	accepted, findings = Merge([]File{f}, []File{f}, Surroundings{})
	if len(accepted) != 0 || len(findings) != 1 || !strings.Contains(findings[0].Reason, "loopback") {
		t.Errorf("in another mode: %d accepted, findings %v", len(accepted), findings)
	}
	if wrong := f.CheckShared(); len(wrong) != 1 || strings.Contains(wrong[0].Reason, "tclb.yaml") {
		t.Errorf("in etcd: %v", wrong)
	}
}

// Where auto came to userspace mode nobody made a mistake: what has no effect is said.
func TestPendingNamesWhatUserspaceModeLeavesOut(t *testing.T) {
	c := Default()
	if got := c.Pending(ModeUserspace); len(got) != 0 {
		t.Errorf("defaults: %v", got)
	}
	c.Uplinks, c.Announce, c.Datapath.HostStack, c.Nodes = []string{"eth0"}, true, true, []Peer{{Name: "b"}}
	got := strings.Join(c.Pending(ModeUserspace), "\n")
	for _, want := range []string{"uplinks", "announce", "datapath.hostStack", "nodes"} {
		if !strings.Contains(got, want+" has no effect in userspace mode") {
			t.Errorf("%s is missing: %q", want, got)
		}
	}
	f := ParseServices("a", "a", []byte("services: [{name: a, dsr: true, accelerate: true, vips: [10.96.0.1], ports: [{port: 80}], backends: [{address: 10.88.0.2, vlan: {id: 5, device: eth7}}]}]"))
	expect(t, f.Findings, "")
	if got := PendingIn(&f.Services[0].Service, ModeUserspace); len(got) != 3 {
		t.Errorf("of a service: %q", got)
	}
}
