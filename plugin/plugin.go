package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// Error codes of our own, above the spec's.
const (
	codeInterface uint = 100 + iota // the container's interface is none that can be attached to
	codePeer                        // the host side of the veth is not in this namespace
	codeDatapath                    // maps or programs cannot be loaded or opened
	codeAttach                      // a program cannot be attached
	codeMaps                        // a map cannot be written
	codeDrift                       // CHECK: something that ADD made is gone
)

// plugin is the CNI verbs and what they need of the world.
type plugin struct {
	load   func(datapath.Options) (maps, error) // makes the datapath if it is not there
	open   func(bpffs string) (maps, error)     // never makes anything
	links  links
	net    network
	bootID func() (string, error)
	now    func() time.Time
	out    io.Writer    // the result, and nothing else
	log    *slog.Logger // to standard error, which runtimes show or keep
}

// maps is what the verbs use of a datapath.Datapath.
type maps interface {
	Program(name string) *ebpf.Program
	PutEndpoint(datapath.EndpointKey, datapath.Endpoint) error
	DeleteEndpoint(datapath.EndpointKey) error
	Endpoints() (map[datapath.EndpointKey]datapath.Endpoint, error)
	RetireEndpoint(ifindex uint32, addrs []netip.Addr) (int, error)
	Close() error
}

// links is what the verbs use of package attach.
type links interface {
	Attach(prog *ebpf.Program, ifindex int, dir attach.Direction, pin string) (attach.Link, error)
	Detach(pin string, ifindex int) error
	Inspect(pin string) (attach.Link, error)
}

// network finds the host side of a container's interface.
type network interface {
	Resolve(netns, ifname string) (veth, error)
}

// veth is a container's interface, seen from both ends.
type veth struct {
	MAC          net.HardwareAddr // inside
	Addresses    []netip.Addr     // inside; without link-local ones
	DefaultRoute bool             // a default route leads through it
	NetnsCookie  uint64           // 0 if the kernel has none

	HostName    string
	HostIfindex uint32
	Master      string           // "" if the host side is a port of nothing
	UpIfindex   uint32           // bridge that the host side is a port of; 0 = routed
	UpMAC       net.HardwareAddr // where frames for the host's stack go
}

func (p *plugin) verbs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: p.add, Del: p.del, Check: p.check, GC: p.gc, Status: p.status}
}

// The pins of an attachment.
func inPin(bpffs, id string) string  { return filepath.Join(datapath.LinkDir(bpffs), id+"-in") }
func outPin(bpffs, id string) string { return filepath.Join(datapath.LinkDir(bpffs), id+"-out") }

// failure is an error that a runtime shows to its user: what failed, and what to do.
func failure(code uint, err error, format string, args ...any) error {
	e := types.NewError(code, fmt.Sprintf(format, args...), "")
	if err != nil {
		e.Details = err.Error()
	}
	return e
}

// datapathFailure gives an error of loading or opening the datapath its code.
func datapathFailure(err error) error {
	var layout *datapath.LayoutError
	if errors.As(err, &layout) {
		return failure(types.ErrTryAgainLater, nil, "%s", err)
	}
	var rejected *ebpf.VerifierError
	if errors.As(err, &rejected) {
		return failure(codeDatapath, err, "this kernel's verifier refuses tclb's programs: "+
			"please report it with the details and the output of uname -r")
	}
	return failure(codeDatapath, err, "tclb's BPF maps and programs cannot be used: "+
		"the runtime needs root or CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and a bpffs at the conflist's \"bpffs\"")
}
