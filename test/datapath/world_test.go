// Package datapath runs the real BPF programs on packets and follows their lives: what comes out,
// what the maps say afterwards, what was counted.
package datapath

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
	"github.com/tc-loadbalancer/tclb/pkg/sched"
)

// What programs return.
const (
	next     = ^uint32(0)
	drop     = 2
	redirect = 7
)

// container is an attached endpoint of the world.
type container struct {
	ifindex uint32
	mac     net.HardwareAddr
	addr    [2]netip.Addr // by family: 0 = IPv4
}

// world is a node in miniature: maps of its own, and devices for programs to be "on".
type world struct {
	t          testing.TB
	d          *datapath.Datapath
	client     container
	containers []container // backends
	host       container   // tclb0
	abroad     abroad
	maps       map[string]*ebpf.Map
}

var (
	families = []string{"IPv4", "IPv6"}
	vips     = [2]netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8:ff::10")}
	vips2    = [2]netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8:ff::11")}
)

const (
	servicePort = 80
	targetPort  = 8080
	serviceID   = 1
)

// each runs a scenario for every family and protocol.
func each(t *testing.T, f func(t *testing.T, w *world, family int, proto lb.Protocol)) {
	t.Helper()
	eachOf(t, []lb.Protocol{lb.TCP, lb.UDP}, f)
}

// eachOf is each for some protocols only.
func eachOf(t *testing.T, protocols []lb.Protocol, f func(t *testing.T, w *world, family int, proto lb.Protocol)) {
	t.Helper()
	for family, name := range families {
		for _, proto := range protocols {
			t.Run(name+"/"+proto.String(), func(t *testing.T) { f(t, newWorld(t, 3), family, proto) })
		}
	}
}

// eachInOne is each for scenarios that leave nothing behind but flows, records of services and settings.
func eachInOne(t *testing.T, f func(t *testing.T, w *world, family int, proto lb.Protocol)) {
	t.Helper()
	w := newWorld(t, 3)
	for family, name := range families {
		for _, proto := range []lb.Protocol{lb.TCP, lb.UDP} {
			w.inside(t, name+"/"+proto.String(), func(w *world) { f(w.t.(*testing.T), w, family, proto) })
			w.flush()
			w.settings(datapath.Settings{AntiSpoof: true})
			w.service(serviceID, vips, w.containers)
		}
	}
}

// inside runs a scenario as a subtest in this world.
func (w *world) inside(t *testing.T, name string, f func(w *world)) {
	t.Helper()
	ns, err := netns.Get()
	w.check(err)
	defer ns.Close()
	t.Run(name, func(t *testing.T) {
		runtime.LockOSThread() // for good: the thread ends with the subtest
		here := *w
		here.t, here.containers, here.maps = t, slices.Clone(w.containers), map[string]*ebpf.Map{}
		here.abroad.sources = map[string]*ebpf.Program{}
		here.check(netns.Set(ns))
		f(&here)
	})
}

func (w *world) flush() {
	w.t.Helper()
	_, err := w.d.Sweep(datapath.SweepRequest{Flush: true})
	w.check(err)
}

func newWorld(t *testing.T, backends int) *world {
	t.Helper()
	needRoot(t)
	enterNamespace(t)
	k := takeKept(t, datapath.Sizes{MaxServices: 64, MaxBackends: 256, TableSlots: 16384, MaxConntrack: 4096})
	d, err := datapath.Open(k.dir)
	return furnish(t, d, err, backends)
}

// newSizedWorld loads maps and programs for itself.
func newSizedWorld(t testing.TB, backends int, sizes datapath.Sizes) *world {
	t.Helper()
	needRoot(t)
	enterNamespace(t)
	dir := t.TempDir() + "/bpf"
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	d, err := datapath.Load(datapath.Options{BPFFS: dir, Sizes: sizes})
	return furnish(t, d, err, backends)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv("REQUIRE_ROOT") == "" {
		t.Skip("needs root")
	}
}

