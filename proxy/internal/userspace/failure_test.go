package userspace

import (
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

func TestARefusedFlowGetsTwoMoreChances(t *testing.T) {
	for _, how := range []Failure{Refused, Unanswered} {
		w := newWorld(t, plan{backends: 5})
		f := w.begin(tcpFront, 40000)
		met := map[int]bool{w.at(f): true}
		for range 2 {
			if !f.Failed(how) {
				t.Fatal("no other one")
			}
			met[w.at(f)] = true
			w.settled()
		}
		if len(met) != 3 || w.drops(datapath.DropSecondChance) != 2 {
			t.Errorf("met %v, %d second chances", met, w.drops(datapath.DropSecondChance))
		}
		if f.Failed(how) {
			t.Error("a third one")
		}
		var total, load, syns, rejected int
		for i := range w.ids {
			s := w.stat(i)
			total, load, syns, rejected = total+int(s.Total), load+int(s.Load), syns+int(s.SYNs), rejected+int(s.Rejected)
		}
		if want := map[Failure]int{Refused: 3}[how]; total != 3 || syns != 3 || load != 0 || rejected != want {
			t.Errorf("total %d, SYNs %d, load %d, rejected %d, want 3, 3, 0, %d", total, syns, load, rejected, want)
		}
		f.End()
		w.settled()
	}
}

func TestWhoRefusedIsPassedOverUntilItAnswers(t *testing.T) {
	w := newWorld(t, plan{backends: 2})
	early := w.begin(tcpFront, 39000)
	bad := w.at(early)
	f := w.begin(tcpFront, 40000)
	for port := 40001; w.at(f) != bad; port++ {
		f = w.begin(tcpFront, port)
	}
	f.Failed(Refused)
	w.pass(2900 * time.Millisecond)
	if got := w.spread(50, 41000); got[bad] != 0 {
		t.Errorf("%d went to who refused", got[bad])
	}
	early.Connected()
	if got := w.spread(50, 42000); got[bad] == 0 {
		t.Error("its answer was not believed")
	}
	f = early
	for port := 43000; f == early || w.at(f) != bad; port++ {
		f = w.begin(tcpFront, port)
	}
	f.Failed(Refused)
	w.pass(3100 * time.Millisecond)
	if got := w.spread(50, 50000); got[bad] == 0 {
		t.Error("it is never forgiven")
	}
}

// All have refused just now: that is no reason to serve nobody, nor to try them all again.
func TestWhereAllRefuseTheFlowEnds(t *testing.T) {
	w := newWorld(t, plan{backends: 2})
	f := w.begin(tcpFront, 40000)
	if !f.Failed(Refused) || f.Failed(Refused) {
		t.Error("not one other chance")
	}
	if g := w.begin(tcpFront, 40001); g.Failed(Refused) {
		t.Error("a chance with nobody to give it")
	}
}

// Where containers start one after the other, a refused flow goes to who has answered before.
func TestARefusedFlowPrefersWhoHasAnswered(t *testing.T) {
	w := newWorld(t, plan{backends: 20})
	proven := w.begin(tcpFront, 39000)
	proven.Connected()
	for port := range 50 {
		f := w.begin(tcpFront, 40000+port)
		if w.at(f) == w.at(proven) {
			continue
		}
		if f.Failed(Refused); w.at(f) != w.at(proven) {
			t.Fatalf("it went to %d, but %d has answered", w.at(f), w.at(proven))
		}
	}
}

func TestARefusedDatagramIsCountedAndTheFlowStays(t *testing.T) {
	w := newWorld(t, plan{backends: 3})
	f := w.begin(udpFront, 40000)
	at := w.at(f)
	if f.Failed(Refused) || f.Failed(Unanswered) {
		t.Error("another backend for datagrams")
	}
	if s := w.stat(at); s.Rejected != 1 || s.Active != 1 || w.at(f) != at {
		t.Errorf("%+v", s)
	}
}

func TestFailuresOfAnEstablishedFlowSayNothing(t *testing.T) {
	w := newWorld(t, plan{backends: 2})
	f := w.begin(tcpFront, 40000)
	f.Connected()
	at := w.at(f)
	if f.Failed(Refused) {
		t.Error("another backend for an established flow")
	}
	if s := w.stat(at); s.Rejected != 0 || s.Active != 1 || s.Answered != 1 {
		t.Errorf("%+v", s)
	}
}

func TestLatencyIsMeasured(t *testing.T) {
	w := newWorld(t, plan{scheduler: 5, backends: 1})
	f := w.begin(tcpFront, 40000)
	w.pass(4 * time.Millisecond)
	f.Connected()
	w.pass(time.Second)
	f.Sent(1, 100)
	w.pass(7 * time.Millisecond)
	f.Sent(1, 100)
	w.pass(5 * time.Millisecond)
	f.Answered(1, 100)
	f.Answered(1, 100)
	if s := w.stat(0); s.SYNLatency != 4*time.Millisecond || s.FirstLatency != 12*time.Millisecond {
		t.Errorf("SYN %s, first %s", s.SYNLatency, s.FirstLatency)
	}
	// Nothing is learnt where the backend speaks first, nor of a datagram that was not the only one.
	g := w.begin(tcpFront, 40001)
	g.Connected()
	g.Answered(1, 100)
	g.Sent(1, 1)
	w.pass(time.Minute)
	g.Answered(1, 1)
	u := w.begin(udpFront, 40002)
	u.Sent(1, 1)
	u.Sent(1, 1)
	w.pass(time.Minute)
	u.Answered(1, 1)
	if s := w.stat(0); s.FirstLatency != 12*time.Millisecond {
		t.Errorf("first %s", s.FirstLatency)
	}
	v := w.begin(udpFront, 40003)
	v.Sent(1, 1)
	w.pass(30 * time.Millisecond)
	v.Answered(1, 1)
	if s := w.stat(0); s.FirstLatency != 30*time.Millisecond {
		t.Errorf("first %s, want the datagram's 30ms", s.FirstLatency)
	}
}

func TestAnswersToSYNsAreCounted(t *testing.T) {
	w := newWorld(t, plan{backends: 1})
	f := w.begin(tcpFront, 40000)
	f.Connected()
	w.begin(tcpFront, 40001).Failed(Refused)
	w.begin(tcpFront, 40002)
	w.begin(udpFront, 40003)
	if s := w.stat(0); s.SYNs != 3 || s.Answered != 1 || s.Rejected != 1 || s.Total != 4 {
		t.Errorf("%+v", s)
	}
}
