package datapath

import (
	"net/netip"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
	"github.com/tc-loadbalancer/tclb/pkg/sched"
)

// flow is a client's connection to a VIP, followed packet by packet.
type flow struct {
	w       *world
	from    container
	client  netip.AddrPort
	vip     netip.AddrPort
	proto   lb.Protocol
	backend container
	target  packet.Spec // the last packet as the backend saw it
	seq     uint32
}

const backendISN = 7000

func (w *world) flow(vip netip.Addr, family int, proto lb.Protocol, port uint16) *flow {
	return &flow{
		w: w, from: w.client, proto: proto, seq: 1000,
		client: netip.AddrPortFrom(w.client.addr[family], port), vip: netip.AddrPortFrom(vip, servicePort),
	}
}

// out sends a packet of the client's and asserts that it reaches a backend.
func (f *flow) out(flags packet.Flags, seq, ack uint32) {
	f.w.t.Helper()
	verdict, got := f.w.fromContainer(f.from, packet.Spec{
		Src: f.client, Dst: f.vip, Protocol: f.proto, Flags: flags, Seq: seq, Ack: ack, Payload: []byte("request"),
	})
	f.backend = f.w.containerOf(got)
	if verdict != redirect || got.Dst.Port() != targetPort || got.DstMAC.String() != f.backend.mac.String() {
		f.w.t.Fatalf("verdict %d for %v", verdict, got)
	}
	f.target = got
}

// back sends a packet of the backend's and asserts that the client sees the VIP.
func (f *flow) back(flags packet.Flags, seq, ack uint32) {
	f.w.t.Helper()
	answer := reply(f.target)
	answer.Flags, answer.Seq, answer.Ack, answer.Payload = flags, seq, ack, []byte("response")
	verdict, got := f.w.fromContainer(f.backend, answer)
	if verdict != redirect || got.Src != f.vip || got.Dst != f.client || got.DstMAC.String() != f.from.mac.String() {
		f.w.t.Fatalf("verdict %d for %v", verdict, got)
	}
}

// establish brings a TCP flow through its handshake, a UDP flow to its first answer.
func (f *flow) establish() {
	f.w.t.Helper()
	if f.proto == lb.UDP {
		f.out(0, 0, 0)
		f.back(0, 0, 0)
		return
	}
	f.out(packet.SYN, f.seq, 0)
	f.back(packet.SYN|packet.ACK, backendISN, f.seq+1)
	f.out(packet.ACK, f.seq+1, backendISN+1)
}

func (f *flow) close() {
	f.w.t.Helper()
	f.out(packet.FIN|packet.ACK, f.seq+1, backendISN+1)
	f.back(packet.FIN|packet.ACK, backendISN+1, f.seq+2)
}

// reply turns a packet round.
func reply(p packet.Spec) packet.Spec {
	p.Src, p.Dst = p.Dst, p.Src
	p.SrcMAC, p.DstMAC = nil, nil
	return p
}

func (w *world) pairs() []datapath.Pair {
	w.t.Helper()
	var out []datapath.Pair
	w.check(w.d.Pairs(func(p datapath.Pair) bool { out = append(out, p); return true }))
	return out
}

func TestAFlowGoesOutAndComesBack(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		f := w.flow(vips[family], family, proto, 40000)
		f.establish()
		if f.target.Src != f.client {
			t.Errorf("backend sees %v, want the client's own address", f.target.Src)
		}
		first := f.backend
		for range 5 {
			f.out(packet.ACK, f.seq+1, backendISN+1)
			f.back(packet.ACK, backendISN+1, f.seq+1)
		}
		if f.backend.ifindex != first.ifindex {
			t.Error("the flow changed its backend")
		}
		pairs := w.pairs()
		if len(pairs) != 1 {
			t.Fatalf("%d pairs, want 1: %+v", len(pairs), pairs)
		}
		p := pairs[0]
		if p.Client != f.client || p.VIP != f.vip || p.Backend != f.target.Dst || p.State != datapath.FlowEstablished {
			t.Errorf("pair %+v", p)
		}
		if want := map[lb.Protocol][2]uint64{lb.TCP: {7, 6}, lb.UDP: {6, 6}}[proto]; p.Packets != want {
			t.Errorf("packets %v, want %v", p.Packets, want)
		}
	})
}

