package attach

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bench is a veth pair in a namespace of its own, and a private bpffs for pins. Packets sent
// on `peer` arrive at `dev`.
type bench struct {
	*testing.T
	dir  string
	dev  netlink.Link
	peer netlink.Link
}

// inNamespace runs f in a new network namespace, on one thread.
func inNamespace(t *testing.T, f func(b *bench)) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mount bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	space, err := ns.TempNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = space.Close() }()
	err = space.Do(func(ns.NetNS) error {
		b := &bench{T: t, dir: dir}
		b.dev, b.peer = b.veth("dev0", "peer0")
		f(b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bench) veth(name, peer string) (netlink.Link, netlink.Link) {
	b.Helper()
	b.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}))
	var out [2]netlink.Link
	for i, n := range []string{name, peer} {
		l, err := netlinksafe.LinkByName(n)
		b.must(err)
		b.must(netlink.LinkSetUp(l))
		out[i] = l
	}
	return out[0], out[1]
}

func (b *bench) pin(name string) string { return filepath.Join(b.dir, "links", name) }

// ethertype marks the frames of these tests: the kernel sends some of its own (IPv6 looks for neighbours
// and routers) whenever it likes. It is the first one for local experiments.
const ethertype = 0x88b5

// program is a counter of our frames that leaves them to whoever comes next, like our own.
func (b *bench) program(name string) (*ebpf.Program, func() uint64) {
	b.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	b.must(err)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 16, asm.Word), // __sk_buff.protocol
			asm.JNE.Imm(asm.R2, int32(htons(ethertype)), "out"),
			asm.LoadMapValue(asm.R1, m.FD(), 0),
			asm.Mov.Imm(asm.R2, 1),
			asm.StoreXAdd(asm.R1, asm.R2, asm.DWord),
			asm.Mov.Imm(asm.R0, -1).WithSymbol("out"), // TCX_NEXT, TC_ACT_UNSPEC
			asm.Return(),
		},
	})
	b.must(err)
	b.Cleanup(func() { _ = p.Close(); _ = m.Close() })
	return p, func() uint64 {
		var n uint64
		b.must(m.Lookup(uint32(0), &n))
		return n
	}
}

// send sends one frame through l and waits until it has passed the egress of l and the ingress of its peer:
// the ingress is softirq work, which a busy machine leaves to a thread. Sockets for one ethertype are
// behind the programs.
func (b *bench) send(l netlink.Link) {
	b.Helper()
	arrived := b.socket(l.Attrs().ParentIndex)
	defer func() { _ = unix.Close(arrived) }()
	out := b.socket(l.Attrs().Index)
	defer func() { _ = unix.Close(out) }()
	frame := make([]byte, 64)
	copy(frame, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, ethertype >> 8, ethertype & 0xff})
	b.must(unix.Send(out, frame, 0))
	b.must(unix.SetsockoptTimeval(arrived, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	if _, _, err := unix.Recvfrom(arrived, frame, 0); err != nil {
		b.Fatalf("wait for the frame that %s sent: %v", l.Attrs().Name, err)
	}
}

// socket is one for our frames on an interface.
func (b *bench) socket(ifindex int) int {
	b.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	b.must(err)
	b.must(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(ethertype), Ifindex: ifindex}))
	return fd
}

// htons is a number as it lies in a packet; every machine that the objects are built for is little-endian.
func htons(n uint16) uint16 { return n<<8 | n>>8 }

// expectRuns sends n frames to dev and checks that every counter saw them.
func (b *bench) expectRuns(n uint64, counters map[string]func() uint64) {
	b.Helper()
	before := map[string]uint64{}
	for name, c := range counters {
		before[name] = c()
	}
	for range n {
		b.send(b.peer)
	}
	for name, c := range counters {
		if got := c() - before[name]; got != n {
			b.Errorf("%s saw %d of %d packets", name, got, n)
		}
	}
}

func (b *bench) attach(p *ebpf.Program, dir Direction, pin string, kinds ...string) Link {
	b.Helper()
	if len(kinds) == 0 {
		kinds = []string{KindTCX, KindClsact, KindIngress}
	}
	l, err := AttachBy(p, b.dev.Attrs().Index, dir, b.pin(pin), kinds...)
	b.must(err)
	if !l.Alive || int(l.Ifindex) != b.dev.Attrs().Index || l.Direction != dir {
		b.Fatalf("AttachBy = %+v", l)
	}
	return l
}

func (b *bench) qdisc(l netlink.Link) string {
	b.Helper()
	qdiscs, err := netlinksafe.QdiscList(l)
	b.must(err)
	for _, q := range qdiscs {
		if q.Type() == KindClsact || q.Type() == KindIngress {
			return q.Type()
		}
	}
	return ""
}

func (b *bench) expectNothingAt(pin string) {
	b.Helper()
	if _, err := Inspect(b.pin(pin)); !errors.Is(err, ErrNotFound) {
		b.Errorf("Inspect(%s): %v, want ErrNotFound", pin, err)
	}
	if _, err := os.Stat(b.pin(pin)); !os.IsNotExist(err) {
		b.Errorf("pin %s is still there: %v", pin, err)
	}
}

// filter adds somebody else's direct-action filter.
func (b *bench) filter(p *ebpf.Program, parent uint32) {
	b.Helper()
	b.must(netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: b.dev.Attrs().Index, Parent: parent, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL,
		},
		Fd: p.FD(), Name: "foreign", DirectAction: true,
	}))
}

