package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

const (
	floodPort    = 1000 // the first of the VIP's ports that are flooded
	floodPorts   = 20
	floodClient  = 1024 // the first port of the client
	floodClients = 60000
)

// openPorts serves many more ports of the VIP by the world's service.
func (w *world) openPorts(family int, proto lb.Protocol) {
	w.t.Helper()
	all, err := w.d.Frontends()
	w.check(err)
	f := all[lb.Frontend{VIP: vips[family], Port: servicePort, Protocol: proto}]
	more := map[lb.Frontend]datapath.Frontend{}
	for i := range uint16(floodPorts) {
		more[lb.Frontend{VIP: vips[family], Port: floodPort + i, Protocol: proto}] = f
	}
	w.check(w.d.PutFrontends(more))
}

// flood sends first packets of flows from an address of the client's, a flow a packet: one frame, in
// which ports and checksum are written anew each time.
type flood struct {
	w        *world
	frame    []byte
	l4       int
	checksum int
	sum      uint32 // of everything but the ports
}

func (w *world) newFlood(source netip.Addr, proto lb.Protocol) *flood {
	w.t.Helper()
	f := &flood{w: w, l4: 14 + 20, checksum: 16}
	vip := vips[0]
	if source.Is6() {
		f.l4, vip = 14+40, vips[1]
	}
	if proto == lb.UDP {
		f.checksum = 6
	}
	f.checksum += f.l4
	frame, err := packet.Spec{
		Src: netip.AddrPortFrom(source, 0), Dst: netip.AddrPortFrom(vip, 0),
		SrcMAC: w.client.mac, Protocol: proto, Flags: packet.SYN, Seq: 1,
	}.Build()
	w.check(err)
	f.frame = frame
	f.sum = uint32(^binary.BigEndian.Uint16(frame[f.checksum:]))
	return f
}

// patch makes the frame that of the n-th flow: all ports of the VIP for a client's port, then its next.
func (f *flood) patch(n uint32) {
	client, port := uint16(floodClient+n/floodPorts), uint16(floodPort+n%floodPorts)
	binary.BigEndian.PutUint16(f.frame[f.l4:], client)
	binary.BigEndian.PutUint16(f.frame[f.l4+2:], port)
	sum := f.sum + uint32(client) + uint32(port)
	sum = sum&0xffff + sum>>16
	sum = ^(sum&0xffff + sum>>16) & 0xffff
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(f.frame[f.checksum:], uint16(sum))
}

// send begins n flows from the first-th on. Each must be sent on to a backend.
func (f *flood) send(first, n uint32) {
	for i := range n {
		if verdict, err := f.one(first + i); err != nil || verdict != redirect {
			drops, _ := f.w.d.Drops()
			f.w.t.Errorf("flow %d: verdict %d, %v; all drops %v", first+i, verdict, err, drops)
			return
		}
	}
}

// one sends a packet of the n-th flow.
func (f *flood) one(n uint32) (uint32, error) {
	f.patch(n)
	return f.w.d.Program(datapath.FromContainer).Run(&ebpf.RunOptions{Data: f.frame, Context: skbContext{Ifindex: f.w.client.ifindex}})
}

func TestFloodedFramesAreValid(t *testing.T) {
	w := newWorld(t, 1)
	for family := range families {
		for _, proto := range []lb.Protocol{lb.TCP, lb.UDP} {
			f := w.newFlood(w.client.addr[family], proto)
			for n := range uint32(200000) {
				if n%997 != 0 {
					continue
				}
				f.patch(n)
				s, err := packet.Parse(f.frame)
				w.check(err)
				if s.Src.Port() != uint16(floodClient+n/floodPorts) || s.Dst.Port() != uint16(floodPort+n%floodPorts) {
					t.Fatalf("flow %d: %v", n, s)
				}
			}
		}
	}
}

// established makes n flows of each family and protocol.
func (w *world) established(n int) []*flow {
	var out []*flow
	for i := range n {
		for family := range families {
			for _, proto := range []lb.Protocol{lb.TCP, lb.UDP} {
				f := w.flow(vips[family], family, proto, uint16(2000+i))
				f.establish()
				out = append(out, f)
			}
		}
	}
	return out
}

