package attach

import (
	"errors"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestFiltersRunAndTakeTheirQdiscWithThem(t *testing.T) {
	inNamespace(t, func(b *bench) {
		in, seenIn := b.program("from_container")
		out, seenOut := b.program("to_container")
		if l := b.attach(in, Ingress, "x-in", KindClsact, KindIngress); l.Kind != KindClsact {
			b.Fatalf("kind %s, want clsact", l.Kind)
		}
		b.attach(out, Egress, "x-out", KindClsact, KindIngress)
		b.expectRuns(2, map[string]func() uint64{"in": seenIn})
		old := seenOut()
		b.send(b.dev)
		if seenOut() != old+1 {
			b.Error("the egress filter does not run")
		}
		for pin, dir := range map[string]Direction{"x-in": Ingress, "x-out": Egress} {
			l, err := Inspect(b.pin(pin))
			b.must(err)
			if !l.Alive || l.Kind != KindClsact || l.Direction != dir || l.PinPath != b.pin(pin) {
				b.Errorf("Inspect(%s) = %+v", pin, l)
			}
		}
		b.must(Detach(b.pin("x-in"), 0))
		if b.qdisc(b.dev) != KindClsact {
			b.Error("the qdisc went while a filter was on it")
		}
		b.must(Detach(b.pin("x-out"), 0))
		if q := b.qdisc(b.dev); q != "" {
			b.Errorf("qdisc %s is left", q)
		}
		b.expectNothingAt("x-in")
		b.expectNothingAt("x-out")
	})
}

func TestForeignClsactStays(t *testing.T) {
	inNamespace(t, func(b *bench) {
		theirs, seenTheirs := b.program("theirs")
		ours, seenOurs := b.program("ours")
		b.must(netlink.QdiscAdd(clsact(b.dev)))
		b.filter(theirs, netlink.HANDLE_MIN_INGRESS)
		b.attach(ours, Ingress, "x-in", KindClsact)
		b.expectRuns(2, map[string]func() uint64{"theirs": seenTheirs, "ours": seenOurs})
		b.must(Detach(b.pin("x-in"), 0))
		if b.qdisc(b.dev) != KindClsact {
			b.Error("the foreign qdisc went with our filter")
		}
		b.expectRuns(1, map[string]func() uint64{"theirs": seenTheirs})
	})
}

func TestForeignIngressQdiscLeavesIngressOnly(t *testing.T) {
	inNamespace(t, func(b *bench) {
		p, seen := b.program("ours")
		qdisc := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: b.dev.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
		}}
		b.must(netlink.QdiscAdd(qdisc))
		if l := b.attach(p, Ingress, "x-in", KindClsact, KindIngress); l.Kind != KindIngress {
			b.Fatalf("kind %s, want ingress", l.Kind)
		}
		b.expectRuns(1, map[string]func() uint64{"ours": seen})
		_, err := AttachBy(p, b.dev.Attrs().Index, Egress, b.pin("x-out"), KindClsact, KindIngress)
		if !errors.Is(err, ErrNoEgress) {
			b.Errorf("egress: %v, want ErrNoEgress", err)
		}
		b.expectNothingAt("x-out")
		l, err := Inspect(b.pin("x-in"))
		b.must(err)
		if !l.Alive || l.Kind != KindIngress {
			b.Errorf("Inspect = %+v", l)
		}
		again, seenAgain := b.program("again")
		b.must(Update(b.pin("x-in"), again))
		b.expectRuns(1, map[string]func() uint64{"again": seenAgain})
		b.must(Detach(b.pin("x-in"), 0))
		if b.qdisc(b.dev) != KindIngress {
			b.Error("the foreign qdisc went with our filter")
		}
		// The kernel has tcx: there the foreign qdisc is in nobody's way.
		if l := b.attach(p, Egress, "x-out"); l.Kind != KindTCX {
			b.Errorf("kind %s, want tcx", l.Kind)
		}
	})
}

