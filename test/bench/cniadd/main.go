// Command cniadd measures what tclb-cni adds to the start of a container: the time of ADD over a chain
// of bridge and host-local with it and without it, turn by turn.
//
// It runs in the network namespace that is to be the node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"
)

func main() {
	ours := flag.String("plugin-dir", "bin", "directory of tclb-cni")
	upstream := flag.String("cni-dir", "/usr/lib/cni", "directory of bridge and host-local")
	n := flag.Int("n", 50, "containers of each kind")
	flag.Parse()
	if err := run(os.Stdout, []string{*ours, *upstream}, *n); err != nil {
		fmt.Fprintln(os.Stderr, "cniadd:", err)
		os.Exit(1)
	}
}

// chain is one of the two ways to start a container, and how long each start took.
type chain struct {
	name string
	list *libcni.NetworkConfigList
	add  []time.Duration
	del  []time.Duration
}

func run(w io.Writer, pluginDirs []string, n int) (err error) {
	dir, err := os.MkdirTemp("", "tclb-cniadd")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	bpffs := filepath.Join(dir, "bpf")
	if err := os.Mkdir(bpffs, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("bpf", bpffs, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(bpffs, unix.MNT_DETACH)) }()

	runtime := libcni.NewCNIConfigWithCacheDir(pluginDirs, filepath.Join(dir, "cache"), nil)
	without, err := newChain("bridge", dir, 1, "")
	if err != nil {
		return err
	}
	with, err := newChain("bridge, tclb-cni", dir, 2, fmt.Sprintf(`, {"type": "tclb-cni", "bpffs": %q, "runDir": %q}`, bpffs, filepath.Join(dir, "run")))
	if err != nil {
		return err
	}
	// The very first ADD after a boot makes maps and programs; it is shown apart.
	first := &chain{name: "bridge, tclb-cni: the first after a boot", list: with.list}
	if err := first.container(runtime, 0); err != nil {
		return err
	}
	for i := range n {
		for _, c := range []*chain{without, with} {
			if err := c.container(runtime, i+1); err != nil {
				return err
			}
		}
	}
	return report(w, without, with, first)
}

func newChain(name, dir string, subnet int, more string) (*chain, error) {
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{
		"cniVersion": "1.0.0", "name": "tclb-bench-%d",
		"plugins": [
			{"type": "bridge", "bridge": "tclbbench%d", "isGateway": true, "hairpinMode": true,
			 "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.89.%d.0/24"}]]}}
			%s
		]
	}`, subnet, subnet, filepath.Join(dir, "ipam"), 80+subnet, more))
	return &chain{name: name, list: list}, err
}

// container starts and stops one container and notes the times.
func (c *chain) container(runtime *libcni.CNIConfig, i int) (err error) {
	const space = "tb-cniadd"
	if err := ip("netns", "add", space); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ip("netns", "delete", space)) }()
	rt := &libcni.RuntimeConf{ContainerID: fmt.Sprintf("bench-%s-%d", c.list.Name, i), NetNS: "/run/netns/" + space, IfName: "eth0"}
	began := time.Now()
	if _, err := runtime.AddNetworkList(context.Background(), c.list, rt); err != nil {
		return fmt.Errorf("ADD over %s: %w", c.name, err)
	}
	added := time.Now()
	if err := runtime.DelNetworkList(context.Background(), c.list, rt); err != nil {
		return fmt.Errorf("DEL over %s: %w", c.name, err)
	}
	c.add = append(c.add, added.Sub(began))
	c.del = append(c.del, time.Since(added))
	return nil
}

func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %v: %w: %s", args, err, out)
	}
	return nil
}

func report(w io.Writer, without *chain, others ...*chain) error {
	fmt.Fprintf(w, "\n## CNI, ms\n\n| chain | ADD p50 | p90 | DEL p50 | containers |\n|---|---|---|---|---|\n")
	for _, c := range append([]*chain{without}, others...) {
		fmt.Fprintf(w, "| %s | %.1f | %.1f | %.1f | %d |\n", c.name, ms(c.add, 0.5), ms(c.add, 0.9), ms(c.del, 0.5), len(c.add))
	}
	_, err := fmt.Fprintf(w, "\ntclb-cni adds %.1f ms to an ADD at p50.\n", ms(others[0].add, 0.5)-ms(without.add, 0.5))
	return err
}

// ms returns a quantile in milliseconds.
func ms(took []time.Duration, q float64) float64 {
	sorted := slices.Sorted(slices.Values(took))
	return float64(sorted[int(q*float64(len(sorted)-1))].Microseconds()) / 1000
}