// pairOf finds the pair of a flow.
func pairOf(pairs []datapath.Pair) map[[2]netip.AddrPort]map[lb.Protocol]datapath.Pair {
	out := map[[2]netip.AddrPort]map[lb.Protocol]datapath.Pair{}
	for _, p := range pairs {
		key := [2]netip.AddrPort{p.Client, p.VIP}
		if out[key] == nil {
			out[key] = map[lb.Protocol]datapath.Pair{}
		}
		out[key][p.Protocol] = p
	}
	return out
}

// assertSame sends a packet each way of every flow and compares: the same backend by the same pair as
// before, which has counted these packets and all before them.
func (w *world) assertSame(flows []*flow, before []datapath.Pair) {
	w.t.Helper()
	for _, f := range flows {
		backend, source := f.backend.ifindex, f.target.Src
		f.out(packet.ACK, f.seq+8, backendISN+9)
		if f.backend.ifindex != backend || f.target.Src != source {
			w.t.Fatalf("%v now reaches %v from %v", f.client, f.target.Dst, f.target.Src)
		}
		f.back(packet.ACK, backendISN+9, f.seq+15)
	}
	was, is := pairOf(before), pairOf(w.pairs())
	for _, f := range flows {
		key := [2]netip.AddrPort{f.client, f.vip}
		a, b := was[key][f.proto], is[key][f.proto]
		if a.Index != b.Index || b.Packets != [2]uint64{a.Packets[0] + 1, a.Packets[1] + 1} || b.State != datapath.FlowEstablished {
			w.t.Fatalf("%v: pair %+v, before %+v", f.client, b, a)
		}
	}
}

// TestAMillionHalfOpenFlowsEvictNoEstablishedOne: a container sends SYNs from its own address to every port
// of its VIPs and nobody answers. In a table that evicts whoever was used least recently, the idle connections
// of everybody else go first.
func TestAMillionHalfOpenFlowsEvictNoEstablishedOne(t *testing.T) {
	const threads = 2
	total := uint64(1_000_000)
	if testing.Short() {
		total = 100_000
	}
	w := newSizedWorld(t, 3, datapath.Sizes{MaxServices: 1024, MaxBackends: 256, TableSlots: 16384, MaxConntrack: 65536})
	w.openPorts(0, lb.TCP)
	w.openPorts(1, lb.TCP)
	flows := w.established(1000)
	pairs, before := w.pairs(), w.rooms()
	start := time.Now()
	w.parallel(threads, func(worker int) {
		w.newFlood(w.client.addr[worker], lb.TCP).send(0, uint32(total/threads))
	})
	t.Logf("%d flows begun in %v", total, time.Since(start))
	rooms := w.rooms()
	opening, established := rooms[datapath.RoomOpening], rooms[datapath.RoomEstablished]
	entered := opening.Created - before[datapath.RoomOpening].Created
	if entered < total*9/10 {
		t.Errorf("%d of %d half-open flows entered their room: the flood was none", entered, total)
	}
	if established.Live != uint64(len(flows)) || established.Evicted != 0 || established.Created != before[datapath.RoomEstablished].Created {
		t.Errorf("established room: %+v, %d flows were in it", established, len(flows))
	}
	if opening.Live != opening.Capacity || opening.Evicted-before[datapath.RoomOpening].Evicted != entered-opening.Live {
		t.Errorf("opening room: %+v, before %+v", opening, before[datapath.RoomOpening])
	}
	w.assertSame(flows, pairs)
	for _, reason := range []string{"conntrack-full", "no-port", "no-pair"} {
		if n := w.drops(reason); n != 0 {
			t.Errorf("%d packets were dropped: %s", n, reason)
		}
	}
	w.assertWhole()
}

func (w *world) rooms() map[datapath.Room]datapath.RoomStat {
	w.t.Helper()
	rooms, err := w.d.Rooms()
	w.check(err)
	return rooms
}

