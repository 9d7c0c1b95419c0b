package datapath

import (
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// What follows never sweeps: cilium/cilium#48288 (open) asks for a collection of stale entries on all nodes
// whenever a backend goes; here the entry itself knows.

// flowsTo makes flows until n of them are at one backend, and returns these.
func (w *world) flowsTo(c container, family int, proto lb.Protocol, n int) []*flow {
	w.t.Helper()
	var out []*flow
	for port := uint16(30000); len(out) < n; port++ {
		f := w.flow(vips[family], family, proto, port)
		f.establish()
		if f.backend.ifindex == c.ifindex {
			out = append(out, f)
		}
	}
	return out
}

// resets says that a client's segment is answered by a reset, from the VIP, each time.
func (f *flow) resets() {
	f.w.t.Helper()
	for range 2 {
		f.w.refused(datapath.FromContainer, f.from, packet.Spec{
			Src: f.client, Dst: f.vip, Protocol: f.proto, Flags: packet.ACK | packet.PSH, Seq: f.seq + 8, Ack: backendISN + 9, Payload: []byte("x"),
		}, "backend-gone")
	}
}

// mute says that what comes from c with the flow's tuple does not become the VIP's. (TCP: it may be a reset.)
func (f *flow) mute(c container) {
	f.w.t.Helper()
	answer := reply(f.target)
	answer.Flags, answer.Seq, answer.Ack, answer.Payload = packet.ACK, backendISN+9, f.seq+15, []byte("stale")
	verdict, got := f.w.fromContainer(c, answer)
	if verdict != drop && (got.Src == f.vip && got.Flags != packet.RST || len(got.Payload) > 0 && got.Dst == f.client && got.Src == f.vip) {
		f.w.t.Errorf("stale answer: verdict %d for %v", verdict, got)
	}
}

// moved says that the flow's next packet reaches another backend and is answered by it.
func (f *flow) moved(from container) {
	f.w.t.Helper()
	f.out(0, 0, 0)
	if f.backend.ifindex == from.ifindex {
		f.w.t.Fatalf("%v still goes to the backend that is gone", f.client)
	}
	f.back(0, 0, 0)
}

// give gives a backend id to something else, the way the proxy does.
func (w *world) give(id uint32, f func(*datapath.Backend)) {
	w.t.Helper()
	b, err := w.d.Backend(id)
	w.check(err)
	b.Gen++
	f(&b)
	w.d.ResetBackendStat(id, b.Group)
	w.putBackend(id, b)
}

func TestFlowsOfARemovedBackend(t *testing.T) {
	eachInOne(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		gone := w.containers[1]
		flows := w.flowsTo(gone, family, proto, 4)
		others := w.flowsTo(w.containers[0], family, proto, 4)
		before := w.pairs()
		n, err := w.d.RetireEndpoint(gone.ifindex, nil)
		if err != nil || n != 4 {
			t.Fatalf("retired %d: %v", n, err)
		}
		for _, f := range flows {
			f.mute(gone)
			if proto == lb.TCP {
				f.resets()
				f.out(packet.SYN, 90000, 0)
				if f.backend.ifindex == gone.ifindex {
					t.Error("a new connection went to a backend that is gone")
				}
				continue
			}
			f.moved(gone)
		}
		w.assertSame(others, before)
		w.assertWhole()
	})
}

