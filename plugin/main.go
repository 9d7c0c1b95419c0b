// Command tclb-cni is the CNI plugin of tclb: chained behind the plugin that makes a container's
// veth, it puts the container's packets through tclb's BPF programs and registers the container.
//
// ADD attaches two programs to the host side of the veth, writes the container's addresses into a
// map and one file into the run directory; DEL takes all of it away. Neither talks to a daemon:
// what they work on is pinned, and the proxy finds the file whenever it runs.
package main

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// version is set by the linker.
var version = "0.0.0-dev"

// Chaining, and with it prevResult, came with spec version 0.3.0.
var specVersions = cniversion.VersionsStartingFrom("0.3.0")

func main() {
	switch os.Getenv("CNI_COMMAND") {
	case "":
		about()
		return
	case "DEL":
		// The namespace is nothing that DEL looks at, so skel need not judge it afterwards.
		_ = os.Setenv("CNI_NETNS_OVERRIDE", "1")
	}
	skel.PluginMainFuncs(newPlugin().verbs(), specVersions, "")
}

// about answers a run outside of the protocol, by a person or by Nomad's fingerprinting, which
// reads the version from the first line of both outputs together.
func about() {
	fmt.Printf("CNI tclb-cni plugin v%s\n", strings.TrimPrefix(version, "v"))
	fmt.Fprintf(os.Stderr, "CNI protocol versions supported: %s\n", strings.Join(specVersions.SupportedVersions(), ", "))
}

func newPlugin() *plugin {
	return &plugin{
		load:   func(o datapath.Options) (maps, error) { return orNil(datapath.Load(o)) },
		open:   func(bpffs string) (maps, error) { return orNil(datapath.Open(bpffs)) },
		links:  kernelLinks{},
		net:    kernelNetwork{},
		bootID: registry.BootID,
		now:    time.Now,
		out:    os.Stdout,
		log:    slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

// orNil keeps a nil *Datapath from becoming an interface that is not nil.
func orNil(d *datapath.Datapath, err error) (maps, error) {
	if err != nil {
		return nil, err
	}
	return d, nil
}

// kernelLinks is package attach.
type kernelLinks struct{}

func (kernelLinks) Attach(p *ebpf.Program, ifindex int, dir attach.Direction, pin string) (attach.Link, error) {
	return attach.Attach(p, ifindex, dir, pin)
}
func (kernelLinks) Detach(pin string, ifindex int) error    { return attach.Detach(pin, ifindex) }
func (kernelLinks) Inspect(pin string) (attach.Link, error) { return attach.Inspect(pin) }
