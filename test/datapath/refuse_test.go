package datapath

import (
	"bytes"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// refused sends a packet that must come back to its sender as a reset or a port unreachable, and be
// counted.
func (w *world) refused(program string, on container, s packet.Spec, reason string) {
	w.t.Helper()
	s.SrcMAC = on.mac
	sent, err := s.Build()
	w.check(err)
	before := w.drops(reason)
	verdict, got := w.send(program, on, s)
	if verdict != redirect || got.Src.Addr() != s.Dst.Addr() || got.Dst.Addr() != s.Src.Addr() || got.DstMAC.String() != on.mac.String() {
		w.t.Fatalf("verdict %d for %v, want an answer to %v", verdict, got, s)
	}
	if n := w.drops(reason) - before; n != 1 {
		w.t.Errorf("%s counted %d times", reason, n)
	}
	if s.Protocol == lb.UDP {
		want := packet.ICMP{Type: 3, Code: 3}
		quoted := 14 + 20 + 8
		if s.Src.Addr().Is6() {
			want, quoted = packet.ICMP{Type: 1, Code: 4}, 14+40+8
		}
		if got.ICMP == nil || got.ICMP.Type != want.Type || got.ICMP.Code != want.Code || !bytes.Equal(got.ICMP.Quote, sent[14:quoted]) {
			w.t.Errorf("want ICMP %d/%d quoting the packet, got %v", want.Type, want.Code, got)
		}
		return
	}
	seq, ack, flags := uint32(0), s.Seq+1+uint32(len(s.Payload)), packet.RST|packet.ACK
	if s.Flags&packet.ACK != 0 {
		seq, ack, flags = s.Ack, 0, packet.RST
	}
	if got.Src != s.Dst || got.Dst != s.Src || got.Flags != flags || got.Seq != seq || got.Ack != ack || len(got.Payload) > 6 {
		w.t.Errorf("want a reset for %v, got %v", s, got)
	}
}

func TestNothingPassesFromHostToAnUnknownPort(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.refused(datapath.FromHost, w.host, packet.Spec{
			Src: netip.AddrPortFrom(outside().addr[family], 50000), Dst: netip.AddrPortFrom(vips[family], 81),
			Protocol: proto, Flags: packet.SYN, Seq: 5, Payload: []byte("twenty bytes or more"),
		}, "no-frontend")
	})
}

func TestAServiceWithoutBackendsRefuses(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		for _, c := range w.containers {
			w.change(c, func(b *datapath.Backend) { b.New = false })
		}
		s := packet.Spec{
			Src: netip.AddrPortFrom(w.client.addr[family], 40000), Dst: netip.AddrPortFrom(vips[family], servicePort),
			Protocol: proto, Flags: packet.SYN, Seq: 5,
		}
		w.refused(datapath.FromContainer, w.client, s, "no-backend")
		s.Flags, s.Ack = packet.ACK, 99
		w.refused(datapath.FromContainer, w.client, s, "no-backend")
		if proto == lb.TCP {
			s.Flags = packet.RST
			if verdict, _ := w.fromContainer(w.client, s); verdict != drop {
				t.Errorf("a reset was answered: verdict %d", verdict)
			}
		}
	})
}

func TestWhatARemovedBackendAnswersResetsItsClient(t *testing.T) {
	for family := range families {
		w := newWorld(t, 3)
		f := w.flow(vips[family], family, lb.TCP, 40000)
		f.establish()
		if _, err := w.d.RetireEndpoint(f.backend.ifindex, nil); err != nil {
			t.Fatal(err)
		}
		answer := reply(f.target)
		answer.Flags, answer.Seq, answer.Ack, answer.Payload = packet.ACK|packet.PSH, backendISN+1, f.seq+9, []byte("too late")
		verdict, got := w.fromContainer(f.backend, answer)
		if verdict != redirect || got.Src != f.vip || got.Dst != f.client || got.Flags != packet.RST || got.Seq != backendISN+1 ||
			got.DstMAC.String() != w.client.mac.String() {
			t.Errorf("verdict %d for %v, want a reset from the VIP to the client", verdict, got)
		}
		answer.Flags = packet.RST
		if verdict, _ := w.fromContainer(f.backend, answer); verdict != drop {
			t.Errorf("the backend's own reset: verdict %d", verdict)
		}
	}
}

// limitAnswers stays on one CPU, with a bucket that holds three answers and gets no more.
func (w *world) limitAnswers() {
	w.t.Helper()
	cpu := unix.CPUSet{}
	cpu.Set(0)
	var before unix.CPUSet
	w.check(unix.SchedGetaffinity(0, &before))
	w.check(unix.SchedSetaffinity(0, &cpu))
	w.t.Cleanup(func() { _ = unix.SchedSetaffinity(0, &before) })
	// Filled in the future, as far as a tick can be.
	bucket := bpf.MapsRejectBucket{Filled: w.tick() + 1<<30, Tokens: 3}
	all := make([]bpf.MapsRejectBucket, ebpf.MustPossibleCPU())
	for i := range all {
		all[i] = bucket
	}
	w.check(w.openMap(bpf.MapsMapRejectBuckets).Put(uint32(0), all))
}

func TestAnswersAreLimitedInRate(t *testing.T) {
	w := newWorld(t, 1)
	w.limitAnswers()
	answered := 0
	for i := range 20 {
		verdict, _ := w.send(datapath.FromHost, w.host, packet.Spec{
			Src: netip.AddrPortFrom(outside().addr[0], uint16(1024+i)), Dst: netip.AddrPortFrom(vips[0], 81), Protocol: lb.TCP, Flags: packet.SYN,
		})
		if verdict == redirect {
			answered++
		}
	}
	if answered != 3 || w.drops("rate-limited") != 17 {
		t.Errorf("%d of 20 answered, %d counted as limited", answered, w.drops("rate-limited"))
	}
}

// tick reads the programs' clock.
func (w *world) tick() uint32 {
	w.t.Helper()
	p, err := ebpf.LoadPinnedProgram(filepath.Join(w.d.Dir(), "progs", bpf.CtSweepProgCtSweep), nil)
	w.check(err)
	defer p.Close()
	var ctx bpf.MapsSweep
	_, err = p.Run(&ebpf.RunOptions{Context: &ctx, ContextOut: &ctx})
	w.check(err)
	return ctx.Now
}