// furnish puts containers and a service into what was opened.
func furnish(t testing.TB, d *datapath.Datapath, err error, backends int) *world {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	w := &world{t: t, d: d, maps: map[string]*ebpf.Map{}}
	w.client = w.addContainer(1)
	w.host = w.addContainer(2)
	for i := range backends {
		w.containers = append(w.containers, w.addContainer(byte(10+i)))
	}
	w.settings(datapath.Settings{AntiSpoof: true})
	w.service(serviceID, vips, w.containers)
	return w
}

// enterNamespace moves the test into a network namespace of its own.
func enterNamespace(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	old, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Set(old); err != nil {
			t.Fatal(err) // the thread is of no more use: it stays locked
		}
		fresh.Close()
		old.Close()
		runtime.UnlockOSThread()
	})
}

// parallel runs f on n threads and waits for them. Like the test's own they are in the world's namespace,
// where the devices are that programs run on.
func (w *world) parallel(n int, f func(worker int)) {
	w.t.Helper()
	inside, err := netns.Get()
	w.check(err)
	defer inside.Close()
	var wg sync.WaitGroup
	for worker := range n {
		wg.Go(func() {
			runtime.LockOSThread() // for good: the thread ends with its goroutine
			if err := netns.Set(inside); err != nil {
				w.t.Error(err)
				return
			}
			f(worker)
		})
	}
	wg.Wait()
}

// addContainer makes a device to stand for a container's veth, and registers its addresses.
func (w *world) addContainer(n byte) container {
	w.t.Helper()
	name := "t" + string('a'+rune(n))
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}
	if err := netlink.LinkAdd(link); err != nil {
		w.t.Fatal(err)
	}
	made, err := netlink.LinkByName(name)
	if err != nil {
		w.t.Fatal(err)
	}
	c := container{
		ifindex: uint32(made.Attrs().Index), mac: net.HardwareAddr{2, 0, 0, 0, 1, n},
		addr: [2]netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, n}), netip.MustParseAddr("2001:db8::").Next()},
	}
	v6 := c.addr[1].As16()
	v6[15] = n
	c.addr[1] = netip.AddrFrom16(v6)
	for _, a := range c.addr {
		if err := w.d.PutEndpoint(datapath.EndpointKey{Address: a, Ifindex: c.ifindex}, datapath.Endpoint{UpIfindex: 1, UpMAC: [6]byte{2, 0, 0, 0, 9, 9}, MAC: [6]byte(c.mac)}); err != nil {
			w.t.Fatal(err)
		}
	}
	return c
}

func (w *world) settings(s datapath.Settings) {
	w.t.Helper()
	s.HostIfindex = w.host.ifindex
	copy(s.HostMAC[:], w.host.mac)
	s.Hairpin4, s.Hairpin6 = hairpins[0], hairpins[1]
	s.Tunnel = w.abroad.settings
	if err := w.d.PutSettings(s); err != nil {
		w.t.Fatal(err)
	}
}

// backendID numbers the backends of the world: service, container, family, protocol.
func backendID(service uint32, i, family int, proto lb.Protocol) uint32 {
	id := service*64 + uint32(i)*4 + uint32(family)*2 + 1
	if proto == lb.UDP {
		id++
	}
	return id
}