// A catch-all filter of another kind at the first preference (bandwidth's) would steal every
// packet before ours: better an error than a program that never runs.
func TestFirstPreferenceTakenIsAnError(t *testing.T) {
	inNamespace(t, func(b *bench) {
		p, _ := b.program("ours")
		b.must(netlink.QdiscAdd(clsact(b.dev)))
		b.must(netlink.FilterAdd(&netlink.U32{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: b.dev.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 1, Protocol: unix.ETH_P_ALL,
			},
			ClassId: netlink.MakeHandle(1, 1),
		}))
		_, err := AttachBy(p, b.dev.Attrs().Index, Ingress, b.pin("x-in"), KindClsact)
		if err == nil {
			b.Error("attached behind a filter that takes all packets")
		}
		b.expectNothingAt("x-in")
	})
}

func TestFiltersWhosePinsAreLostAreRemoved(t *testing.T) {
	inNamespace(t, func(b *bench) {
		p, seen := b.program("ours")
		b.attach(p, Ingress, "x-in", KindClsact)
		b.attach(p, Egress, "x-out", KindClsact)
		b.must(os.Remove(b.pin("x-in")))
		b.must(os.Remove(b.pin("x-out")))
		b.must(Detach(b.pin("x-in"), 0))
		b.expectRuns(1, map[string]func() uint64{"ours": seen})
		for range 2 {
			b.must(Detach(b.pin("x-in"), b.dev.Attrs().Index))
		}
		old := seen()
		b.send(b.peer)
		b.send(b.dev)
		if seen() != old {
			b.Error("a filter still runs")
		}
		if q := b.qdisc(b.dev); q != "" {
			b.Errorf("qdisc %s is left", q)
		}
	})
}

func TestRecordWithoutFilterIsDead(t *testing.T) {
	inNamespace(t, func(b *bench) {
		p, seen := b.program("ours")
		b.attach(p, Ingress, "x-in", KindClsact)
		b.must(netlink.QdiscDel(clsact(b.dev))) // as a careless operator does
		l, err := Inspect(b.pin("x-in"))
		b.must(err)
		if l.Alive {
			b.Errorf("Inspect = %+v, want dead", l)
		}
		b.attach(p, Ingress, "x-in", KindClsact)
		b.expectRuns(1, map[string]func() uint64{"ours": seen})
	})
}

// A device may be an uplink and carry VLANs: each of its two programs sees what the other one lets pass.
func TestTwoOfOursShareAHook(t *testing.T) {
	for _, kinds := range [][]string{{KindTCX}, {KindClsact}} {
		inNamespace(t, func(b *bench) {
			first, seenFirst := b.program("from_uplink")
			second, seenSecond := b.program("from_trunk")
			b.attach(first, Ingress, "up", kinds...)
			_, err := AttachBehind(second, b.dev.Attrs().Index, Ingress, b.pin("trunk"), kinds...)
			b.must(err)
			both := map[string]func() uint64{"from_uplink": seenFirst, "from_trunk": seenSecond}
			b.expectRuns(2, both)
			_, err = AttachBehind(second, b.dev.Attrs().Index, Ingress, b.pin("trunk"), kinds...)
			b.must(err)
			b.attach(first, Ingress, "up", kinds...)
			b.expectRuns(1, both)
			b.must(Detach(b.pin("up"), 0))
			before := seenFirst()
			b.expectRuns(1, map[string]func() uint64{"from_trunk": seenSecond})
			if seenFirst() != before {
				b.Error("the one that was detached runs")
			}
			if l, err := Inspect(b.pin("trunk")); err != nil || !l.Alive {
				b.Errorf("Inspect = %+v, %v", l, err)
			}
			b.must(Detach(b.pin("trunk"), 0))
			if q := b.qdisc(b.dev); q != "" {
				b.Errorf("qdisc %s is left", q)
			}
		})
	}
}
