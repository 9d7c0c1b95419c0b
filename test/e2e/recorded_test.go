package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
)

// recordings are calls as runtimes made them; the plugin's own tests read them too.
const recordings = "../../plugin/testdata/fixtures"

// call is one recorded call of a plugin.
type call struct {
	Env   map[string]string
	Stdin map[string]any
}

func recorded(t *testing.T, name string) call {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(recordings, name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var c call
	if err := json.Unmarshal(data, &c); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return c
}

// Every runtime's calls in the order in which it makes them, on a veth as its network made it.
func TestRecordedCallsInTheirOrder(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, order := range [][]string{
		{"nerdctl-del-before-add", "nerdctl-add", "nerdctl-del-stop-1", "nerdctl-del-stop-2"},
		{"nerdctl-add-compose"},
		{"podman-version", "podman-add-cniargs", "podman-del-cniargs"},
		{"podman-add-failed", "podman-del-after-failed-add"},
		{"podman-add-multi-eth0", "podman-add-multi-eth1"},
		{"podman-add", "podman-add-netconnect"},
		{"podman-add-031-dual"},
		{"podman-add-040-dual"},
		{"podman-add-pod"},
		{"podman-add-kube"},
		{"containerd-ctr-add-fg", "containerd-ctr-del-fg"},
		{"containerd-ctr-add"}, // its DEL never comes
		{"containerd-cri-add", "containerd-cri-del-1", "containerd-cri-del-2"},
		{"crio-version", "crio-status", "crio-gc", "crio-add", "crio-check", "crio-del"},
		{"nomad-add", "nomad-check-agent-restart", "nomad-del"},
		{"libcni110-version", "libcni110-status", "libcni110-add", "libcni110-check"},
		{"shape-ptp-add"},
		{"shape-bridge-bandwidth-firewall-add"},
	} {
		t.Run(order[0], func(t *testing.T) { n.replay(t, order) })
	}
}

func (n *node) replay(t *testing.T, order []string) {
	spaces := map[string]*container{} // by container id
	for _, name := range order {
		c := recorded(t, name)
		if c.Env["CNI_COMMAND"] == "ADD" {
			id := c.Env["CNI_CONTAINERID"]
			if spaces[id] == nil {
				spaces[id] = n.newContainer(t, fmt.Sprintf("recorded-%.30s", name))
			}
			spaces[id].vethOf(t, c)
		}
		out, err := n.replayCall(c, spaces)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		switch c.Env["CNI_COMMAND"] {
		case "ADD":
			expectEcho(t, name, out, c.Stdin["prevResult"])
			if left := n.attachments(t); len(left) == 0 {
				t.Errorf("%s attached nothing", name)
			}
		case "VERSION":
			if !strings.Contains(out, "1.1.0") {
				t.Errorf("%s printed %s", name, out)
			}
		default:
			if out != "" {
				t.Errorf("%s printed %s", name, out)
			}
		}
	}
	if recorded(t, order[len(order)-1]).Env["CNI_COMMAND"] != "DEL" {
		n.removeAll(t, order, spaces)
	}
	// The runtime's own plugin would take the veth away.
	for _, c := range spaces {
		c.vanish()
	}
	n.expectNoRecord(t)
}

// removeAll sends the least DEL that a runtime may send for each recorded ADD.
func (n *node) removeAll(t *testing.T, order []string, spaces map[string]*container) {
	t.Helper()
	for _, name := range order {
		c := recorded(t, name)
		if c.Env["CNI_COMMAND"] != "ADD" {
			continue
		}
		c.Env["CNI_COMMAND"], c.Env["CNI_NETNS"], c.Env["CNI_ARGS"] = "DEL", "", ""
		delete(c.Stdin, "prevResult")
		if _, err := n.replayCall(c, spaces); err != nil {
			t.Errorf("DEL after %s: %v", name, err)
		}
	}
}

// expectNoRecord is expectNoAttachment but for the veths, which are none of ours.
func (n *node) expectNoRecord(t *testing.T) {
	t.Helper()
	for _, left := range n.attachments(t) {
		if !strings.HasPrefix(left, "link ") {
			t.Errorf("left over: %s", left)
		}
	}
}

// vethOf makes the veth that the call's prevResult speaks of.
func (c *container) vethOf(t *testing.T, recorded call) {
	t.Helper()
	var result struct {
		Interfaces []struct{ Name, MAC, Sandbox string }
		IPs        []struct {
			Address   string
			Interface *int
		}
	}
	data, err := json.Marshal(recorded.Stdin["prevResult"])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &result); err != nil {
		t.Fatal(err)
	}
	ifname := recorded.Env["CNI_IFNAME"]
	var host, bridge string
	var mac net.HardwareAddr
	for _, i := range result.Interfaces {
		switch {
		case i.Sandbox != "":
			mac, _ = net.ParseMAC(i.MAC)
		case strings.HasPrefix(i.Name, "veth"):
			host = i.Name
		case !strings.HasPrefix(i.Name, "bwp"):
			bridge = i.Name
		}
	}
	if host == "" {
		t.Fatalf("no host interface in %s", data)
	}
	_ = c.try(func() error { // a second ADD of one interface finds the veth of before
		l, err := netlinksafe.LinkByName(ifname)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	c.node.do(func() error {
		veth := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: host}, PeerName: ifname, PeerHardwareAddr: mac,
			PeerNamespace: netlink.NsFd(int(c.space.Fd())),
		}
		if err := netlink.LinkAdd(veth); err != nil || bridge == "" {
			return err
		}
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}
		if err := netlink.LinkAdd(br); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return netlink.LinkSetMaster(veth, br)
	})
	c.node.configure(host)
	var addrs []string
	for _, ip := range result.IPs {
		addrs = append(addrs, ip.Address)
	}
	c.configure(ifname, addrs...)
}

// replayCall runs the real binary with a recorded call. Only places are changed: the namespace's path,
// bpffs and run directory.
func (n *node) replayCall(c call, spaces map[string]*container) (string, error) {
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	for k, v := range c.Env {
		if in := spaces[c.Env["CNI_CONTAINERID"]]; k == "CNI_NETNS" && in != nil && v != "" {
			v = in.path()
		}
		env = append(env, k+"="+v)
	}
	if c.Env["CNI_COMMAND"] != "VERSION" {
		c.Stdin["bpffs"], c.Stdin["runDir"] = n.bpffs, n.runDir
	}
	stdin, err := json.Marshal(c.Stdin)
	if err != nil {
		return "", err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(filepath.Join(binDir, "tclb-cni"))
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, bytes.NewReader(stdin), &stdout, &stderr
	if err := n.try(cmd.Run); err != nil {
		return "", errors.Join(err, errors.New(stdout.String()+stderr.String()))
	}
	return stdout.String(), nil
}

// expectEcho checks that ADD passed the result on.
func expectEcho(t *testing.T, name, out string, want any) {
	t.Helper()
	var got any
	if err := json.Unmarshal([]byte(out), &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s printed %s, want %v (%v)", name, out, want, err)
	}
}