// TestClosedConnectionsPushOutEachOther: any number of them costs no flow that is open.
func TestClosedConnectionsPushOutEachOther(t *testing.T) {
	w := newWorld(t, 3)
	flows := w.established(50)
	before := w.pairs()
	n := int(w.rooms()[datapath.RoomClosing].Capacity) + 500
	for i := range n {
		f := w.flow(vips[i%2], i%2, lb.TCP, uint16(10000+i))
		f.establish()
		f.close()
	}
	rooms := w.rooms()
	closing, established := rooms[datapath.RoomClosing], rooms[datapath.RoomEstablished]
	if closing.Live != closing.Capacity || closing.Created != uint64(n) || closing.Evicted != 500 {
		t.Errorf("closing room: %+v", closing)
	}
	if established.Live != uint64(len(flows)) || established.Evicted != 0 {
		t.Errorf("established room: %+v", established)
	}
	w.assertSame(flows, before)
	w.assertWhole()
}

// marked is a pair that is to be evicted, and how its backend answers.
type marked struct {
	datapath.Pair
	answer packet.Spec
}

// fullRoom fills the main room and makes every 16th pair of it idle for `idle`, the others for `others`:
// wherever the hand stands, it looks at two of the former. It returns these.
func fullRoom(w *world, idle, others time.Duration) map[uint32]marked {
	w.t.Helper()
	w.openPorts(0, lb.UDP)
	w.newFlood(w.client.addr[0], lb.UDP).send(0, w.d.Sizes().MaxConntrack)
	out := map[uint32]marked{}
	for _, p := range w.pairs() {
		if p.Index%16 != 7 {
			w.age(p.Index, others)
			continue
		}
		w.age(p.Index, idle)
		w.edit(p.Index, func(raw *rawPair) {
			var port [2]byte
			binary.NativeEndian.PutUint16(port[:], raw.Half[1].Tuple.Dport)
			to := netip.AddrPortFrom(p.Client.Addr(), binary.BigEndian.Uint16(port[:]))
			out[p.Index] = marked{p, packet.Spec{Src: p.Backend, Dst: to, Protocol: p.Protocol}}
		})
	}
	return out
}

// assertGone says that of marked pairs none is left, and that no other went.
func (w *world) assertGone(gone map[uint32]marked) {
	w.t.Helper()
	capacity := w.d.Sizes().MaxConntrack
	left := pairOf(w.pairs())
	old := 0
	for _, p := range gone {
		if _, there := left[[2]netip.AddrPort{p.Client, p.VIP}]; there {
			w.t.Errorf("pair %d of %v is still there", p.Index, p.Client)
		}
		// Neither half is known any more: the answer is not the VIP's. (Another flow may have taken its port.)
		_, got := w.fromContainer(w.containerOf(packet.Spec{Dst: p.Backend}), p.answer)
		if got.Src == p.VIP && got.Dst == p.Client {
			w.t.Fatalf("the answer of an evicted flow reaches its client: %v", got)
		}
	}
	for _, byProto := range left {
		if p := byProto[lb.UDP]; p.VIP.Port() != servicePort {
			old++
		}
	}
	if want := int(capacity) - len(gone); old != want {
		w.t.Errorf("%d of the flows that should have stayed are there, want %d", old, want)
	}
	r := w.rooms()[datapath.RoomEstablished]
	if r.Live != uint64(capacity) || r.Evicted != uint64(len(gone)) {
		w.t.Errorf("established room: %+v, want %d evicted", r, len(gone))
	}
	w.assertWhole()
}

func TestAFullRoomGivesUpWhatIsExpiredFirst(t *testing.T) {
	w := newWorld(t, 3)
	// The others are idle for longer, but of a service that is patient.
	gone := fullRoom(w, time.Minute, 0)
	patient := datapath.DefaultTimeouts
	patient.UDP = time.Hour
	w.check(w.d.PutService(2, datapath.Service{Gen: 1, BaseGen: 1, Timeouts: patient}))
	for _, p := range w.pairs() {
		if _, is := gone[p.Index]; !is {
			w.edit(p.Index, func(raw *rawPair) { raw.Service = 2 })
			w.age(p.Index, 10*time.Minute)
		}
	}
	for i := range len(gone) {
		w.flow(vips[0], 0, lb.UDP, uint16(20000+i)).out(0, 0, 0)
	}
	w.assertGone(gone)
}

func TestAFullRoomGivesUpWhatIsIdleLongest(t *testing.T) {
	w := newWorld(t, 3)
	gone := fullRoom(w, 20*time.Second, 5*time.Second)
	for i := range len(gone) {
		w.flow(vips[0], 0, lb.UDP, uint16(20000+i)).out(0, 0, 0)
	}
	w.assertGone(gone)
}
