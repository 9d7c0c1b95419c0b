package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

var vips3 = [2]netip.Addr{netip.MustParseAddr("192.0.2.12"), netip.MustParseAddr("2001:db8:ff::12")}

const (
	emptyPort   = 81 // of the first VIP: a service without backends
	allowPort   = 82 // of the first VIP: for the client's addresses only
	allowID     = 4
	reasons     = int(bpf.MapsDropReasonDROP_REASONS)
	refillBurst = 256 // answers a CPU may send at once
)

// lab is a world that is used for input after input, with its maps in memory.
type lab struct {
	*world
	ns       netns.NsHandle
	pairs    []rawPair
	backends []bpf.MapsBackend
	stats    []bpf.MapsBackendStat
	made     []bpf.MapsBackend // the backends as they are at the start of each input
	index    *ebpf.Map
	mask     uint32
	keys     [5]uint64
	set      datapath.Settings
	sent     clones
	far      bool // other nodes and clients outside take part
}

// newLab makes three services: over attached containers; over one of them and the client itself, whose
// flows meet the first one's; over a host elsewhere.
func newLab(f *testing.F) *lab {
	f.Helper()
	l := &lab{world: newSizedWorld(f, 3, datapath.Sizes{MaxServices: 64, MaxBackends: 300, TableSlots: 16384, MaxConntrack: 64})}
	l.service(2, vips2, []container{l.containers[0], l.client})
	l.service(3, vips3, []container{outside()})
	l.check(l.d.PutService(allowID, datapath.Service{Gen: 1, BaseGen: 1, Timeouts: datapath.DefaultTimeouts}))
	all, err := l.d.Frontends()
	l.check(err)
	for family, vip := range vips {
		for _, proto := range []lb.Protocol{lb.TCP, lb.UDP} {
			only := all[lb.Frontend{VIP: vip, Port: servicePort, Protocol: proto}]
			only.Service, only.Allow = allowID, true
			l.check(l.d.PutFrontends(map[lb.Frontend]datapath.Frontend{
				{VIP: vip, Port: emptyPort, Protocol: proto}: {Service: serviceID},
				{VIP: vip, Port: allowPort, Protocol: proto}: only,
			}))
		}
		l.check(l.d.PutAllow(datapath.AllowKey{Service: allowID, Prefix: netip.PrefixFrom(l.client.addr[family], l.client.addr[family].BitLen())}))
	}
	l.pairs = mapped[rawPair](l, bpf.MapsMapCtPairs)
	l.backends = mapped[bpf.MapsBackend](l, bpf.MapsMapBackends)
	l.stats = mapped[bpf.MapsBackendStat](l, bpf.MapsMapBackendStats)
	l.made = slices.Clone(l.backends)
	l.index = l.openMap(bpf.MapsMapCtIndex)
	l.mask = l.index.MaxEntries() - 1
	for _, m := range []string{bpf.MapsMapCtShared, bpf.MapsMapDrops, bpf.MapsMapFragments, bpf.MapsMapHeldRing, bpf.MapsMapHeldFragments, bpf.MapsMapRejectBuckets} {
		l.openMap(m)
	}
	var s bpf.MapsNodeSettings
	l.check(l.openMap(bpf.MapsMapSettings).Lookup(uint32(0), &s))
	l.keys = s.Keys
	l.ns, err = netns.Get()
	l.check(err)
	f.Cleanup(func() { l.ns.Close() })
	l.up()
	l.sent = newClones(f)
	return l
}

