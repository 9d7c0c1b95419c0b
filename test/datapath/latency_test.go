package datapath

import (
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

const late = 30 * time.Millisecond

func TestLatencyIsMeasured(t *testing.T) {
	w := scheduledWorld(t, 1, schedule{scheduler: lb.Latency})
	f, _ := w.begin(40000)
	time.Sleep(late)
	f.back(packet.SYN|packet.ACK, backendISN, f.seq+8)
	between := func(what string, got, least time.Duration) {
		t.Helper()
		if got < least || got > least+time.Second {
			t.Errorf("%s: %s, want about %s", what, got, least)
		}
	}
	between("handshake", w.stat(0).SYNLatency, late)
	if got := w.stat(0).FirstLatency; got != 0 {
		t.Errorf("a first response was measured before there was any: %s", got)
	}
	time.Sleep(late) // the client takes its time: that is not the backend's
	f.out(packet.ACK, f.seq+8, backendISN+1)
	time.Sleep(2 * late)
	f.back(packet.ACK, backendISN+1, f.seq+15)
	between("response", w.stat(0).FirstLatency, 2*late)
	time.Sleep(4 * late)
	f.out(packet.ACK, f.seq+15, backendISN+9)
	time.Sleep(4 * late)
	f.back(packet.ACK, backendISN+9, f.seq+22)
	if got := w.stat(0).FirstLatency; got >= 4*late {
		t.Errorf("a later response was measured: %s", got)
	}
}

func TestLatencyOfUDPIsItsFirstAnswer(t *testing.T) {
	w := scheduledWorld(t, 1, schedule{scheduler: lb.Latency})
	all, err := w.d.Frontends()
	w.check(err)
	udp := scheduledKey()
	udp.Protocol = lb.UDP
	f := all[udp]
	f.Scheduler = lb.Latency
	w.check(w.d.PutFrontends(map[lb.Frontend]datapath.Frontend{udp: f}))
	stat := func() time.Duration { return w.d.BackendStat(backendID(serviceID, 0, 0, lb.UDP)).FirstLatency }

	asked := w.flow(vips[0], 0, lb.UDP, 40000)
	asked.out(0, 0, 0)
	asked.out(0, 0, 0) // a second question: nobody knows which one is answered
	time.Sleep(late)
	asked.back(0, 0, 0)
	if got := stat(); got != 0 {
		t.Errorf("the answer to one of two was measured: %s", got)
	}
	once := w.flow(vips[0], 0, lb.UDP, 40001)
	once.out(0, 0, 0)
	time.Sleep(late)
	once.back(0, 0, 0)
	if got := stat(); got < late || got > late+time.Second {
		t.Errorf("%s measured, want about %s", got, late)
	}
}

// Where the backend speaks first there is no request whose answer could be late.
func TestNothingIsMeasuredOfABackendThatSpeaksFirst(t *testing.T) {
	w := scheduledWorld(t, 1, schedule{scheduler: lb.Latency})
	f, _ := w.begin(40000)
	f.back(packet.SYN|packet.ACK, backendISN, f.seq+8)
	w.bare(f, packet.ACK, f.seq+8, backendISN+1)
	f.back(packet.ACK, backendISN+1, f.seq+8)
	time.Sleep(late)
	f.out(packet.ACK, f.seq+8, backendISN+9)
	f.back(packet.ACK, backendISN+9, f.seq+15)
	if got := w.stat(0).FirstLatency; got != 0 {
		t.Errorf("%s measured", got)
	}
}

// bare sends a packet of the client's without data.
func (w *world) bare(f *flow, flags packet.Flags, seq, ack uint32) {
	w.t.Helper()
	if verdict, got := w.fromContainer(f.from, packet.Spec{Src: f.client, Dst: f.vip, Protocol: f.proto, Flags: flags, Seq: seq, Ack: ack}); verdict != redirect {
		w.t.Fatalf("verdict %d for %v", verdict, got)
	}
}

// A SYN that has to be repeated took as long as that at least; what its answer takes says nothing.
func TestARepeatedSYNCountsAsSlow(t *testing.T) {
	w := scheduledWorld(t, 1, schedule{scheduler: lb.Latency})
	f, _ := w.begin(40000)
	time.Sleep(late)
	f.out(packet.SYN, f.seq, 0)
	first := w.stat(0).SYNLatency
	if first < late {
		t.Errorf("%s learnt from a repeated SYN, want %s at least", first, late)
	}
	time.Sleep(3 * late)
	f.back(packet.SYN|packet.ACK, backendISN, f.seq+8)
	if got := w.stat(0).SYNLatency; got != first {
		t.Errorf("its answer was measured: %s, before %s", got, first)
	}
}

func TestLatencyAvoidsTheSlow(t *testing.T) {
	w := scheduledWorld(t, 3, schedule{scheduler: lb.Latency})
	slow := func(port uint16) {
		f := w.flow(vips[0], 0, lb.TCP, port)
		f.out(packet.SYN, f.seq, 0)
		if w.indexOf(f.backend) == 1 {
			time.Sleep(late)
		}
		f.back(packet.SYN|packet.ACK, backendISN, f.seq+8)
		f.out(packet.FIN|packet.ACK, f.seq+8, backendISN+1)
		f.back(packet.FIN|packet.ACK, backendISN+1, f.seq+16)
	}
	for port := uint16(40000); port < 40020; port++ {
		slow(port) // all are measured once
	}
	before := w.stat(1).Total
	for port := uint16(41000); port < 41100; port++ {
		slow(port)
	}
	if n := w.stat(1).Total - before; n > 10 {
		t.Errorf("the slow one got %d of 100 flows", n)
	}
	// What was slow is forgotten: it is tried again.
	for deadline := time.Now().Add(20 * time.Second); w.stat(1).Total-before <= 12; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it is never tried again")
		}
		w.flush()
		w.spread(20, 42000)
	}
}

// A slow answer counts at once, faster ones after it by and by: within a moment it is not forgotten.
func TestAFastAnswerDoesNotHideASlowOne(t *testing.T) {
	w := scheduledWorld(t, 1, schedule{scheduler: lb.Latency})
	slow, _ := w.begin(40000)
	time.Sleep(5 * late)
	slow.back(packet.SYN|packet.ACK, backendISN, slow.seq+8)
	time.Sleep(2 * late) // so long that a faster one counts at all
	fast, _ := w.begin(40001)
	fast.back(packet.SYN|packet.ACK, backendISN, fast.seq+8)
	if got := w.stat(0).SYNLatency; got < 2*late || got >= 5*late {
		t.Errorf("%s, want somewhat less than %s", got, 5*late)
	}
}

// One flow in eight is measured where the scheduler does not need it; the others stay on the short way.
func TestSomeFlowsAreMeasuredEverywhere(t *testing.T) {
	w := scheduledWorld(t, 1, schedule{scheduler: lb.Maglev})
	measured := 0
	for port := uint16(40000); port < 40016; port++ {
		f := w.flow(vips[0], 0, lb.TCP, port)
		before := w.stat(0).SYNLatency
		f.out(packet.SYN, f.seq, 0)
		time.Sleep(late + time.Duration(port-40000)*2*time.Millisecond) // each longer than the one before
		f.back(packet.SYN|packet.ACK, backendISN, f.seq+8)
		if w.stat(0).SYNLatency != before {
			measured++
		}
	}
	if measured != 2 {
		t.Errorf("%d of 16 flows were measured, want 2", measured)
	}
}
