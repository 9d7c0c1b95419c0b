package userspace

import (
	"net/netip"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

func TestAFlowIsCountedOnceInItsLife(t *testing.T) {
	for _, c := range []struct {
		front  lb.Frontend
		active [3]uint64 // after Begin, Connected, Closing
	}{{tcpFront, [3]uint64{0, 1, 0}}, {udpFront, [3]uint64{1, 1, 0}}} {
		w := newWorld(t, plan{backends: 1})
		f := w.begin(c.front, 40000)
		step := func(n int, load uint64) {
			t.Helper()
			if s := w.stat(0); s.Active != c.active[n] || s.Load != load || s.Total != 1 || w.m.Group(groupID).Load != int64(load) {
				t.Errorf("%s, step %d: %+v, group %+v", c.front.Protocol, n, s, w.m.Group(groupID))
			}
			w.settled()
		}
		step(0, 1)
		f.Connected()
		f.Connected()
		step(1, 1)
		f.Sent(2, 300)
		f.Answered(3, 4000)
		f.Closing()
		f.Closing()
		step(2, 0)
		f.End()
		f.End()
		f.Closing()
		step(2, 0)
		if s := w.stat(0); s.Packets != 5 || s.Bytes != 4300 {
			t.Errorf("%s: %d packets, %d bytes are left of it", c.front.Protocol, s.Packets, s.Bytes)
		}
		w.check(w.m.Pairs(func(p datapath.Pair) bool { t.Errorf("still there: %+v", p); return true }))
	}
}

func TestAPairShowsTheFlow(t *testing.T) {
	w := newWorld(t, plan{backends: 1})
	f := w.begin(tcpFront, 40000)
	f.Connected()
	w.pass(3 * time.Second)
	f.Sent(1, 100)
	f.Answered(2, 2000)
	w.pass(2 * time.Second)
	var got []datapath.Pair
	w.check(w.m.Pairs(func(p datapath.Pair) bool { got = append(got, p); return true }))
	want := datapath.Pair{
		Index: f.index, Protocol: lb.TCP, Client: clientAt(40000), VIP: netip.AddrPortFrom(vip, 80), Backend: f.Backend(), State: datapath.FlowEstablished,
		Active: true, Service: serviceID, BackendID: w.ids[0], BackendGen: 1, Created: 5 * time.Second, Idle: 2 * time.Second,
		Packets: [2]uint64{1, 2}, Bytes: [2]uint64{100, 2000},
	}
	if len(got) != 1 || got[0] != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
