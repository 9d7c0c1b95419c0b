package userspace

import (
	"errors"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// gone begins a flow whose end is counted.
func (w *world) watched(front lb.Frontend, port int) (*Flow, *ends) {
	w.t.Helper()
	e := new(ends)
	f, err := w.m.Begin(front, clientAt(port), e.gone)
	w.check(err)
	return f, e
}

func TestFlowsEndWithTheirBackend(t *testing.T) {
	for name, remove := range map[string]func(w *world){
		"another generation": func(w *world) { w.change(0, func(b *datapath.Backend) { b.Gen++ }) },
		"not live":           func(w *world) { w.change(0, func(b *datapath.Backend) { b.Live, b.New = false, false }) },
		"retired": func(w *world) {
			w.check(w.m.PutBackends(w.ids[:1], []datapath.Backend{{Gen: 2}}))
			w.m.ResetBackendStat(w.ids[0], groupID)
		},
		"its endpoint": func(w *world) {
			w.change(0, func(b *datapath.Backend) { b.Ifindex = 5 })
			if n, err := w.m.RetireEndpoint(5, nil); n != 1 || err != nil {
				w.t.Errorf("retired %d, %v", n, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, plan{backends: 1})
			f, of := w.watched(tcpFront, 40000)
			f.Connected()
			u, ou := w.watched(udpFront, 40001)
			o, oo := w.watched(tcpFront, 40002) // opening
			remove(w)
			if of.n.Load() != 1 || ou.n.Load() != 1 || oo.n.Load() != 0 {
				t.Errorf("told: TCP %d, UDP %d, opening %d; want 1, 1, 0", of.n.Load(), ou.n.Load(), oo.n.Load())
			}
			if s := w.stat(0); s.Active != 0 {
				t.Errorf("%d are active", s.Active)
			}
			w.settled()
			o.Connected() // it answered nevertheless
			if oo.n.Load() != 1 {
				t.Error("a connection to a backend that is gone goes on")
			}
			_, err := w.m.Sweep(datapath.SweepRequest{Flush: true})
			w.check(err)
			if of.n.Load() != 1 || oo.n.Load() != 1 {
				t.Errorf("told twice: %d, %d", of.n.Load(), oo.n.Load())
			}
			for _, flow := range []*Flow{f, u, o} {
				flow.Closing()
				flow.End()
			}
			w.settled()
			if n := w.drops(datapath.DropBackendGone); n != 3 {
				t.Errorf("%d counted, want 3", n)
			}
			if s := w.stat(0); s.Load != 0 || w.m.Group(groupID).Load != 0 {
				t.Errorf("%+v, %+v", s, w.m.Group(groupID))
			}
		})
	}
}

// A backend that drains keeps what it has.
func TestFlowsOutliveADrain(t *testing.T) {
	w := newWorld(t, plan{backends: 1})
	f, end := w.watched(tcpFront, 40000)
	f.Connected()
	w.change(0, func(b *datapath.Backend) { b.New = false })
	if end.n.Load() != 0 || w.stat(0).Active != 1 {
		t.Error("it ended")
	}
}

func TestAnOpeningFlowWhoseBackendGoesFindsAnother(t *testing.T) {
	w := newWorld(t, plan{backends: 2})
	f, end := w.watched(tcpFront, 40000)
	at := w.at(f)
	w.change(at, func(b *datapath.Backend) { *b = datapath.Backend{Gen: 2} })
	if !f.Failed(Unanswered) || w.at(f) == at || end.n.Load() != 0 {
		t.Fatalf("it is at %d still", w.at(f))
	}
	f.Connected()
	if s := w.stat(1 - at); s.Active != 1 || end.n.Load() != 0 {
		t.Errorf("%+v, told %d", s, end.n.Load())
	}
	w.settled()
}

// The next generation of a backend begins with nothing of the one before.
func TestAGenerationBeginsAtZero(t *testing.T) {
	w := newWorld(t, plan{backends: 1})
	old := w.begin(tcpFront, 40000)
	old.Sent(1, 10)
	w.change(0, func(b *datapath.Backend) { b.Gen++ })
	w.m.ResetBackendStat(w.ids[0], groupID)
	if s := w.stat(0); s != (datapath.BackendStat{}) || w.m.Group(groupID).Load != 0 {
		t.Errorf("%+v, %+v", s, w.m.Group(groupID))
	}
	w.begin(tcpFront, 40001)
	old.End()
	if s := w.stat(0); s.Load != 1 || s.Packets != 0 || w.m.Group(groupID).Load != 1 {
		t.Errorf("%+v, %+v", s, w.m.Group(groupID))
	}
	w.change(0, func(b *datapath.Backend) { b.Group = groupID + 1 })
	w.m.MoveLoad(w.ids[0], groupID, groupID+1)
	if a, b := w.m.Group(groupID).Load, w.m.Group(groupID+1).Load; a != 0 || b != 1 {
		t.Errorf("after a move the groups have %d and %d", a, b)
	}
	w.settled()
}

// A backend that is taken away between its choice and the flow leaves nothing counted.
func TestWhoIsRetiredMeanwhileIsNotTaken(t *testing.T) {
	w := newWorld(t, plan{backends: 2})
	f := &Flow{front: tcpFront, question: question{m: w.m}}
	w.change(1, func(b *datapath.Backend) { *b = datapath.Backend{Gen: 2} })
	if taken, err := f.take(w.ids[1]); taken || err != nil {
		t.Fatalf("%t, %v", taken, err)
	}
	w.empty(nil)
	if r, _ := w.m.Rooms(); r[datapath.RoomOpening].Created != 0 {
		t.Errorf("%+v", r)
	}
}

func TestFlushEndsFlows(t *testing.T) {
	w := newWorld(t, plan{backends: 2})
	f, of := w.watched(tcpFront, 40000)
	_, oo := w.watched(tcpFront, 40001)
	f.Connected()
	f.Sent(1, 100)
	flush := func(service, want uint32) {
		t.Helper()
		if r, err := w.m.Sweep(datapath.SweepRequest{Flush: true, Service: service}); r.Removed != want || err != nil {
			t.Errorf("%+v, %v; want %d removed", r, err, want)
		}
	}
	flush(serviceID+1, 0)
	flush(serviceID, 2)
	flush(0, 0)
	f.End()
	if of.n.Load() != 1 || oo.n.Load() != 1 || w.stat(0).Load+w.stat(1).Load != 0 || w.stat(0).Bytes+w.stat(1).Bytes != 100 {
		t.Errorf("told %d and %d; %+v %+v", of.n.Load(), oo.n.Load(), w.stat(0), w.stat(1))
	}
	w.settled()
}

func TestIdleFlowsExpire(t *testing.T) {
	short := datapath.DefaultTimeouts
	short.UDP = 5 * time.Second
	for _, c := range []struct {
		name   string
		begin  func(w *world) *Flow
		want   time.Duration
		expiry datapath.Room
	}{
		{"opening", func(w *world) *Flow { return w.begin(tcpFront, 1) }, short.TCPSyn, datapath.RoomOpening},
		{"established", func(w *world) *Flow { f := w.begin(tcpFront, 1); f.Connected(); return f }, short.TCPEstablished, datapath.RoomEstablished},
		{"closing", func(w *world) *Flow { f := w.begin(tcpFront, 1); f.Closing(); return f }, short.TCPFin, datapath.RoomClosing},
		{"datagram", func(w *world) *Flow { f := w.begin(udpFront, 1); f.Sent(1, 1); return f }, short.UDP, datapath.RoomEstablished},
		{"answered", func(w *world) *Flow { f := w.begin(udpFront, 1); f.Answered(1, 1); return f }, short.UDPStream, datapath.RoomEstablished},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, plan{backends: 1})
			w.check(w.m.PutService(serviceID, datapath.Service{Gen: 1, Timeouts: short}))
			f := c.begin(w)
			if got := f.Idle(); got != c.want {
				t.Errorf("idle time %s, want %s", got, c.want)
			}
			sweep := func(want uint32) {
				t.Helper()
				if r, err := w.m.Sweep(datapath.SweepRequest{}); r.Removed != want || err != nil {
					t.Errorf("%+v, %v; want %d removed", r, err, want)
				}
			}
			w.pass(c.want)
			sweep(0)
			f.Sent(1, 1)
			w.pass(c.want)
			sweep(0)
			w.pass(time.Millisecond)
			sweep(1)
			if r, _ := w.m.Rooms(); r[c.expiry].Expired != 1 || r[c.expiry].Live != 0 {
				t.Errorf("%+v", r)
			}
			w.settled()
		})
	}
}

