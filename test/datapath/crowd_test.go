package datapath

import (
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// crowded is a world all of whose flows have the same two buckets, which is chance otherwise: one flow in some
// hundred millions where the table is full.
func crowded(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, 3)
	m := w.openMap(bpf.MapsMapSettings)
	var s bpf.MapsNodeSettings
	w.check(m.Lookup(uint32(0), &s))
	s.Keys = [5]uint64{}
	w.check(m.Put(uint32(0), &s))
	return w
}

const bucketFlows = 7 // two buckets of seven slots, two halves a flow

func TestAFlowTakesAPlaceInACrowdedIndex(t *testing.T) {
	w := crowded(t)
	for port := range uint16(bucketFlows) {
		w.flow(vips[0], 0, lb.UDP, 40000+port).establish()
		w.age(w.pairs()[0].Index, 0)
	}
	oldest := w.flow(vips[0], 0, lb.UDP, 40002)
	w.age(oldest.pair().Index, time.Second)
	w.flow(vips[0], 0, lb.UDP, 50000).establish()
	if n := len(w.pairs()); n != bucketFlows || oldest.pair().Client.IsValid() {
		t.Errorf("%d pairs, of the oldest %+v", n, oldest.pair())
	}
	if r := w.rooms()["established"]; r.Evicted != 1 {
		t.Errorf("%+v", r)
	}
	w.noDrops()
	w.assertWhole()
}

// A half-open flow never takes the place of an established one, as in the rooms.
func TestACrowdedIndexKeepsItsRoomsApart(t *testing.T) {
	w := crowded(t)
	for port := range uint16(bucketFlows - 1) {
		w.flow(vips[0], 0, lb.UDP, 40000+port).establish()
	}
	w.flow(vips[0], 0, lb.TCP, 40000).out(packet.SYN, 1, 0)
	w.flow(vips[0], 0, lb.TCP, 40001).out(packet.SYN, 1, 0)
	if o, e := w.rooms()["opening"], w.rooms()["established"]; o.Live != 1 || o.Evicted != 1 || e.Live != bucketFlows-1 || e.Evicted != 0 {
		t.Errorf("opening %+v, established %+v", o, e)
	}
	w.flush()
	for port := range uint16(bucketFlows) {
		w.flow(vips[0], 0, lb.UDP, 40000+port).establish()
	}
	if verdict, _ := w.fromContainer(w.client, visitor(w)); verdict != drop || w.drops("conntrack-full") != 1 || len(w.pairs()) != bucketFlows {
		t.Errorf("verdict %d, %d pairs", verdict, len(w.pairs()))
	}
	w.assertWhole()
}

func visitor(w *world) packet.Spec {
	f := w.flow(vips[0], 0, lb.TCP, 50000)
	return ask(f.client, f.vip, lb.TCP)
}
