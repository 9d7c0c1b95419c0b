package config

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// svc is a services file with services written as "name vip".
func svc(services ...string) string {
	if len(services) == 0 {
		return "services: []\n"
	}
	var b strings.Builder
	b.WriteString("services:\n")
	for _, s := range services {
		name, vip, _ := strings.Cut(s, " ")
		fmt.Fprintf(&b, "- {name: %s, ports: [{port: 80}], vips: [%s]}\n", name, vip)
	}
	return b.String()
}

// broken is a file that cannot count.
const broken = "services: [\n"

// directory is what a directory holds, by file name.
type directory map[string]string

// parsed reads a directory's files in an order that says nothing.
func parsed(d directory) []File {
	var files []File
	for name, text := range d {
		files = append(files, ParseServices(name, name, []byte(text)))
	}
	return files
}

// running lists what counts, as "file: name vip, ...".
func running(files []File) []string {
	var out []string
	for _, f := range files {
		var services []string
		for _, d := range f.Services {
			services = append(services, strings.TrimSpace(d.Service.Name+" "+strings.Trim(fmt.Sprint(d.Service.VIPs), "[]")))
		}
		out = append(out, f.Name+": "+strings.Join(services, ", "))
	}
	return out
}

// A history is a row of directory contents. After each the services that count are those given, and
// the findings as well.
func TestMergeHistories(t *testing.T) {
	type step struct {
		dir      directory
		running  []string
		findings []string
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"a broken file changes nothing that runs, a removed one takes its services away", []step{
			{dir: directory{"a.yaml": svc("web 10.96.0.1")}, running: []string{"a.yaml: web 10.96.0.1"}},
			{
				dir: directory{"a.yaml": broken}, running: []string{"a.yaml: web 10.96.0.1"},
				findings: []string{"a.yaml:2:1: yaml: did not find expected node content"},
			},
			{dir: directory{"a.yaml": svc("web 10.96.0.2")}, running: []string{"a.yaml: web 10.96.0.2"}},
			{dir: directory{}},
		}},
		{"at start the first file in lexical order keeps name and VIP", []step{
			{
				dir: directory{
					"b.yaml": svc("web 10.96.0.2"), "a.yaml": svc("web 10.96.0.1"), "c.yaml": svc("api 10.96.0.2"), "d.yaml": svc("db 10.96.0.1"),
				},
				running: []string{"a.yaml: web 10.96.0.1", "c.yaml: api 10.96.0.2"},
				findings: []string{
					`b.yaml:2:10: services[0].name: service name "web" is taken by a.yaml: give this one another name`,
					`b.yaml:2:43: services[0].vips[0]: VIP 10.96.0.2 is taken by service "api" of c.yaml: choose another one`,
					`d.yaml:2:42: services[0].vips[0]: VIP 10.96.0.1 is taken by service "web" of a.yaml: choose another one`,
				},
			},
		}},
		{"what runs keeps its VIP against an earlier file", []step{
			{dir: directory{"m.yaml": svc("web 10.96.0.1")}, running: []string{"m.yaml: web 10.96.0.1"}},
			{
				dir:      directory{"a.yaml": svc("new 10.96.0.1"), "m.yaml": svc("web 10.96.0.1")},
				running:  []string{"m.yaml: web 10.96.0.1"},
				findings: []string{`a.yaml:2:43: services[0].vips[0]: VIP 10.96.0.1 is taken by service "web" of m.yaml: choose another one`},
			},
			{dir: directory{"a.yaml": svc("new 10.96.0.1"), "m.yaml": svc("web 10.96.0.9")}, running: []string{"a.yaml: new 10.96.0.1", "m.yaml: web 10.96.0.9"}},
		}},
		{"what runs keeps its VIP while its own file is broken", []step{
			{dir: directory{"m.yaml": svc("web 10.96.0.1")}, running: []string{"m.yaml: web 10.96.0.1"}},
			{
				dir: directory{"a.yaml": svc("new 10.96.0.1"), "m.yaml": broken}, running: []string{"m.yaml: web 10.96.0.1"},
				findings: []string{
					`a.yaml:2:43: services[0].vips[0]: VIP 10.96.0.1 is taken by service "web" of m.yaml: choose another one`,
					"m.yaml:2:1: yaml: did not find expected node content",
				},
			},
		}},
		{"a file of which one service clashes is refused as a whole", []step{
			{dir: directory{"a.yaml": svc("web 10.96.0.1"), "b.yaml": svc("api 10.96.0.2")}, running: []string{"a.yaml: web 10.96.0.1", "b.yaml: api 10.96.0.2"}},
			{
				dir:      directory{"a.yaml": svc("web 10.96.0.1"), "b.yaml": svc("api 10.96.0.3", "more 10.96.0.1")},
				running:  []string{"a.yaml: web 10.96.0.1", "b.yaml: api 10.96.0.2"},
				findings: []string{`b.yaml:3:44: services[1].vips[0]: VIP 10.96.0.1 is taken by service "web" of a.yaml: choose another one`},
			},
		}},
		{"a service moves to another file, and files exchange services", []step{
			{dir: directory{"a.yaml": svc("web 10.96.0.1"), "b.yaml": svc("api 10.96.0.2")}, running: []string{"a.yaml: web 10.96.0.1", "b.yaml: api 10.96.0.2"}},
			{dir: directory{"a.yaml": svc("api 10.96.0.2"), "b.yaml": svc("web 10.96.0.1")}, running: []string{"a.yaml: api 10.96.0.2", "b.yaml: web 10.96.0.1"}},
			{dir: directory{"a.yaml": svc(), "b.yaml": svc("web 10.96.0.1", "api 10.96.0.2")}, running: []string{"a.yaml: ", "b.yaml: web 10.96.0.1, api 10.96.0.2"}},
			{dir: directory{"z.yaml": svc("web 10.96.0.1", "api 10.96.0.2")}, running: []string{"z.yaml: web 10.96.0.1, api 10.96.0.2"}},
		}},
		{"one refused file does not keep others from following one another", []step{
			{
				dir:     directory{"a.yaml": svc("a 10.96.0.1"), "b.yaml": svc("b 10.96.0.2"), "c.yaml": svc("c 10.96.0.3")},
				running: []string{"a.yaml: a 10.96.0.1", "b.yaml: b 10.96.0.2", "c.yaml: c 10.96.0.3"},
			},
			{
				dir: directory{
					"a.yaml": svc("a 10.96.0.2"), "b.yaml": svc("b 10.96.0.4"), "c.yaml": svc("c 10.96.0.3"), "d.yaml": svc("d 10.96.0.3"),
				},
				running:  []string{"a.yaml: a 10.96.0.2", "b.yaml: b 10.96.0.4", "c.yaml: c 10.96.0.3"},
				findings: []string{`d.yaml:2:41: services[0].vips[0]: VIP 10.96.0.3 is taken by service "c" of c.yaml: choose another one`},
			},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			store := NewLastGood(t.TempDir())
			var now []File
			for i, s := range tt.steps {
				// Each step also happens right after a restart, and must end the same.
				remembered, err := store.Load()
				if err != nil {
					t.Fatal(err)
				}
				restarted, _ := Merge(remembered, parsed(s.dir), Surroundings{})
				var findings []Finding
				now, findings = Merge(now, parsed(s.dir), Surroundings{})
				for when, files := range map[string][]File{"": now, " after a restart": restarted} {
					if got := running(files); !slices.Equal(got, s.running) {
						t.Errorf("step %d%s: %q, want %q", i+1, when, got, s.running)
					}
				}
				expect(t, findings, strings.Join(s.findings, "\n"))
				if err := store.Save(now); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestPoolVIPIsNotTakenAway(t *testing.T) {
	auto := "services: [{name: auto, ports: [{port: 80}]}]\n"
	env := Surroundings{Pool: prefixes("10.96.0.0/16"), Held: map[string][]netip.Addr{"auto": addrs("10.96.0.7"), "gone": addrs("10.96.0.8")}}
	now, findings := Merge(nil, parsed(directory{"m.yaml": auto}), env)
	expect(t, findings, "")
	now, findings = Merge(now, parsed(directory{"m.yaml": auto, "a.yaml": svc("web 10.96.0.7"), "b.yaml": svc("api 10.96.0.8")}), env)
	expect(t, findings, `a.yaml:2:43: services[0].vips[0]: VIP 10.96.0.7 is taken by service "auto" of m.yaml: choose another one`)
	if got := running(now); !slices.Equal(got, []string{"b.yaml: api 10.96.0.8", "m.yaml: auto"}) {
		t.Error(got)
	}
	// Coming later in lexical order gives nobody more of a right to it.
	_, findings = Merge(now, parsed(directory{"b.yaml": svc("api 10.96.0.8"), "m.yaml": auto, "z.yaml": svc("web 10.96.0.7")}), env)
	expect(t, findings, `z.yaml:2:43: services[0].vips[0]: VIP 10.96.0.7 is taken by service "auto" of m.yaml: choose another one`)
	// Another service of the same file is refused it too; the holder itself may name it.
	_, findings = Merge(now, parsed(directory{"m.yaml": auto[:len(auto)-2] + ", {name: web, ports: [{port: 80}], vips: [10.96.0.7]}]\n"}), env)
	expect(t, findings, `m.yaml:1:87: services[1].vips[0]: VIP 10.96.0.7 is taken by service "auto" of m.yaml: choose another one`)
	_, findings = Merge(now, parsed(directory{"m.yaml": svc("auto 10.96.0.7")}), env)
	expect(t, findings, "")
}

func TestServiceMustFitItsSurroundings(t *testing.T) {
	auto := "services: [{name: auto, ports: [{port: 80}], backends: [{address: 10.88.0.5}, {address: \"2001:db8::5\"}]}]\n"
	elsewhere := "services:\n- {name: web, vips: [10.96.0.1], ports: [{port: 80}], backends: [\n" +
		"  {address: 10.88.0.5, node: node-b}, {address: 10.88.0.5, node: node-a},\n\n" +
		"  {address: 10.88.0.6, node: nodeb}, {address: 10.88.0.7}]}\n"
	tests := []struct {
		name, text, want string
		env              Surroundings
	}{
		{
			"no pool", auto, `f.yaml:1:19: services[0].name: service "auto" has no vips, and vipPool is empty: give it vips, or set vipPool in tclb.yaml`,
			Surroundings{},
		},
		{
			"pool of one family", auto,
			`f.yaml:1:89: services[0].backends[1].address: backend address 2001:db8::5 is IPv6, but the service has no IPv6 VIP: add one to vips or remove the backend`,
			Surroundings{Pool: prefixes("10.96.0.0/16")},
		},
		{"pool of both", auto, "", Surroundings{Pool: prefixes("10.96.0.0/16", "fd00:96::/64")}},
		{
			"VIP in a container subnet", svc("web 10.88.3.4"),
			"f.yaml:2:43: services[0].vips[0]: VIP 10.88.3.4 is inside the container subnet 10.88.0.0/16: choose one outside",
			Surroundings{Subnets: prefixes("10.89.0.0/16", "10.88.0.0/16")},
		},
		{
			"VIP that is a node's address", svc("web 192.0.2.12"),
			`f.yaml:2:43: services[0].vips[0]: VIP 192.0.2.12 is the address of node "node-b": choose another one`,
			Surroundings{Hosts: map[netip.Addr]string{netip.MustParseAddr("192.0.2.12"): "node-b"}},
		},
		{
			"backends on nodes", elsewhere,
			`f.yaml:5:30: services[0].backends[2].node: node "nodeb" is neither this node nor in nodes: add it to nodes in tclb.yaml, or correct the name`,
			Surroundings{Nodes: []string{"node-a", "node-b"}},
		},
		{"backends where nodes come and go", elsewhere, "", Surroundings{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			accepted, findings := Merge(nil, parsed(directory{"f.yaml": tt.text}), tt.env)
			expect(t, findings, tt.want)
			if (len(accepted) == 1) != (tt.want == "") {
				t.Errorf("accepted %d files", len(accepted))
			}
		})
	}
}

// A store of which a file got lost or spoiled must not keep the proxy from starting.
func TestSpoiledLastGoodIsLeftOut(t *testing.T) {
	state := t.TempDir()
	store := NewLastGood(state)
	now, _ := Merge(nil, parsed(directory{"a.yaml": svc("web 10.96.0.1"), "b.yaml": svc("api 10.96.0.2")}), Surroundings{})
	if err := store.Save(now); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, "services.d", "a.yaml"), []byte(broken), 0o600); err != nil {
		t.Fatal(err)
	}
	store = NewLastGood(state)
	files, err := store.Load()
	if err != nil || !slices.Equal(running(files), []string{"b.yaml: api 10.96.0.2"}) {
		t.Error(running(files), err)
	}
	// Saving repairs it, and forgets what is gone.
	if err := store.Save(now[:1]); err != nil {
		t.Fatal(err)
	}
	files, err = NewLastGood(state).Load()
	if err != nil || !slices.Equal(running(files), []string{"a.yaml: web 10.96.0.1"}) {
		t.Error(running(files), err)
	}
	left, _ := os.ReadDir(filepath.Join(state, "services.d"))
	if len(left) != 1 {
		t.Errorf("left over: %v", left)
	}
}

func TestUnchangedFilesAreNotWrittenAgain(t *testing.T) {
	state := t.TempDir()
	now, _ := Merge(nil, parsed(directory{"a.yaml": svc("web 10.96.0.1")}), Surroundings{})
	if err := NewLastGood(state).Save(now); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(state, "services.d", "a.yaml")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := NewLastGood(state).Save(now); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Error("the file was replaced")
	}
}

// Whatever the order in which files come and go, no name or VIP ever counts twice.
func TestMergeNeverAcceptsAClash(t *testing.T) {
	contents := []string{svc("a 10.96.0.1"), svc("a 10.96.0.2"), svc("b 10.96.0.1"), svc("b 10.96.0.2", "c 10.96.0.3"), svc("c 10.96.0.1"), broken, svc(), ""}
	names := []string{"p.yaml", "q.yaml", "r.yaml"}
	var now []File
	state := uint32(1)
	dir := directory{}
	for range 3000 {
		state = state*1664525 + 1013904223
		name, text := names[(state>>8)%3], contents[(state>>16)%8]
		if text == "" {
			delete(dir, name)
		} else {
			dir[name] = text
		}
		now, _ = Merge(now, parsed(dir), Surroundings{})
		seen := map[string]bool{}
		for _, s := range Services(now) {
			for _, k := range []string{s.Name, s.VIPs[0].String()} {
				if seen[k] {
					t.Fatalf("%s counts twice: %q", k, running(now))
				}
				seen[k] = true
			}
		}
		for _, f := range now {
			if !slices.Contains(slices.Collect(maps.Keys(dir)), f.Name) {
				t.Fatalf("%s is gone but counts", f.Name)
			}
		}
	}
}