// TestAnAddressThatBecameAnotherContainers: same address, same id, another veth. What was the old one's must
// not reach the stranger (kubernetes/kubernetes#139629, #141371).
func TestAnAddressThatBecameAnotherContainers(t *testing.T) {
	eachInOne(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		old, heir := w.containers[1], w.containers[2]
		w.service(serviceID, vips, w.containers[:2])
		flows := w.flowsTo(old, family, proto, 4)
		heir.addr = old.addr
		w.containers[2] = heir
		w.give(backendID(serviceID, 1, family, proto), func(b *datapath.Backend) {
			b.Ifindex = heir.ifindex
			copy(b.MAC[:], heir.mac)
		})
		w.containers = []container{w.containers[0], heir} // at the address there is only one
		for _, f := range flows {
			f.mute(heir) // before the client: the heir answers what it never was asked
			if proto == lb.TCP {
				f.resets()
				f.mute(heir)
				again := w.life(family, f.client.Port(), initial[1])
				again.run(open)
				if h := again.halves()[0]; again.backend.ifindex == heir.ifindex && h.ifindex != heir.ifindex {
					t.Errorf("delivered to veth %d, want %d", h.ifindex, heir.ifindex)
				}
				continue
			}
			f.establish()
			if f.backend.ifindex != heir.ifindex || f.target.DstMAC.String() != heir.mac.String() || f.halves()[0].ifindex != heir.ifindex {
				t.Errorf("went to %v by %+v", f.target, f.halves())
			}
			if p := f.pair(); p.BackendGen != 2 || p.Packets != [2]uint64{1, 1} {
				t.Errorf("pair %+v, want one that began anew", p)
			}
		}
		w.assertWhole()
	})
}

// TestAnIdThatBecameAnotherBackends: what the flows of the one before still do is not counted for it.
func TestAnIdThatBecameAnotherBackends(t *testing.T) {
	eachInOne(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.service(serviceID, vips, w.containers[:1])
		w.flowsTo(w.containers[0], family, proto, 5)
		id, heir := backendID(serviceID, 0, family, proto), w.containers[1]
		w.give(id, func(b *datapath.Backend) {
			b.Address, b.Ifindex = heir.addr[family], heir.ifindex
			copy(b.MAC[:], heir.mac)
		})
		f := w.flow(vips[family], family, proto, 50000)
		f.establish()
		if s := w.d.BackendStat(id); s.Active != 1 || s.Total != 1 || s.Packets != 0 {
			t.Errorf("counted %+v for one flow", s)
		}
		w.assertWhole()
		w.flush()
		if s := w.d.BackendStat(id); s.Active != 0 || s.Total != 1 || s.Packets != map[lb.Protocol]uint64{lb.TCP: 3, lb.UDP: 2}[proto] {
			t.Errorf("counted %+v after its one flow", s)
		}
	})
}

// remove takes a service away in the proxy's order: frontends, then backends.
func (w *world) remove(id uint32, vips [2]netip.Addr) {
	w.t.Helper()
	all, err := w.d.Frontends()
	w.check(err)
	var gone []lb.Frontend
	for key := range all {
		if key.VIP == vips[0] || key.VIP == vips[1] {
			gone = append(gone, key)
		}
	}
	w.check(w.d.DeleteFrontends(gone))
	backends, err := w.d.Backends()
	w.check(err)
	for bid, b := range backends {
		if b.Service == id {
			w.putBackend(bid, datapath.Backend{Gen: b.Gen + 1})
		}
	}
}

func TestFlowsOfARemovedService(t *testing.T) {
	eachInOne(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.service(2, vips2, w.containers)
		kept := w.flow(vips2[family], family, proto, 40000)
		kept.establish()
		f := w.flow(vips[family], family, proto, 40000)
		f.establish()
		before := w.pairs()
		w.remove(serviceID, vips)
		f.mute(f.backend)
		if proto == lb.TCP {
			f.resets()
		}
		// A new flow, and UDP's next packet, are to an address that is nobody's: not our packets.
		s := packet.Spec{Src: f.client, Dst: f.vip, Protocol: proto, Flags: packet.SYN, Seq: 1}
		if verdict, got := w.fromContainer(f.from, s); verdict != next || got.Dst != f.vip || got.Src != f.client {
			t.Errorf("to a VIP that is gone: verdict %d for %v", verdict, got)
		}
		if n := len(w.pairs()); n != 1 {
			t.Errorf("%d pairs, want that of the other service", n)
		}
		w.assertSame([]*flow{kept}, before)
		w.assertWhole()
	})
}

