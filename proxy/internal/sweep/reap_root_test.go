package sweep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

var quiet = slog.New(slog.DiscardHandler)

// patience is how long an event may take on a busy machine before a test fails.
const patience = 10 * time.Second

// inNamespace runs f in a network namespace of its own, on a thread that ends with it.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root for a network namespace")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread must not be used again
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("make a namespace: %v", err)
			return
		}
		f()
	}()
	<-done
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// maps remember what was retired.
type maps struct {
	mu        sync.Mutex
	retired   []string
	endpoints map[datapath.EndpointKey]datapath.Endpoint
	broken    error
}

func (m *maps) RetireEndpoint(ifindex uint32, addrs []netip.Addr) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.retired = append(m.retired, fmt.Sprint(ifindex, addrs))
	return 1, m.broken
}

func (m *maps) Endpoints() (map[datapath.EndpointKey]datapath.Endpoint, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[datapath.EndpointKey]datapath.Endpoint)
	for k, v := range m.endpoints {
		out[k] = v
	}
	return out, nil
}

func (m *maps) DeleteEndpoint(k datapath.EndpointKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.endpoints, k)
	return nil
}

// node is a run directory, maps and a reaper in the namespace of the test.
type node struct {
	*Reaper
	t    *testing.T
	maps *maps
	prog *ebpf.Program
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir, err := registry.Open(filepath.Join(t.TempDir(), "run"))
	must(t, err)
	links := privateBPFFS(t)
	m := &maps{endpoints: make(map[datapath.EndpointKey]datapath.Endpoint)}
	r, err := NewReaper(m, dir, links, quiet)
	must(t, err)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	must(t, err)
	t.Cleanup(func() { _ = prog.Close() })
	return &node{Reaper: r, t: t, maps: m, prog: prog}
}

// privateBPFFS mounts a bpffs for one test and returns a directory in it: the kernel keeps files of its own
// beside that.
func privateBPFFS(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount("bpf", dir, "bpf", 0, "mode=0700"))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	links := filepath.Join(dir, "links")
	must(t, os.Mkdir(links, 0o700))
	return links
}

// container attaches a container by a veth of that name.
func (n *node) container(name, address string) registry.Endpoint {
	n.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	must(n.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}))
	dev, err := netlink.LinkByName(name)
	must(n.t, err)
	index := uint32(dev.Attrs().Index)
	e := registry.Endpoint{
		ID: registry.EndpointID(name, "eth0"), ContainerID: name, Ifname: "eth0", HostInterface: name,
		HostIfindex: index, BootID: n.boot, Addresses: []netip.Addr{netip.MustParseAddr(address)}, Created: time.Unix(1e9, 0),
	}
	for _, d := range []attach.Direction{attach.Ingress, attach.Egress} {
		direction := map[attach.Direction]string{attach.Ingress: "in", attach.Egress: "out"}[d]
		_, err := attach.Attach(n.prog, dev.Attrs().Index, d, n.pin(e.ID, direction))
		must(n.t, err)
	}
	n.maps.endpoints[datapath.EndpointKey{Address: e.Addresses[0], Ifindex: index}] = datapath.Endpoint{}
	must(n.t, n.dir.Put(e))
	return e
}

func (n *node) gone(e registry.Endpoint) {
	n.t.Helper()
	dev, err := netlink.LinkByIndex(int(e.HostIfindex))
	must(n.t, err)
	must(n.t, netlink.LinkDel(dev))
}