func TestTheSweepComesRound(t *testing.T) {
	w := newWorld(t, plan{backends: 1})
	for port := range 640 {
		w.begin(tcpFront, port)
	}
	w.pass(time.Hour)
	removed := uint32(0)
	for range 100 {
		r, err := w.m.Sweep(datapath.SweepRequest{Max: 7})
		w.check(err)
		if r.Looked > 7+20 {
			t.Fatalf("looked at %d", r.Looked)
		}
		removed += r.Removed
	}
	if removed != 640 {
		t.Errorf("%d of 640 removed", removed)
	}
}

// Nobody who is there gives way to a new flow, but for who was idle for too long.
func TestAFullTableRefusesNewFlows(t *testing.T) {
	w := newWorld(t, plan{backends: 1, sizes: datapath.Sizes{MaxServices: 8, MaxBackends: 64, TableSlots: 16384, MaxConntrack: 400}})
	var flows []*Flow
	refused := func(front lb.Frontend) {
		t.Helper()
		if f, err := w.m.Begin(front, clientAt(9), nil); !errors.Is(err, ErrFull) {
			t.Errorf("%v, %v", f, err)
		}
	}
	for port := range 100 {
		flows = append(flows, w.begin(tcpFront, 1000+port))
	}
	refused(tcpFront) // a quarter is opening
	for port := range 300 {
		flows = append(flows, w.begin(udpFront, 2000+port))
	}
	refused(udpFront)
	flows[399].GiveWay()
	flows[399].End()
	flows[399] = w.begin(udpFront, 3000)
	if rooms, err := w.m.Rooms(); err != nil || rooms[datapath.RoomEstablished].Evicted != 1 || rooms[datapath.RoomOpening].Evicted != 0 {
		t.Errorf("rooms %+v, %v", rooms, err)
	}
	for _, f := range flows[:100] {
		f.Connected()
	}
	refused(tcpFront)
	if n := w.drops(datapath.DropFull); n != 3 {
		t.Errorf("%d counted, want 3", n)
	}
	flows[0].Closing()
	flows[0] = w.begin(tcpFront, 3000)
	w.pass(datapath.DefaultTimeouts.UDP + time.Second)
	w.begin(tcpFront, 3001) // datagrams without an answer have expired
	r, err := w.m.Rooms()
	w.check(err)
	if e := r[datapath.RoomEstablished]; e.Expired != 300 || e.Live != 99 || e.Capacity != 400 || r[datapath.RoomOpening].Live != 2 {
		t.Errorf("%+v", r)
	}
	w.settled()
}