// service writes a service over backends, both families and protocols, the way the proxy does.
func (w *world) service(id uint32, vips [2]netip.Addr, backends []container) {
	w.t.Helper()
	w.check(w.d.PutService(id, datapath.Service{Gen: 1, BaseGen: 1, Timeouts: datapath.DefaultTimeouts}))
	members := make([]sched.Member, len(backends))
	for i := range backends {
		members[i] = sched.Member{Key: backends[i].addr[0].String(), Weight: 100}
	}
	base, err := sched.New(members)
	w.check(err)
	table, err := base.Table(nil)
	w.check(err)
	offset := id * 1024
	w.check(w.d.WriteRegion(datapath.Region{Offset: offset, Len: base.Size}, table))
	for family := range families {
		for j, proto := range []lb.Protocol{lb.TCP, lb.UDP} {
			seats := make([]uint32, len(base.Seats))
			for i, c := range backends {
				bid := backendID(id, i, family, proto)
				seats[w.seatOf(base, members[i].Key)] = bid
				b := datapath.Backend{
					Address: c.addr[family], Port: targetPort, Protocol: proto, Gen: 1, Service: id, Ifindex: c.ifindex,
					Live: true, New: true, Local: c.ifindex != 0, Weight: 100,
				}
				copy(b.MAC[:], c.mac)
				w.putBackend(bid, b)
				w.check(w.d.PutFrontends(map[lb.Frontend]datapath.Frontend{
					{VIP: c.addr[family], Port: targetPort, Protocol: proto}: {Kind: datapath.KindBackend},
					{VIP: c.addr[family]}: {Kind: datapath.KindBackend}, // the address as such, as with VIPs
				}))
			}
			at := datapath.Region{Offset: offset + 600 + uint32(family*2+j)*32, Len: uint32(len(seats))}
			w.check(w.d.WriteRegion(at, seats))
			w.check(w.d.PutFrontends(map[lb.Frontend]datapath.Frontend{
				{VIP: vips[family], Port: servicePort, Protocol: proto}: {
					Service: id, Table: datapath.Region{Offset: offset, Len: base.Size}, Members: at,
				},
				{VIP: vips[family]}: {Kind: datapath.KindVIP},
			}))
		}
	}
}

func (w *world) seatOf(b *sched.Base, key string) int {
	for i, s := range b.Seats {
		if s.Key == key {
			return i
		}
	}
	w.t.Fatalf("no seat for %s", key)
	return -1
}

func (w *world) putBackend(id uint32, b datapath.Backend) {
	w.t.Helper()
	w.check(w.d.PutBackends([]uint32{id}, []datapath.Backend{b}))
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// skbContext is the head of struct __sk_buff, as far as a test run takes it.
type skbContext struct {
	_       [10]uint32
	Ifindex uint32
	_       [30]uint32
	GSOSegs uint32
	_       [2]uint32
	GSOSize uint32
	_       [3]uint32
}

// run sends a frame through a program on a device and returns the verdict and the frame after it.
func (w *world) run(program string, ifindex uint32, frame []byte) (uint32, []byte) {
	w.t.Helper()
	return w.runAs(program, skbContext{Ifindex: ifindex}, frame)
}

// runAs is run with more of the frame's context.
func (w *world) runAs(program string, context skbContext, frame []byte) (uint32, []byte) {
	w.t.Helper()
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: context}
	verdict, err := w.program(program).Run(&opts)
	if err != nil {
		w.t.Fatalf("run %s: %v", program, err)
	}
	return verdict, opts.DataOut
}

// send builds a packet, runs it through a program and decodes what comes out, checksums included.
func (w *world) send(program string, on container, s packet.Spec) (uint32, packet.Spec) {
	w.t.Helper()
	if s.SrcMAC == nil {
		s.SrcMAC = on.mac
	}
	if s.DstMAC == nil {
		w.toDevice(&s, program)
	}
	frame, err := s.Build()
	w.check(err)
	verdict, out := w.run(program, on.ifindex, frame)
	got, err := packet.Parse(out)
	if err != nil {
		w.t.Fatalf("%s: %v\n in: %v\nout: %v", program, err, s, got)
	}
	return verdict, got
}

func (w *world) fromContainer(c container, s packet.Spec) (uint32, packet.Spec) {
	w.t.Helper()
	return w.send(datapath.FromContainer, c, s)
}

// containerOf finds the backend that a packet was sent to.
func (w *world) containerOf(p packet.Spec) container {
	w.t.Helper()
	for _, c := range append(w.containers, w.client) {
		for _, a := range c.addr {
			if a == p.Dst.Addr() {
				return c
			}
		}
	}
	w.t.Fatalf("packet for nobody: %v", p)
	return container{}
}

func (w *world) drops(r string) uint64 {
	w.t.Helper()
	all, err := w.d.Drops()
	w.check(err)
	for reason, n := range all {
		if reason.String() == r {
			return n
		}
	}
	w.t.Fatalf("no drop reason %q", r)
	return 0
}
