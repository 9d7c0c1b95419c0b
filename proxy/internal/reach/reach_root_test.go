package reach

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/overlay"
	"github.com/tc-loadbalancer/tclb/proxy/internal/host"
)

const (
	tunnelDevice = "tclbv"
	underlay     = "up"
	vni          = 7654
)

var hairpin = [2]netip.Addr{netip.MustParseAddr("169.254.77.1"), netip.MustParseAddr("fd00:7c1b::1")}

// underlays are the addresses of the two nodes by family.
var underlays = [2][2]netip.Addr{
	{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")},
	{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")},
}

// mtus is what fits through the tunnel, by the family of its outside.
var mtus = [2]int{1450, 1430}

// nodeNS is a node: a network namespace with the datapath, its programs attached.
type nodeNS struct {
	t   *testing.T
	d   *datapath.Datapath
	ns  netns.NsHandle
	mac [6]byte
}

func newNodeNS(t *testing.T) *nodeNS {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dir := filepath.Join(t.TempDir(), "bpf")
	d, err := datapath.Load(datapath.Options{
		BPFFS: dir, Sizes: datapath.Sizes{MaxServices: 16, MaxBackends: 16, TableSlots: 4096, MaxConntrack: 256},
		Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	n := &nodeNS{t: t, d: d}
	must(t, <-onThread(func() error {
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.ns, err = netns.Get()
		}
		return err
	}))
	t.Cleanup(func() { must(t, n.ns.Close()) })
	return n
}

// onThread runs f on a thread that is not used again.
func onThread(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		done <- f()
	}()
	return done
}

// start runs f in the namespace.
func (n *nodeNS) start(f func() error) <-chan error {
	return onThread(func() error {
		if err := netns.Set(n.ns); err != nil {
			return err
		}
		return f()
	})
}

// do runs f in the namespace and waits for its end.
func (n *nodeNS) do(f func() error) {
	n.t.Helper()
	must(n.t, <-n.start(f))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pair joins two nodes by a wire, and makes each known to the other under an id.
func pair(t *testing.T, family int) (a, b *nodeNS) {
	t.Helper()
	a, b = newNodeNS(t), newNodeNS(t)
	a.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = underlay
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: underlay, PeerNamespace: netlink.NsFd(b.ns)})
	})
	for i, n := range []*nodeNS{a, b} {
		n.do(func() error { return n.build(underlays[family][i], family) })
	}
	must(t, a.d.PutNode(2, datapath.Node{VTEP: underlays[family][1], MAC: b.mac, MTU: uint32(mtus[family])}))
	must(t, b.d.PutNode(1, datapath.Node{VTEP: underlays[family][0], MAC: a.mac, MTU: uint32(mtus[family])}))
	return a, b
}

// build makes the devices of a node and attaches the programs, as the proxy does.
func (n *nodeNS) build(address netip.Addr, family int) error {
	up, err := netlink.LinkByName(underlay)
	if err != nil {
		return err
	}
	err = netlink.AddrAdd(up, &netlink.Addr{
		IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(address.BitLen()-8, address.BitLen())}, Flags: unix.IFA_F_NODAD,
	})
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = tunnelDevice, 65000
	tunnel := &netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: 4789}
	if err := netlink.LinkAdd(tunnel); err != nil {
		return err
	}
	for _, l := range []netlink.Link{up, tunnel} {
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	made, err := netlink.LinkByName(tunnelDevice)
	if err != nil {
		return err
	}
	copy(n.mac[:], made.Attrs().HardwareAddr)
	links := datapath.LinkDir(filepath.Dir(n.d.Dir()))
	if _, err := attach.Attach(n.d.Program(datapath.FromOverlay), made.Attrs().Index, attach.Ingress, filepath.Join(links, "overlay")); err != nil {
		return err
	}
	var source [2]netip.Addr
	source[family] = address
	h := host.New(func(ifindex int) error {
		_, err := attach.Attach(n.d.Program(datapath.FromHost), ifindex, attach.Egress, filepath.Join(links, "host"))
		return err
	}, slog.New(slog.DiscardHandler))
	st, err := h.Sync([]netip.Prefix{netip.PrefixFrom(hairpin[family], hairpin[family].BitLen())}, source)
	if err != nil {
		return err
	}
	return n.d.PutSettings(datapath.Settings{
		HostIfindex: st.Ifindex, HostMAC: st.MAC, Hairpin4: hairpin[0], Hairpin6: hairpin[1],
		Tunnel: datapath.TunnelSettings{Ifindex: uint32(made.Attrs().Index), VNI: vni, VTEP: source, SNAT: source},
	})
}