// want checks who is left: in the run directory, as pins, and in the endpoints map.
func (n *node) want(containers ...registry.Endpoint) {
	n.t.Helper()
	var ids, pins []string
	for _, e := range containers {
		ids = append(ids, e.ID)
		pins = append(pins, e.ID+"-in", e.ID+"-out")
	}
	slices.Sort(ids)
	slices.Sort(pins)
	var gotIDs, gotPins []string
	endpoints, errs := n.dir.List()
	must(n.t, errors.Join(errs...))
	for _, e := range endpoints {
		gotIDs = append(gotIDs, e.ID)
	}
	entries, err := os.ReadDir(n.links)
	must(n.t, err)
	for _, e := range entries {
		gotPins = append(gotPins, e.Name())
	}
	if diff := cmp.Diff(ids, gotIDs); diff != "" {
		n.t.Errorf("endpoint files (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(pins, gotPins); diff != "" {
		n.t.Errorf("pins (-want +got):\n%s", diff)
	}
	if got := len(n.maps.endpoints); got != len(containers) {
		n.t.Errorf("%d addresses in the endpoints map, want %d", got, len(containers))
	}
}

func TestContainerWithoutInterfaceIsReaped(t *testing.T) {
	inNamespace(t, func() {
		n := newNode(t)
		stays, goes := n.container("tclbh-a", "10.88.0.5"), n.container("tclbh-b", "10.88.0.6")
		n.Check()
		n.want(stays, goes)
		n.gone(goes)
		if n.Alive(goes) || !n.Alive(stays) {
			t.Error("Alive does not follow the interfaces")
		}
		n.Check()
		n.want(stays)
		if want := []string{fmt.Sprint(goes.HostIfindex, goes.Addresses)}; !slices.Equal(n.maps.retired, want) {
			t.Errorf("retired %q, want %q", n.maps.retired, want)
		}
	})
}

func TestContainerOfAnotherBootIsReapedAndItsInterfaceLeftAlone(t *testing.T) {
	inNamespace(t, func() {
		n := newNode(t)
		e := n.container("tclbh-a", "10.88.0.5")
		old := e
		old.ID, old.ContainerID, old.BootID = registry.EndpointID("old", "eth0"), "old", "another boot"
		must(t, n.dir.Put(old))
		n.Check()
		n.want(e)
		if len(n.maps.retired) > 0 {
			t.Errorf("retired %q by an interface number of another boot", n.maps.retired)
		}
	})
}

func TestAttachmentMadeAnewMeanwhileIsKept(t *testing.T) {
	inNamespace(t, func() {
		n := newNode(t)
		e := n.container("tclbh-a", "10.88.0.5")
		stale := e
		stale.HostIfindex += 100 // as the file was when the reaper read it
		n.reap(stale, "test")
		n.want(e)
	})
}

func TestLeftoversWithoutAFileGoWhenSeenTwice(t *testing.T) {
	inNamespace(t, func() {
		n := newNode(t)
		stays, lost := n.container("tclbh-a", "10.88.0.5"), n.container("tclbh-b", "10.88.0.6")
		must(t, n.dir.Delete(lost.ID)) // an ADD that has not come that far looks the same
		n.Check()
		if _, err := attach.Inspect(n.pin(lost.ID, "in")); err != nil {
			t.Errorf("removed at first sight: %v", err)
		}
		n.Check()
		n.want(stays)
	})
}

func TestWhatCannotBeRetiredIsTriedAgain(t *testing.T) {
	inNamespace(t, func() {
		n := newNode(t)
		e := n.container("tclbh-a", "10.88.0.5")
		n.gone(e)
		n.maps.broken = errors.New("injected")
		n.Check()
		if _, err := n.dir.Get(e.ID); err != nil {
			t.Errorf("the file went although the backends stay: %v", err)
		}
		n.maps.broken = nil
		n.Check()
		n.want()
	})
}

func TestVanishedInterfaceIsReapedAtOnce(t *testing.T) {
	inNamespace(t, func() {
		n := newNode(t)
		e := n.container("tclbh-a", "10.88.0.5")
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		// The reaper needs this thread's namespace, so the events come from another.
		ns, err := os.Open("/proc/thread-self/ns/net")
		must(t, err)
		defer ns.Close()
		go func() {
			defer cancel()
			runtime.LockOSThread()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				t.Errorf("enter namespace: %v", err)
				return
			}
			dev, err := netlink.LinkByIndex(int(e.HostIfindex))
			if err == nil {
				err = netlink.LinkDel(dev)
			}
			if err != nil {
				t.Errorf("delete interface: %v", err)
				return
			}
			for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
				if _, err := n.dir.Get(e.ID); errors.Is(err, registry.ErrNotFound) {
					return
				}
			}
			t.Error("still there; the next check would only come much later")
		}()
		if err := n.Run(ctx); err != nil {
			t.Error(err)
		}
		n.want()
	})
}