func TestSelectionIsTheTableOfGo(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		members := make([]sched.Member, len(w.containers))
		for i, c := range w.containers {
			members[i] = sched.Member{Key: c.addr[0].String(), Weight: 100}
		}
		base, err := sched.New(members)
		w.check(err)
		table, err := base.Table(nil)
		w.check(err)
		for port := uint16(41000); port < 41200; port++ {
			f := w.flow(vips[family], family, proto, port)
			f.out(packet.SYN, 1, 0)
			slot := sched.Slot(sched.TupleHash(f.client, f.vip, proto), base.Size)
			if want := base.Seats[table[slot]].Key; want != f.backend.addr[0].String() {
				t.Fatalf("port %d: slot %d belongs to %s, the packet went to %s", port, slot, want, f.backend.addr[0])
			}
		}
	})
}

func TestHandshakePromotesAndClosePutsAside(t *testing.T) {
	eachOf(t, []lb.Protocol{lb.TCP}, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		f := w.flow(vips[family], family, proto, 40000)
		want := func(opening, established, closing, active uint64) {
			t.Helper()
			rooms, err := w.d.Rooms()
			w.check(err)
			got := [4]uint64{rooms[datapath.RoomOpening].Live, rooms[datapath.RoomEstablished].Live, rooms[datapath.RoomClosing].Live, w.active()}
			if got != [4]uint64{opening, established, closing, active} {
				t.Errorf("opening, established, closing, active: %v, want %v", got, [4]uint64{opening, established, closing, active})
			}
		}
		f.out(packet.SYN, f.seq, 0)
		want(1, 0, 0, 0)
		f.back(packet.SYN|packet.ACK, backendISN, f.seq+1)
		want(1, 0, 0, 0)
		f.out(packet.ACK, f.seq+1, backendISN+99999999) // acknowledges what was never sent
		want(1, 0, 0, 0)
		f.out(packet.ACK, f.seq+1, backendISN+1)
		want(0, 1, 0, 1)
		f.out(packet.FIN|packet.ACK, f.seq+1, backendISN+1)
		want(0, 1, 0, 1)
		f.back(packet.FIN|packet.ACK, backendISN+1, f.seq+2)
		want(0, 0, 1, 0)
		f.out(packet.ACK, f.seq+2, backendISN+2) // still translated
		f.out(packet.SYN, 500000, 0)             // the port is used again at once
		want(1, 0, 0, 0)
		if n := w.total(); n != 2 {
			t.Errorf("%d connections counted, want 2", n)
		}
	})
}

func TestResetCloses(t *testing.T) {
	eachOf(t, []lb.Protocol{lb.TCP}, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		f := w.flow(vips[family], family, proto, 40000)
		f.establish()
		f.back(packet.RST|packet.ACK, backendISN+1, f.seq+1)
		if p := w.pairs()[0]; p.State != datapath.FlowClosing || w.active() != 0 {
			t.Errorf("state %v, %d active", p.State, w.active())
		}
	})
}

func TestRepeatedSYNKeepsItsBackend(t *testing.T) {
	for family := range families {
		w := newWorld(t, 3)
		f := w.flow(vips[family], family, lb.TCP, 40000)
		f.out(packet.SYN, 1000, 0)
		first := f.backend
		for _, seq := range []uint32{1000, 99} {
			f.out(packet.SYN, seq, 0)
			if f.backend.ifindex != first.ifindex || len(w.pairs()) != 1 {
				t.Errorf("seq %d: another backend, %d pairs", seq, len(w.pairs()))
			}
		}
		w.change(first, func(b *datapath.Backend) { b.New = false })
		f.out(packet.SYN, 1000, 0)
		if f.backend.ifindex == first.ifindex {
			t.Error("stayed on a backend that takes no new flows")
		}
	}
}

