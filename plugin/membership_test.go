package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

const longID = "c018f56e4e57faa345b62f48d29dc3a51f8f056549a2f13521dbe303d5f9a32a"

// show writes a membership in one line.
func (m membership) show() string {
	weight := "-"
	if m.weight != nil {
		weight = fmt.Sprint(*m.weight)
	}
	return fmt.Sprintf("%s by %q names %s weight %s port %d", strings.Join(m.services, ","), m.source, strings.Join(m.names, ","), weight, m.port)
}

func TestFirstChannelThatNamesAServiceWins(t *testing.T) {
	for name, c := range map[string]struct{ args, conf, want string }{
		"nothing": {"", `{}`, `by "" names  weight - port 0`},
		"arguments before all": {
			"IgnoreUnknown=1;TCLB_SERVICES=a;NOMAD_GROUP_NAME=d",
			`{"services":["c"],"runtimeConfig":{"aliases":{"net":["e"]},"io.kubernetes.cri.pod-annotations":{"tclb.services":"b"}}}`,
			`a by "cni-args" names  weight - port 0`,
		},
		"annotations before conflist": {
			"NOMAD_GROUP_NAME=d", `{"services":["c"],"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"tclb.services":"b, b2","other":"x"}}}`,
			`b,b2 by "annotations" names  weight - port 0`,
		},
		"conflist before names":        {"NOMAD_GROUP_NAME=d", `{"services":["c","c2"]}`, `c,c2 by "conflist" names  weight - port 0`},
		"empty names nothing":          {"TCLB_SERVICES= , ;NOMAD_GROUP_NAME=d", `{"services":[""]}`, `by "" names d weight - port 0`},
		"spaces, any order, twice":     {"TCLB_PORT= 8080 ;TCLB_WEIGHT=0;TCLB_SERVICES= web , api,web;A", `{}`, `web,api by "cni-args" names  weight 0 port 8080`},
		"value with equals":            {"CONSUL_IPTABLES_CONFIG={\"a\":\"b=c\"};TCLB_SERVICES=web", `{}`, `web by "cni-args" names  weight - port 0`},
		"weight alone goes with names": {"TCLB_WEIGHT=7;NERDCTL_CNI_DHCP_HOSTNAME=web", `{}`, `by "" names web weight 7 port 0`},
		"weight of arguments is stronger": {
			"TCLB_WEIGHT=7", `{"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"tclb.services":"b","tclb.weight":"8","tclb.port":"81"}}}`,
			`b by "annotations" names  weight 7 port 81`,
		},
		"annotations do not add to arguments": {
			"TCLB_SERVICES=a", `{"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"tclb.services":"b","tclb.weight":"8","tclb.port":"81"}}}`,
			`a by "cni-args" names  weight - port 0`,
		},
		"names, all three": {
			"NOMAD_GROUP_NAME=grp;NERDCTL_CNI_DHCP_HOSTNAME=host", `{"runtimeConfig":{"aliases":{"net":["web","web-2","c018f56e4e57"],"other":["x"]}}}`,
			`by "" names web,web-2,host,grp weight - port 0`,
		},
		"alias list":          {"", `{"runtimeConfig":{"aliases":["web"]}}`, `by "" names web weight - port 0`},
		"odd aliases":         {"", `{"runtimeConfig":{"aliases":"web"}}`, `by "" names  weight - port 0`},
		"capitalised keys":    {"", `{"RuntimeConfig":{"Aliases":{"net":["Web"]}},"JOINBYNAME":true}`, `by "" names web weight - port 0`},
		"names no label":      {"NERDCTL_CNI_DHCP_HOSTNAME=web.example.com", `{"runtimeConfig":{"aliases":["a_b","-x",""]}}`, `by "" names  weight - port 0`},
		"joinByName off":      {"NOMAD_GROUP_NAME=grp", `{"joinByName":false}`, `by "" names  weight - port 0`},
		"pod name is no name": {"K8S_POD_NAME=web", `{}`, `by "" names  weight - port 0`},
	} {
		conf := &netConf{}
		if err := json.Unmarshal([]byte(c.conf), conf); err != nil {
			t.Fatal(err)
		}
		conf.Name = "net"
		m, err := conf.membership(longID, c.args)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := strings.TrimSpace(m.show()); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
	}
}

