package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v3"

	"github.com/tc-loadbalancer/tclb/proxy/internal/api/apitest"
)

func sortStrings(less func(a, b string) bool) cmp.Option { return cmpopts.SortSlices(less) }

// listings are the commands that show something of the node.
var listings = []string{
	"status", "service list", "service get web", "backend list", "backend list dns", "endpoint list", "node list",
	"conntrack list", "conntrack list --service web",
}

func TestListingsInEveryFormat(t *testing.T) {
	n := startNode(t)
	for _, line := range listings {
		for _, format := range []string{"table", "json", "yaml"} {
			got := n.run(t, line+" -o "+format)
			if got.status != exitDone || got.stderr != "" {
				t.Errorf("%s -o %s: status %d, stderr %q", line, format, got.status, got.stderr)
			}
			name := strings.NewReplacer(" --", "-", " ", "-").Replace(line)
			golden(t, "listing/"+name+"."+format, got.stdout)
		}
		if table, plain := n.run(t, line+" --output table"), n.run(t, line); table != plain {
			t.Errorf("%s: the default is not the table", line)
		}
	}
}

// decodeJSON and decodeYAML must agree, and with what the contract promises to programs.
func TestFieldsThatProgramsRelyOn(t *testing.T) {
	n := startNode(t)
	fields := map[string][]string{
		"service list":    {"name", "vips", "ports", "scheduler", "backends"},
		"service get web": {"name", "vips", "ports", "scheduler", "backends"},
		"backend list": {
			"service", "address", "port", "protocol", "node", "weight", "state", "activeConnections", "totalConnections", "local",
		},
		"endpoint list": {"containerID", "ifname", "hostInterface", "addresses", "services"},
		"node list":     {"name", "address", "reachable"},
		"conntrack list": {
			"protocol", "client", "vip", "backend", "state", "node", "ageSeconds", "expiresSeconds", "packets", "bytes",
		},
	}
	for line, want := range fields {
		var fromJSON, fromYAML []map[string]any
		if err := json.Unmarshal([]byte(n.run(t, line+" -o json").stdout), &fromJSON); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if err := yaml.Unmarshal([]byte(n.run(t, line+" -o yaml").stdout), &fromYAML); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if len(fromJSON) == 0 || len(fromJSON) != len(fromYAML) {
			t.Fatalf("%s: %d rows in JSON, %d in YAML", line, len(fromJSON), len(fromYAML))
		}
		for i, row := range fromJSON {
			for _, field := range want {
				if _, ok := row[field]; !ok {
					t.Errorf("%s: row %d has no %s", line, i, field)
				}
			}
		}
		again, err := json.Marshal(fromYAML)
		if err != nil {
			t.Fatal(err)
		}
		var back []map[string]any
		if err := json.Unmarshal(again, &back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fromJSON, back); diff != "" {
			t.Errorf("%s: YAML says something else than JSON (-json +yaml):\n%s", line, diff)
		}
	}
}

func TestEmptyListings(t *testing.T) {
	n := startNode(t)
	*n.view = apitest.View{NodeValue: n.view.NodeValue, ConfigValue: n.view.ConfigValue}
	n.maps.PairValues = nil
	for _, line := range []string{"service list", "backend list", "endpoint list", "conntrack list"} {
		if got := n.run(t, line+" -o json"); got != (result{exitDone, "[]\n", ""}) {
			t.Errorf("%s -o json: %+v", line, got)
		}
		if got := n.run(t, line+" -o yaml"); got != (result{exitDone, "[]\n", ""}) {
			t.Errorf("%s -o yaml: %+v", line, got)
		}
		if got := n.run(t, line); got.status != exitDone || strings.Count(got.stdout, "\n") != 1 {
			t.Errorf("%s: %+v, want the header alone", line, got)
		}
	}
}

func TestUnknownNamesInListings(t *testing.T) {
	n := startNode(t)
	for _, line := range []string{"service get nope", "backend list nope", "conntrack list --service nope"} {
		got := n.run(t, line)
		want := result{exitFailed, "", `tclb: service "nope": no such service: "tclb service list" shows what there is` + "\n"}
		if got != want {
			t.Errorf("%s: %+v, want %+v", line, got, want)
		}
	}
	got := n.run(t, "service get late")
	if got.status != exitFailed || !strings.Contains(got.stderr, "not in the maps yet: map is full") {
		t.Errorf("a service that is not in the maps: %+v", got)
	}
}

func TestNamesCannotDriveTheTerminal(t *testing.T) {
	n := startNode(t)
	n.view.EndpointValues[0].HostInterface = "veth\x1b[2J\n"
	if got := n.run(t, "endpoint list"); strings.ContainsAny(got.stdout, "\x1b") || strings.Count(got.stdout, "\n") != 3 {
		t.Errorf("control characters reach the terminal: %q", got.stdout)
	}
}
