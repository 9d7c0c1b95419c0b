package runtimes

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
)

// plain is the sample conflist without our plugin: a network as it was before tclb.
func plain(t *testing.T, conflist string) string {
	t.Helper()
	var c map[string]any
	if err := json.Unmarshal([]byte(conflist), &c); err != nil {
		t.Fatal(err)
	}
	var kept []any
	for _, p := range c["plugins"].([]any) {
		if p.(map[string]any)["type"] != "tclb-cni" {
			kept = append(kept, p)
		}
	}
	c["plugins"] = kept
	out, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// unattached returns what tclb status says about containers that were there first.
func (m *machine) unattached() (rows []struct{ ContainerID, Name, Network, Ifname string }, problems string) {
	m.Helper()
	var status struct {
		Unattached []struct{ ContainerID, Name, Network, Ifname string }
		Problems   []string
	}
	m.must(json.Unmarshal([]byte(m.run("tclb", "status", "-o", "json")), &status))
	return status.Unattached, strings.Join(status.Problems, "\n")
}

// TestContainersThatWereThereFirst starts containers, then chains tclb-cni to their network. They
// are named until they are restarted, and meanwhile work through the host's stack.
func TestContainersThatWereThereFirst(t *testing.T) {
	m := newMachine(t)
	m.needPodman()
	m.write("/etc/cni/net.d/10-tclb.conflist", plain(t, m.sample("podman.conflist")))
	id := m.server("old", "--network-alias", "web")
	m.client("oldclient")
	m.startProxy()
	if rows, problems := m.unattached(); len(rows) > 0 {
		t.Errorf("without a chained network: %v, %s", rows, problems)
	}

	m.write("/etc/cni/net.d/10-tclb.conflist", m.sample("podman.conflist"))
	rows, problems := m.unattached()
	if len(rows) != 2 {
		t.Fatalf("unattached: %v", rows)
	}
	for _, r := range rows {
		if r.Network != network || r.Ifname != "eth0" || r.Name != "oldclient" && (r.Name != "old" || r.ContainerID != id) {
			t.Errorf("unattached: %+v", r)
		}
	}
	if !strings.Contains(problems, "restart ") || !strings.Contains(problems, "old (tclb-podman)") {
		t.Errorf("problems: %s", problems)
	}

	// By address it is a backend like any other, for attached clients and for those of before.
	address := m.podman("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "old")
	m.write("/etc/tclb/services.d/web.yaml", fmt.Sprintf(
		"services:\n- {name: web, vips: [%s], ports: [{port: 80, targetPort: 8080}], backends: [{address: %s}]}\n", vip, address))
	m.server("new", "--network-alias", "web")
	m.client("newclient")
	m.waitBackends("web", 2)
	m.expectAnswers("newclient", vip, "old", "new")
	m.expectAnswers("oldclient", vip, "old", "new")
	m.eventually("the log names the container", func() error {
		text, err := os.ReadFile(m.log)
		if err == nil && !strings.Contains(string(text), "container was started before its network was chained") {
			err = fmt.Errorf("it says %s", text)
		}
		return err
	})

	m.podman("restart", "--time", "0", "old", "oldclient")
	m.write("/etc/tclb/services.d/web.yaml", service("web", vip))
	m.waitBackends("web", 2)
	if rows, _ := m.unattached(); len(rows) > 0 {
		t.Errorf("after the restart: %v", rows)
	}
	m.expectAnswers("oldclient", vip, "old", "new")
	m.removeContainers("web")
}

// TestNotesOnNetworks: what keeps a container from a VIP is said where one looks.
func TestNotesOnNetworks(t *testing.T) {
	m := newMachine(t)
	m.needPodman()
	m.write("/etc/cni/net.d/20-island.conflist", strings.NewReplacer(
		network, "island", "cni-tclb0", "cni-island", "10.89.0.0/24", "10.89.78.0/24", `"routes": [{"dst": "0.0.0.0/0"}]`, `"routes": []`).
		Replace(m.sample("podman.conflist")))
	m.startProxy()
	m.client("island", "--network", "island")
	m.client("client")
	m.write("/etc/tclb/services.d/inside.yaml", service("inside", "10.89.0.200"))
	m.eventually("a note on the network without a default route", func() error {
		for _, e := range list[endpoint](m, "endpoint", "list") {
			if e.Container == "island" && strings.Contains(strings.Join(e.Notes, " "), "no default route") {
				return nil
			}
		}
		return fmt.Errorf("%+v", list[endpoint](m, "endpoint", "list"))
	})
	m.eventually("both in the log", func() error {
		text, err := os.ReadFile(m.log)
		for _, want := range []string{"network island gives no default route", "10.89.0.200"} {
			if err == nil && !strings.Contains(string(text), want) {
				err = fmt.Errorf("no %q", want)
			}
		}
		return err
	})
	m.removeContainers("web")
}