func TestShortIDsAreNoNames(t *testing.T) {
	conf := &netConf{Name: "net"}
	for _, id := range []string{longID, "default-" + longID} {
		m, err := conf.membership(id, "NERDCTL_CNI_DHCP_HOSTNAME="+longID[:12])
		if err != nil || m.names != nil {
			t.Errorf("%s: names %v, %v", id, m.names, err)
		}
	}
	m, err := conf.membership("other", "NERDCTL_CNI_DHCP_HOSTNAME="+longID[:12])
	if err != nil || len(m.names) != 1 {
		t.Errorf("another container's: names %v, %v", m.names, err)
	}
}

func TestWrongMembershipIsAnErrorThatNamesTheKey(t *testing.T) {
	annotation := func(kv string) map[string]any {
		return map[string]any{"runtimeConfig": json.RawMessage(`{"io.kubernetes.cri.pod-annotations":{` + kv + `}}`)}
	}
	for _, c := range []struct {
		args string
		keys map[string]any
		want []string
	}{
		{"TCLB_SERVICES=Web", nil, []string{"CNI_ARGS", "TCLB_SERVICES", `"Web"`}},
		{"TCLB_SERVICES=a b", nil, []string{"TCLB_SERVICES", `"a b"`}},
		{"TCLB_SERVICES=" + strings.Repeat("a", 64), nil, []string{"TCLB_SERVICES", "63"}},
		{"TCLB_WEIGHT=1001", nil, []string{"TCLB_WEIGHT=1001", "0 to 1000"}},
		{"TCLB_WEIGHT=-1", nil, []string{"TCLB_WEIGHT=-1"}},
		{"TCLB_WEIGHT=1.5", nil, []string{"TCLB_WEIGHT=1.5"}},
		{"TCLB_PORT=0", nil, []string{"TCLB_PORT=0", "1 to 65535"}},
		{"TCLB_PORT=65536", nil, []string{"TCLB_PORT=65536"}},
		{"TCLB_SERVICE=web", nil, []string{"TCLB_SERVICE:", "TCLB_SERVICES"}},
		{"", annotation(`"tclb.weight":"heavy"`), []string{"pod annotations", "tclb.weight=heavy"}},
		{"", annotation(`"tclb.services":"a_b"`), []string{"tclb.services"}},
		{"TCLB_SERVICES=web", annotation(`"tclb.sevices":"web"`), []string{"tclb.sevices"}},
		{"", map[string]any{"services": []string{"ok", "-no"}}, []string{`"services"`, `"-no"`}},
		{"", map[string]any{"services": "web"}, []string{`"services"`, "string"}},
		{"", map[string]any{"joinByName": "yes"}, []string{`"joinByName"`}},
		{"", map[string]any{"bpffs": "bpf"}, []string{`"bpffs"`, "absolute"}},
		{"", map[string]any{"runDir": 5}, []string{`"runDir"`, "number"}},
		{"", map[string]any{"prevResult": nil}, []string{"prevResult", `put it into "plugins" after`}},
		{"", map[string]any{"prevResult": json.RawMessage("null")}, []string{"prevResult"}},
	} {
		w := newWorld(t)
		r := w.request("ADD", "1.0.0", c.keys)
		r.Env["CNI_ARGS"] = c.args
		err := w.expectCode(r, types.ErrInvalidNetworkConfig)
		for _, part := range c.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s %v: %q does not say %s", c.args, c.keys, err, part)
			}
		}
		w.expectEmpty()
	}
}

func TestUndecodableInputHasItsOwnCode(t *testing.T) {
	for _, verb := range []string{"ADD", "CHECK", "DEL", "GC", "STATUS"} {
		for _, stdin := range []string{"", "{", "[]", `"x"`, "\xff"} {
			w := newWorld(t)
			r := w.request(verb, "1.1.0", nil)
			r.Stdin = []byte(stdin)
			w.expectCode(r, types.ErrDecodingFailure)
		}
	}
	for _, prev := range []string{`"x"`, `[]`, `{"cniVersion":"1.0.0","ips":[{"address":"no"}]}`, `{"cniVersion":"7.0.0"}`} {
		w := newWorld(t)
		w.expectCode(w.request("ADD", "1.0.0", map[string]any{"prevResult": json.RawMessage(prev)}), types.ErrDecodingFailure)
	}
}