// TestFlowsOfAServiceMadeAnew: the same name, VIP and ids, but nothing of before counts (projectcalico/calico#9967:
// a UDP stream from a fixed port dies when its service is made anew).
func TestFlowsOfAServiceMadeAnew(t *testing.T) {
	eachInOne(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		f := w.flow(vips[family], family, proto, 40000)
		f.establish()
		w.remove(serviceID, vips)
		retired, err := w.d.Backends()
		w.check(err)
		w.service(serviceID, vips, w.containers) // writes generation 1, where the proxy goes on counting
		for id, b := range retired {
			w.give(id, func(made *datapath.Backend) { made.Gen = b.Gen + 1 })
		}
		f.mute(f.backend)
		if proto == lb.TCP {
			f.resets()
			w.life(family, 40000, initial[1]).run(open)
		} else {
			f.establish()
		}
		if p := f.pair(); p.BackendGen != 3 || p.State != established {
			t.Errorf("pair %+v, want a new one", p)
		}
		if n := w.active(); n != 1 {
			t.Errorf("%d active", n)
		}
		w.assertWhole()
	})
}

// TestADrainingBackendKeepsItsFlows: New is what it loses first, Live last.
func TestADrainingBackendKeepsItsFlows(t *testing.T) {
	eachInOne(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		leaving := w.containers[0]
		flows := w.flowsTo(leaving, family, proto, 5)
		before := w.pairs()
		w.change(leaving, func(b *datapath.Backend) { b.New = false })
		w.assertSame(flows, before)
		for port := uint16(50000); port < 50100; port++ {
			f := w.flow(vips[family], family, proto, port)
			if f.establish(); f.backend.ifindex == leaving.ifindex {
				t.Fatal("a new flow went to a backend that is draining")
			}
		}
		if proto == lb.TCP { // still to the end
			for _, f := range flows {
				f.out(packet.FIN|packet.ACK, f.seq+15, backendISN+17)
				f.back(packet.FIN|packet.ACK, backendISN+17, f.seq+23)
			}
		}
		w.check(w.retire(leaving))
		for _, f := range flows {
			f.mute(leaving)
		}
		w.assertWhole()
	})
}

func (w *world) retire(c container) error {
	_, err := w.d.RetireEndpoint(c.ifindex, nil)
	return err
}

// TestStaleAnswersByTheHost: a backend without our programs, or behind the host's stack, answers by to_container.
func TestStaleAnswersByTheHost(t *testing.T) {
	eachInOne(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.service(serviceID, vips, []container{outside()})
		s := packet.Spec{Src: netip.AddrPortFrom(w.client.addr[family], 40000), Dst: netip.AddrPortFrom(vips[family], servicePort), Protocol: proto, Flags: packet.SYN, Seq: 1}
		_, got := w.fromContainer(w.client, s)
		answer := reply(got)
		answer.Flags, answer.Seq, answer.Ack = packet.SYN|packet.ACK, backendISN, 2
		id := backendID(serviceID, 0, family, proto)
		b, err := w.d.Backend(id)
		w.check(err)
		b.Live, b.New = false, false
		w.putBackend(id, b)
		before := w.drops("backend-gone")
		if verdict, got := w.send(datapath.ToContainer, w.client, answer); verdict != drop || got.Src != answer.Src {
			t.Errorf("stale answer: verdict %d for %v", verdict, got)
		}
		if n := w.drops("backend-gone") - before; n != 1 {
			t.Errorf("counted %d times", n)
		}
		w.assertWhole()
	})
}

// TestStaleFlowsOfTheHost are those of its processes, at tclb0.
func TestStaleFlowsOfTheHost(t *testing.T) {
	eachInOne(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		s := packet.Spec{
			Src: netip.AddrPortFrom(outside().addr[family], 50000), Dst: netip.AddrPortFrom(vips[family], servicePort),
			Protocol: proto, Flags: packet.SYN, Seq: 1,
		}
		_, got := w.send(datapath.FromHost, w.host, s)
		gone := w.containerOf(got)
		w.check(w.retire(gone))
		if proto == lb.TCP {
			data := s
			data.Flags, data.Seq, data.Ack = packet.ACK, 2, backendISN+1
			w.refused(datapath.FromHost, w.host, data, "backend-gone")
		}
		verdict, got := w.send(datapath.FromHost, w.host, s)
		if verdict != redirect || w.containerOf(got).ifindex == gone.ifindex {
			t.Errorf("verdict %d for %v", verdict, got)
		}
		if n := len(w.pairs()); n != 1 {
			t.Errorf("%d pairs", n)
		}
		w.assertWhole()
	})
}