// mapped maps an array map into memory.
func mapped[T any](l *lab, name string) []T {
	l.t.Helper()
	m := l.openMap(name)
	var v T
	n, page := int(m.MaxEntries()), os.Getpagesize()
	b, err := unix.Mmap(m.FD(), 0, (n*int(unsafe.Sizeof(v))+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	l.check(err)
	l.t.Cleanup(func() { l.check(unix.Munmap(b)) })
	return unsafe.Slice((*T)(unsafe.Pointer(&b[0])), n)
}

// up brings all devices up, so that clones can be sent, and keeps the kernel from sending on its own.
func (l *lab) up() {
	l.t.Helper()
	links, err := netlink.LinkList()
	l.check(err)
	for _, link := range links {
		l.check(os.WriteFile("/proc/sys/net/ipv6/conf/"+link.Attrs().Name+"/disable_ipv6", []byte("1"), 0))
		l.check(netlink.LinkSetUp(link))
	}
}

// enter brings the calling goroutine into the lab's namespace, as long as the test runs.
func (l *lab) enter(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	old, err := netns.Get()
	if err == nil {
		err = netns.Set(l.ns)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Set(old); err != nil {
			t.Fatal(err) // the thread stays locked and ends
		}
		old.Close()
		runtime.UnlockOSThread()
	})
	l.t = t
}

// state is what the maps say between two packets.
type state struct {
	pairs []rawPair // as far as they were ever used
	rooms bpf.MapsCtRooms
	ring  bpf.MapsHeldCursor
	drops [reasons]uint64
}

func (l *lab) state() state {
	l.t.Helper()
	var s state
	l.check(l.maps[bpf.MapsMapCtShared].Lookup(uint32(0), &s.rooms))
	l.check(l.maps[bpf.MapsMapHeldRing].Lookup(uint32(0), &s.ring))
	used := min(int(s.rooms.HighWater), len(l.pairs))
	s.pairs = slices.Clone(l.pairs[:used])
	cpus := ebpf.MustPossibleCPU()
	keys, values := make([]uint32, reasons), make([]uint64, reasons*cpus)
	var at ebpf.MapBatchCursor
	if _, err := l.maps[bpf.MapsMapDrops].BatchLookup(&at, keys, values, nil); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		l.t.Fatal(err)
	}
	for i, n := range values {
		s.drops[i/cpus] += n
	}
	return s
}

// half finds the live half that has a tuple.
func (s *state) half(t bpf.MapsTuple) (pair *rawPair, number, dir int) {
	for i := range s.pairs {
		p := &s.pairs[i]
		for dir := range p.Half {
			if p.Life&1 != 0 && p.Half[dir].Tuple == t {
				return p, i, dir
			}
		}
	}
	return nil, 0, 0
}

// gone says whether a pair's backend is not the one any more that was chosen.
func (l *lab) gone(p *rawPair) bool {
	b := l.backends[p.Backend]
	return b.Gen != p.BackendGen || b.Flags&uint8(bpf.MapsBackendFlagBACKEND_LIVE) == 0
}

// reset makes the lab what it was when it was made, as far as packets can tell.
func (l *lab) reset(set datapath.Settings, fragments bool) {
	l.t.Helper()
	_, err := l.d.Sweep(datapath.SweepRequest{Flush: true})
	l.check(err)
	copy(l.backends, l.made)
	clear(l.stats)
	if set != l.set {
		l.settings(set)
		l.set = set
	}
	buckets := make([]bpf.MapsRejectBucket, ebpf.MustPossibleCPU())
	for i := range buckets {
		buckets[i].Tokens = refillBurst
	}
	l.check(l.maps[bpf.MapsMapRejectBuckets].Put(uint32(0), buckets))
	if fragments {
		l.forgetFragments()
	}
}

func (l *lab) forgetFragments() {
	l.t.Helper()
	var key bpf.MapsFragmentKey
	for notes := l.maps[bpf.MapsMapFragments]; notes.NextKey(nil, &key) == nil; {
		l.check(notes.Delete(&key))
	}
	var ring bpf.MapsHeldCursor
	l.check(l.maps[bpf.MapsMapHeldRing].Lookup(uint32(0), &ring))
	for i := range min(ring.Next, l.maps[bpf.MapsMapHeldFragments].MaxEntries()) {
		l.check(l.maps[bpf.MapsMapHeldFragments].Put(i, &bpf.MapsHeldFragment{}))
	}
	l.check(l.maps[bpf.MapsMapHeldRing].Put(uint32(0), &bpf.MapsHeldCursor{}))
}

