package runtimes

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// conflist returns one with a bridge and, if runDir is not "", our plugin.
func conflist(name, runDir string) string {
	ours := ""
	if runDir != "" {
		ours = fmt.Sprintf(`,{"type":"tclb-cni","runDir":%q}`, runDir)
	}
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"bridge"}%s]}`, name, ours)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestContainersOfBeforeAreFound keeps a cache of libcni with containers of every kind, in a network
// namespace where the veths of some are there.
func TestContainersOfBeforeAreFound(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dir, conf, run := t.TempDir(), t.TempDir(), "/run/tclb-of-this-test"
	write(t, filepath.Join(conf, "10-later.conflist"), conflist("later", run+"/"))
	write(t, filepath.Join(conf, "default", "nerdctl-team.conflist"), conflist("team", run))
	write(t, filepath.Join(conf, "20-foreign.conflist"), conflist("foreign", "/run/of-another-node"))
	write(t, filepath.Join(conf, "30-plain.conflist"), conflist("plain", ""))
	write(t, filepath.Join(conf, "40-broken.conflist"), "{")
	cached := func(network, id, veth, config string) {
		write(t, filepath.Join(dir, "results", network+"-"+id+"-eth0"), fmt.Sprintf(`{"kind":"cniCacheV1","containerId":%q,"config":%q,"ifName":"eth0",
"networkName":%q,"cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAME","n-%s"]],"result":{"cniVersion":"1.0.0",
"interfaces":[{"name":"tclbu-br"},{"name":%q},{"name":"eth0","sandbox":"/run/netns/x"}]}}`,
			id, base64.StdEncoding.EncodeToString([]byte(config)), network, id, veth))
	}
	cached("later", "before", "tclbu1", conflist("later", ""))        // its network was chained afterwards
	cached("later", "gone", "tclbu9", conflist("later", ""))          // ended without a DEL
	cached("later", "joined", "tclbu2", conflist("later", run))       // attached
	cached("elsewhere", "lost", "tclbu3", conflist("elsewhere", run)) // conflist in a directory that nobody named
	cached("team", "nerd", "tclbu4", conflist("team", ""))
	cached("foreign", "other", "tclbu1", conflist("foreign", "/run/of-another-node"))
	cached("plain", "plain", "tclbu1", conflist("plain", ""))
	write(t, filepath.Join(dir, "results", "broken"), "{")

	space, err := ns.TempNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer space.Close()
	err = space.Do(func(ns.NetNS) error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "tclbu-br"}}); err != nil {
			return err
		}
		for i := 1; i <= 4; i++ {
			name := fmt.Sprintf("tclbu%d", i)
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "p-" + name}); err != nil {
				return err
			}
		}
		f := NewFinder([]string{conf, filepath.Join(conf, "missing")}, dir, run)
		lookups := 0
		attached := func() map[string]bool {
			lookups++
			// An ADD that is not finished when looked at first.
			return map[string]bool{registry.EndpointID("joined", "eth0"): lookups > 1}
		}
		got := f.Find(attached)
		want := []view.Unattached{
			{ContainerID: "lost", Name: "n-lost", Network: "elsewhere", Ifname: "eth0"},
			{ContainerID: "before", Name: "n-before", Network: "later", Ifname: "eth0"},
			{ContainerID: "nerd", Name: "n-nerd", Network: "team", Ifname: "eth0"},
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		if got := f.Find(attached); len(got) != 3 || lookups != 3 {
			t.Errorf("%d found again in %d looks, want one look for what is known", len(got), lookups)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := NewFinder(nil, t.TempDir(), run).Find(func() map[string]bool { return nil }); len(got) != 0 {
		t.Errorf("without a cache: %v", got)
	}
}