// follow runs a prober of the other node in the namespace until the test ends, and says what it logged.
func (n *nodeNS) follow(family int, disable func() error) (*Prober, func() string) {
	at := func() [2]netip.Addr { return hairpin }
	var log lockedBuffer
	p := New(Options{Transport: NewSockets(host.Device, at), DisableOffloads: disable, Log: slog.New(slog.NewTextHandler(&log, nil))})
	ctx, cancel := context.WithCancel(n.t.Context())
	done := n.start(func() error { return p.Run(ctx) })
	n.t.Cleanup(func() { cancel(); must(n.t, <-done) })
	p.SetTargets([]Target{{ID: 2, Name: "node-b", Address: underlays[family][1], MTU: mtus[family]}})
	return p, log.String
}

// lockedBuffer is a buffer that a logger and a test share.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// eventually waits until a node's state is as it should be.
func eventually(t *testing.T, p *Prober, log func() string, what string, is func(State) bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(p.States()["node-b"]); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the node is not %s: %+v\n%s", what, p.States()["node-b"], log())
		}
	}
}

// soon lets the next large probe be sent at once.
func (p *Prober) soon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.nodes {
		n.large.due = time.Now()
	}
	p.kick()
}

func TestProbesThroughTheTunnel(t *testing.T) {
	for family, name := range []string{"IPv4", "IPv6"} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t, family)
			p, log := a.follow(family, nil)
			eventually(t, p, log, "known", func(s State) bool { return s.Known && s.Reachable && s.Latency > 0 })
			eventually(t, p, log, "tested", func(s State) bool { return s.Offload == OffloadGood })
			if pong, err := p.Ping(t.Context(), "node-b"); err != nil || !pong.Answered || pong.Took <= 0 {
				t.Errorf("ping: %+v, %v", pong, err)
			}

			b.do(func() error { return setMTU(underlay, 1280) })
			if family == 1 { // an outer packet of IPv4 comes in fragments, one of IPv6 not at all
				a.do(func() error { return setMTU(underlay, 1280) })
				for range largeFall {
					p.soon()
					time.Sleep(minTimeout + 4*grain)
				}
				eventually(t, p, log, "a black hole", func(s State) bool { return s.BlackHole && s.Reachable })
				a.do(func() error { return setMTU(underlay, 1500) })
				b.do(func() error { return setMTU(underlay, 1500) })
				p.soon()
				eventually(t, p, log, "well again", func(s State) bool { return !s.BlackHole })
			}

			must(t, b.d.DeleteNode(1))
			eventually(t, p, log, "unreachable", func(s State) bool { return !s.Reachable && s.Known })
			must(t, b.d.PutNode(1, datapath.Node{VTEP: underlays[family][0], MAC: a.mac, MTU: uint32(mtus[family])}))
			eventually(t, p, log, "reachable again", func(s State) bool { return s.Reachable })
		})
	}
}

func setMTU(device string, mtu int) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	return netlink.LinkSetMTU(l, mtu)
}

// A device that loses what it has to segment costs the tunnel its offloads, and nothing else.
func TestBrokenOffloadsAreFoundAndDisabled(t *testing.T) {
	a, _ := pair(t, 0)
	a.do(func() error { return dropSegmented(t) })
	p, log := a.follow(0, func() error {
		device, err := net.InterfaceByName(tunnelDevice) // called by Run, which is in the namespace
		if err != nil {
			return err
		}
		return overlay.DisableOffloads(uint32(device.Index))
	})
	eventually(t, p, log, "tested", func(s State) bool { return s.Offload != OffloadUntested })
	if s := p.States()["node-b"]; s.Offload != OffloadGood || strings.Count(log(), "offloads are disabled") != 1 {
		t.Errorf("%+v\n%s", s, log())
	}
}

// dropSegmented lets the underlay lose all packets that are left to it to be segmented.
func dropSegmented(t *testing.T) error {
	const gsoSize = 176 // struct __sk_buff
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "drop_gso", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R1, asm.R1, gsoSize, asm.Word),
			asm.Mov.Imm(asm.R0, 2), // TC_ACT_SHOT
			asm.JNE.Imm(asm.R1, 0, "out"),
			asm.Mov.Imm(asm.R0, -1),
			asm.Return().WithSymbol("out"),
		},
	})
	if err != nil {
		return err
	}
	t.Cleanup(func() { must(t, prog.Close()) })
	up, err := netlink.LinkByName(underlay)
	if err != nil {
		return err
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: up.Attrs().Index, Program: prog, Attach: ebpf.AttachTCXEgress})
	if err == nil {
		t.Cleanup(func() { must(t, l.Close()) })
	}
	return err
}
