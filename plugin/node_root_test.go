package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// With this variable set the test binary is the plugin: tests run the real main in a process
// of its own, as runtimes do.
const actAsPlugin = "TCLB_TEST_ACT_AS_PLUGIN"

func TestMain(m *testing.M) {
	if os.Getenv(actAsPlugin) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// node is a network namespace with a bridge, a run directory and a bpffs: a host for containers.
// The plugin runs in that namespace.
type node struct {
	*testing.T
	space  ns.NetNS
	bpffs  string
	runDir string
	bridge netlink.Link
	links  int
}

// container is a namespace; interfaces are given to it.
type container struct {
	id    string
	space ns.NetNS
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ROOT") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// newNode makes a node with small maps. Its bpffs is left to the plugin to mount.
func newNode(t *testing.T) *node {
	t.Helper()
	needRoot(t)
	n := &node{T: t, bpffs: filepath.Join(t.TempDir(), "bpf"), runDir: filepath.Join(t.TempDir(), "run")}
	n.must(os.MkdirAll(n.runDir, 0o700))
	n.must(os.WriteFile(filepath.Join(n.runDir, "sizes.json"),
		[]byte(`{"maxServices":64,"maxBackends":64,"tableSlots":65536,"maxConntrack":1024}`), 0o600))
	t.Cleanup(func() {
		if err := unix.Unmount(n.bpffs, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	n.space = n.namespace()
	n.on(func() (err error) {
		if err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "tclbp-br0"}}); err != nil {
			return err
		}
		if n.bridge, err = netlinksafe.LinkByName("tclbp-br0"); err != nil {
			return err
		}
		return netlink.LinkSetUp(n.bridge)
	})
	return n
}

func (n *node) must(err error) {
	n.Helper()
	if err != nil {
		n.Fatal(err)
	}
}

func (n *node) namespace() ns.NetNS {
	n.Helper()
	space, err := ns.TempNetNS()
	n.must(err)
	n.Cleanup(func() { _ = space.Close() })
	return space
}

// on runs f in the node's namespace.
func (n *node) on(f func() error) {
	n.Helper()
	n.must(n.space.Do(func(ns.NetNS) error { return f() }))
}

func (n *node) container(id string) container {
	n.Helper()
	return container{id: id, space: n.namespace()}
}

// path leads other processes to the container's namespace.
func (c container) path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), c.space.Fd())
}

// veth joins the container to the node, with master a bridge or nil. It returns the host side.
func (n *node) veth(c container, ifname string, master netlink.Link, addrs ...string) netlink.Link {
	n.Helper()
	n.links++
	name := fmt.Sprintf("tclbp-v%d", n.links)
	var host netlink.Link
	n.on(func() error {
		err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: ifname, PeerNamespace: netlink.NsFd(int(c.space.Fd())),
		})
		if err != nil {
			return err
		}
		if host, err = netlinksafe.LinkByName(name); err != nil {
			return err
		}
		if master != nil {
			err = netlink.LinkSetMaster(host, master)
		}
		return errors.Join(err, netlink.LinkSetUp(host))
	})
	n.must(c.space.Do(func(ns.NetNS) error { return configure(ifname, addrs) }))
	return host
}

func configure(ifname string, addrs []string) error {
	l, err := netlinksafe.LinkByName(ifname)
	if err != nil {
		return err
	}
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

// call runs the plugin for an interface of c and returns its output and error object.
func (n *node) call(verb string, c container, ifname string, keys map[string]any) (string, *types.Error) {
	n.Helper()
	conf := map[string]any{
		"cniVersion": "1.1.0", "name": "net", "type": "tclb-cni", "bpffs": n.bpffs, "runDir": n.runDir,
		"prevResult": json.RawMessage(`{"cniVersion":"1.1.0","interfaces":[{"name":"` + ifname + `","sandbox":"/x"}],"ips":[]}`),
	}
	for k, v := range keys {
		conf[k] = v
	}
	stdin, err := json.Marshal(conf)
	n.must(err)
	return n.exec(stdin, "CNI_COMMAND="+verb, "CNI_CONTAINERID="+c.id, "CNI_IFNAME="+ifname, "CNI_NETNS="+c.path(), "CNI_PATH=/opt/cni/bin")
}

func (n *node) exec(stdin []byte, env ...string) (string, *types.Error) {
	n.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append([]string{actAsPlugin + "=1"}, env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	// A process is forked from the thread that starts it, and so starts in its namespace.
	runErr := n.space.Do(func(ns.NetNS) error { return cmd.Run() })
	if runErr == nil {
		return stdout.String(), nil
	}
	e := &types.Error{}
	if err := json.Unmarshal(stdout.Bytes(), e); err != nil {
		n.Fatalf("%v: %v: printed %q and %q", env, runErr, &stdout, &stderr)
	}
	return "", e
}

func (n *node) mustCall(verb string, c container, ifname string) {
	n.Helper()
	if _, err := n.call(verb, c, ifname, nil); err != nil {
		n.Fatalf("%s %s %s: %v", verb, c.id, ifname, err)
	}
}

func (n *node) expectCode(code uint, verb string, c container, ifname string) *types.Error {
	n.Helper()
	_, err := n.call(verb, c, ifname, nil)
	if err == nil || err.Code != code {
		n.Fatalf("%s %s %s: %v, want code %d", verb, c.id, ifname, err, code)
	}
	return err
}

func (n *node) datapath() *datapath.Datapath {
	n.Helper()
	dp, err := datapath.Open(n.bpffs)
	n.must(err)
	n.Cleanup(func() { _ = dp.Close() })
	return dp
}

func (n *node) registered(c container, ifname string) registry.Endpoint {
	n.Helper()
	reg, err := registry.Open(n.runDir)
	n.must(err)
	e, err := reg.Get(registry.EndpointID(c.id, ifname))
	n.must(err)
	return e
}

// expectNothing checks that no attachment is left: no pin, no map entry, no file.
func (n *node) expectNothing() {
	n.Helper()
	for _, dir := range []string{datapath.LinkDir(n.bpffs), filepath.Join(n.runDir, "endpoints"), filepath.Join(n.runDir, "locks")} {
		left, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			n.Error(err)
		}
		for _, f := range left {
			n.Errorf("left over: %s", filepath.Join(dir, f.Name()))
		}
	}
	dp, err := datapath.Open(n.bpffs)
	if errors.Is(err, datapath.ErrNotLoaded) {
		return
	}
	n.must(err)
	defer func() { _ = dp.Close() }()
	left, err := dp.Endpoints()
	if err != nil || len(left) != 0 {
		n.Errorf("left in the endpoint map: %v, %v", left, err)
	}
}

func (n *node) endpoint(addr string, host netlink.Link) (datapath.Endpoint, bool) {
	n.Helper()
	all, err := n.datapath().Endpoints()
	n.must(err)
	e, ok := all[datapath.EndpointKey{Address: netip.MustParseAddr(addr), Ifindex: uint32(host.Attrs().Index)}]
	return e, ok
}

func mac(m [6]byte) string { return net.HardwareAddr(m[:]).String() }