func TestForeignProgramsBesideUsRun(t *testing.T) {
	inNamespace(t, func(b *bench) {
		counters := map[string]func() uint64{}
		program := func(name string) *ebpf.Program {
			p, n := b.program(name)
			counters[name] = n
			return p
		}
		foreign := func(name string) {
			l, err := link.AttachTCX(link.TCXOptions{
				Interface: b.dev.Attrs().Index, Program: program(name), Attach: ebpf.AttachTCXIngress,
			})
			b.must(err)
			b.Cleanup(func() { _ = l.Close() })
		}
		b.must(netlink.QdiscAdd(clsact(b.dev)))
		b.filter(program("filter"), netlink.HANDLE_MIN_INGRESS)
		foreign("tcx_before")
		if l := b.attach(program("ours"), Ingress, "x-in"); l.Kind != KindTCX {
			b.Fatalf("kind %s, want tcx", l.Kind)
		}
		foreign("tcx_after")
		b.expectRuns(3, counters)

		b.must(Detach(b.pin("x-in"), 0))
		if b.qdisc(b.dev) != KindClsact {
			b.Error("the foreign qdisc went with our link")
		}
		delete(counters, "ours")
		b.expectRuns(3, counters)
	})
}

func TestAttachAgainReplacesTheProgramInPlace(t *testing.T) {
	inNamespace(t, func(b *bench) {
		for _, kind := range []string{KindTCX, KindClsact} {
			pin := kind + "-in"
			first, seenFirst := b.program("first")
			second, seenSecond := b.program("second")
			b.attach(first, Ingress, pin, kind)
			before, err := open(b.pin(pin))
			b.must(err)
			b.attach(second, Ingress, pin, kind)
			if after, err := before.inspect(); err != nil || !after.Alive {
				b.Errorf("%s: the first attachment was not kept: %+v, %v", kind, after, err)
			}
			before.close()
			old := seenFirst()
			b.expectRuns(1, map[string]func() uint64{"second": seenSecond})
			if seenFirst() != old {
				b.Errorf("%s: the first program still runs", kind)
			}
			b.must(Detach(b.pin(pin), 0))
		}
	})
}

func TestPinOutlivesItsInterfaceAndIsReplaced(t *testing.T) {
	inNamespace(t, func(b *bench) {
		for _, kind := range []string{KindTCX, KindClsact} {
			pin := kind + "-in"
			p, _ := b.program("prog")
			b.attach(p, Ingress, pin, kind)
			b.must(netlink.LinkDel(b.dev))
			l, err := Inspect(b.pin(pin))
			b.must(err)
			if l.Alive {
				b.Errorf("%s: alive on a deleted interface: %+v", kind, l)
			}
			if err := Update(b.pin(pin), p); !errors.Is(err, ErrDead) {
				b.Errorf("%s: Update: %v, want ErrDead", kind, err)
			}
			b.dev, b.peer = b.veth("dev0", "peer0")
			again, seen := b.program("again")
			b.attach(again, Ingress, pin, kind)
			b.expectRuns(1, map[string]func() uint64{"again": seen})
			b.must(netlink.LinkDel(b.dev))
			b.must(Detach(b.pin(pin), 0))
			b.must(Detach(b.pin(pin), 0))
			b.expectNothingAt(pin)
			b.dev, b.peer = b.veth("dev0", "peer0")
		}
	})
}

func TestAttachToAnotherHookMoves(t *testing.T) {
	inNamespace(t, func(b *bench) {
		p, seen := b.program("prog")
		other, otherPeer := b.veth("dev1", "peer1")
		if _, err := Attach(p, other.Attrs().Index, Ingress, b.pin("x-in")); err != nil {
			b.Fatal(err)
		}
		b.attach(p, Ingress, "x-in")
		b.expectRuns(1, map[string]func() uint64{"prog": seen})
		old := seen()
		b.send(otherPeer)
		if seen() != old {
			b.Error("the program still runs on the first interface")
		}
		b.attach(p, Egress, "x-in")
		old = seen()
		b.send(b.dev)
		if seen() != old+1 {
			b.Error("the program does not run on egress")
		}
		old = seen()
		b.send(b.peer)
		if seen() != old {
			b.Error("the program still runs on ingress")
		}
	})
}

func TestDetachDoesNotWaitForOtherDescriptors(t *testing.T) {
	inNamespace(t, func(b *bench) {
		p, seen := b.program("prog")
		b.attach(p, Ingress, "x-in")
		held, err := open(b.pin("x-in"))
		b.must(err)
		defer held.close()
		b.must(Detach(b.pin("x-in"), 0))
		old := seen()
		b.send(b.peer)
		if seen() != old {
			b.Error("the program runs on while another process looks at the link")
		}
	})
}

func TestForeignPinIsLeftAlone(t *testing.T) {
	inNamespace(t, func(b *bench) {
		p, _ := b.program("prog")
		b.must(os.MkdirAll(filepath.Join(b.dir, "links"), 0o700))
		b.must(p.Pin(b.pin("x-in")))
		if _, err := Attach(p, b.dev.Attrs().Index, Ingress, b.pin("x-in")); err == nil {
			b.Error("Attach took the place of a pinned program")
		}
		if err := Detach(b.pin("x-in"), 0); err == nil {
			b.Error("Detach removed a pinned program")
		}
		if _, err := os.Stat(b.pin("x-in")); err != nil {
			b.Error(err)
		}
	})
}

func TestMissingInterfaceLeavesNoPin(t *testing.T) {
	inNamespace(t, func(b *bench) {
		p, _ := b.program("prog")
		for _, kind := range []string{KindTCX, KindClsact} {
			if _, err := AttachBy(p, 4242, Ingress, b.pin("x-in"), kind); err == nil {
				b.Errorf("%s: attached to interface 4242", kind)
			}
			b.expectNothingAt("x-in")
		}
	})
}