// places counts how often half dir of a pair stands in the two buckets of its tuple.
func (l *lab) places(number, dir int, t bpf.MapsTuple) int {
	l.t.Helper()
	const multiplier, second = 0xbf58476d1ce4e5b9, 0x5bd1e995
	var h uint64
	words := (*[5]uint64)(unsafe.Pointer(&t))
	for i, w := range words {
		h += (w ^ w>>32) * l.keys[i]
	}
	h = (h ^ h>>29) * multiplier
	tag := uint32(h) | 1
	entry := uint64(tag)<<32 | uint64(number)<<1 | uint64(dir)
	buckets := []uint32{uint32(h>>32) & l.mask, (uint32(h>>32) ^ tag*second) & l.mask}
	n := 0
	for _, at := range slices.Compact(buckets) {
		var b bpf.MapsCtBucket
		l.check(l.index.Lookup(at, &b))
		for _, slot := range b.Slot {
			if slot == entry {
				n++
			}
		}
	}
	return n
}

// whole says what is wrong with the connection table after a step: counts that do not add up, halves
// that are not in the index once, or still in it after their pair's end.
func (l *lab) whole(before, after *state) error {
	l.t.Helper()
	var live [4]int64
	active, load := make([]uint32, len(l.stats)), make([]uint32, len(l.stats))
	tuples := map[bpf.MapsTuple]int{}
	for i := range after.pairs {
		p := &after.pairs[i]
		var old rawPair
		if i < len(before.pairs) {
			old = before.pairs[i]
		}
		if err := l.indexed(i, &old, p); err != nil {
			return err
		}
		if p.Life&1 == 0 {
			continue
		}
		live[p.State&3]++
		if p.Backend != 0 && l.backends[p.Backend].Gen == p.BackendGen {
			switch datapath.FlowState(p.State) {
			case datapath.FlowEstablished:
				active[p.Backend]++
				load[p.Backend]++
			case datapath.FlowOpening:
				load[p.Backend]++
			}
		}
		for dir := range p.Half {
			if other, twice := tuples[p.Half[dir].Tuple]; twice {
				return fmt.Errorf("pairs %d and %d have the same tuple", other, i)
			}
			tuples[p.Half[dir].Tuple] = i
		}
	}
	for room := range live {
		if want := after.rooms.Live[room]; room > 0 && want != live[room] || room == 0 && live[room] != 0 {
			return fmt.Errorf("room %d: %d counted, %d there", room, want, live[room])
		}
	}
	for id := range active {
		if got := l.stats[id].Active; got != active[id] {
			return fmt.Errorf("backend %d: %d active counted, %d there", id, got, active[id])
		}
		if got := l.stats[id].Load; got != load[id] {
			return fmt.Errorf("backend %d: a load of %d counted, %d there", id, got, load[id])
		}
	}
	return nil
}

// indexed says whether a pair's halves are in the index as they have to be, if the pair changed.
func (l *lab) indexed(number int, old, p *rawPair) error {
	l.t.Helper()
	for dir := range p.Half {
		was, is := old.Life&1 != 0, p.Life&1 != 0
		if was && (p.Life != old.Life || p.Half[dir].Tuple != old.Half[dir].Tuple) {
			if n := l.places(number, dir, old.Half[dir].Tuple); n != 0 && (!is || p.Half[dir].Tuple != old.Half[dir].Tuple) {
				return fmt.Errorf("half %d of pair %d stands in the index after its end", dir, number)
			}
		}
		if is && (p.Life != old.Life || p.Half[dir].Tuple != old.Half[dir].Tuple) {
			if n := l.places(number, dir, p.Half[dir].Tuple); n != 1 {
				return fmt.Errorf("half %d of pair %d is %d times in the index", dir, number, n)
			}
		}
	}
	return nil
}