func TestSYNInsideAFlowIsPassedOnAndItsAnswerRestartsThePair(t *testing.T) {
	for family := range families {
		w := newWorld(t, 3)
		f := w.flow(vips[family], family, lb.TCP, 40000)
		f.establish()
		first := f.backend
		f.out(packet.SYN, 5000, 0)
		if f.backend.ifindex != first.ifindex || w.pairs()[0].State != datapath.FlowEstablished {
			t.Fatal("the SYN was not just passed on")
		}
		f.back(packet.SYN|packet.ACK, 9000, 5001)
		if w.pairs()[0].State != datapath.FlowOpening || w.active() != 0 {
			t.Errorf("state %v, active %d", w.pairs()[0].State, w.active())
		}
		f.out(packet.ACK, 5001, 9001)
		if w.pairs()[0].State != datapath.FlowEstablished || w.active() != 1 {
			t.Errorf("state %v, active %d", w.pairs()[0].State, w.active())
		}
	}
}

func TestMidFlowPacketGoesToTheTablesChoice(t *testing.T) {
	for family := range families {
		w := newWorld(t, 3)
		f := w.flow(vips[family], family, lb.TCP, 40000)
		f.establish()
		first := f.backend
		if _, err := w.d.Sweep(datapath.SweepRequest{Flush: true}); err != nil {
			t.Fatal(err)
		}
		if n := len(w.pairs()); n != 0 {
			t.Fatalf("%d pairs after a flush", n)
		}
		f.out(packet.ACK|packet.PSH, f.seq+1, backendISN+1)
		if f.backend.ifindex != first.ifindex || w.active() != 1 {
			t.Errorf("went elsewhere, or %d active", w.active())
		}
		f.back(packet.ACK, backendISN+1, f.seq+1)
	}
}

func TestSweepEndsWhatIsIdle(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		short := datapath.DefaultTimeouts
		short.UDPStream, short.TCPEstablished = 20*time.Millisecond, 20*time.Millisecond
		w.flow(vips[family], family, proto, 40000).establish()
		if r, err := w.d.Sweep(datapath.SweepRequest{}); err != nil || r.Removed != 0 || r.Looked == 0 {
			t.Fatalf("sweep of young flows: %+v %v", r, err)
		}
		w.check(w.d.PutService(serviceID, datapath.Service{Gen: 1, Timeouts: short}))
		deadline := time.Now().Add(5 * time.Second)
		for len(w.pairs()) > 0 {
			if _, err := w.d.Sweep(datapath.SweepRequest{}); err != nil || time.Now().After(deadline) {
				t.Fatalf("still there: %+v %v", w.pairs(), err)
			}
		}
		if w.active() != 0 {
			t.Errorf("%d active after all ended", w.active())
		}
	})
}

func TestRemovedBackendEndsItsFlows(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		f := w.flow(vips[family], family, proto, 40000)
		f.establish()
		gone := f.backend
		if n, err := w.d.RetireEndpoint(gone.ifindex, nil); err != nil || n == 0 {
			t.Fatalf("retired %d: %v", n, err)
		}
		if proto == lb.UDP {
			f.out(0, 0, 0)
			if f.backend.ifindex == gone.ifindex {
				t.Error("UDP stayed with a backend that is gone")
			}
			return
		}
		w.refused(datapath.FromContainer, f.from, packet.Spec{
			Src: f.client, Dst: f.vip, Protocol: proto, Flags: packet.ACK, Seq: 1, Ack: 777,
		}, "backend-gone")
		f.out(packet.SYN, 1, 0)
		if f.backend.ifindex == gone.ifindex {
			t.Error("a new connection went to a backend that is gone")
		}
	})
}

// change rewrites the records of one container.
func (w *world) change(c container, f func(*datapath.Backend)) {
	w.t.Helper()
	all, err := w.d.Backends()
	w.check(err)
	for id, b := range all {
		if b.Ifindex == c.ifindex {
			f(&b)
			w.putBackend(id, b)
		}
	}
}

func (w *world) sum(of func(datapath.BackendStat) uint64) uint64 {
	w.t.Helper()
	all, err := w.d.Backends()
	w.check(err)
	var n uint64
	for id := range all {
		n += of(w.d.BackendStat(id))
	}
	return n
}

func (w *world) active() uint64 {
	w.t.Helper()
	return w.sum(func(s datapath.BackendStat) uint64 { return s.Active })
}

func (w *world) total() uint64 {
	w.t.Helper()
	return w.sum(func(s datapath.BackendStat) uint64 { return s.Total })
}
