package datapath

import (
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/tc-loadbalancer/tclb/bpf"
)

// arenaLine is ARENA_LINE of bpf/lib/maps.h: positions in one record of the arena.
const arenaLine = uint32(len(bpf.MapsArenaLine{}.At))

type shape struct {
	kind       ebpf.MapType
	key, value uintptr
}

func shapeOf[K, V any](kind ebpf.MapType) shape {
	var k K
	var v V
	return shape{kind, unsafe.Sizeof(k), unsafe.Sizeof(v)}
}

// shapes says what each pinned map has to look like. A pin of another shape under our name is
// refused rather than misread.
var shapes = map[string]shape{
	bpf.MapsMapFrontends:     shapeOf[bpf.MapsFrontendKey, bpf.MapsFrontend](ebpf.Hash),
	bpf.MapsMapServices:      shapeOf[uint32, bpf.MapsService](ebpf.Array),
	bpf.MapsMapGroups:        shapeOf[uint32, bpf.MapsGroup](ebpf.Array),
	bpf.MapsMapBackends:      shapeOf[uint32, bpf.MapsBackend](ebpf.Array),
	bpf.MapsMapBackendStats:  shapeOf[uint32, bpf.MapsBackendStat](ebpf.Array),
	bpf.MapsMapArena:         shapeOf[uint32, bpf.MapsArenaLine](ebpf.Array),
	bpf.MapsMapCtPairs:       shapeOf[uint32, bpf.MapsCtPair](ebpf.Array),
	bpf.MapsMapCtIndex:       shapeOf[uint32, bpf.MapsCtBucket](ebpf.Array),
	bpf.MapsMapCtFree:        {ebpf.Stack, 0, unsafe.Sizeof(uint32(0))},
	bpf.MapsMapCtOpening:     shapeOf[uint32, uint64](ebpf.Array),
	bpf.MapsMapCtClosing:     shapeOf[uint32, uint64](ebpf.Array),
	bpf.MapsMapCtTimes:       shapeOf[uint32, uint64](ebpf.Array),
	bpf.MapsMapCtShared:      shapeOf[uint32, bpf.MapsCtRooms](ebpf.Array),
	bpf.MapsMapDsrVips:       shapeOf[uint32, bpf.MapsDsrVip](ebpf.Array),
	bpf.MapsMapAffinities:    shapeOf[bpf.MapsAffinityKey, bpf.MapsAffinity](ebpf.LRUHash),
	bpf.MapsMapFragments:     shapeOf[bpf.MapsFragmentKey, bpf.MapsFragment](ebpf.LRUHash),
	bpf.MapsMapHeldFragments: shapeOf[uint32, bpf.MapsHeldFragment](ebpf.Array),
	bpf.MapsMapFirstFragment: shapeOf[uint32, bpf.MapsHeldFragment](ebpf.PerCPUArray),
	bpf.MapsMapHeldRing:      shapeOf[uint32, bpf.MapsHeldCursor](ebpf.Array),
	bpf.MapsMapAllow:         shapeOf[bpf.MapsAllowKey, uint32](ebpf.LPMTrie),
	bpf.MapsMapEndpoints:     shapeOf[bpf.MapsEndpointKey, bpf.MapsEndpoint](ebpf.Hash),
	bpf.MapsMapNodes:         shapeOf[uint32, bpf.MapsNode](ebpf.Array),
	bpf.MapsMapVteps:         shapeOf[bpf.MapsVtepKey, uint32](ebpf.Hash),
	bpf.MapsMapSubnets:       shapeOf[bpf.MapsSubnetKey, uint32](ebpf.LPMTrie),
	bpf.MapsMapUplinks:       shapeOf[uint32, bpf.MapsUplink](ebpf.Hash),
	bpf.MapsMapVlans:         shapeOf[uint32, bpf.MapsVlan](ebpf.Array),
	bpf.MapsMapVlanZones:     shapeOf[bpf.MapsVlanKey, uint32](ebpf.Hash),
	bpf.MapsMapVlanSources:   shapeOf[bpf.MapsSubnetKey, bpf.MapsVlanSource](ebpf.LPMTrie),
	bpf.MapsMapNeighbours:    shapeOf[bpf.MapsNeighbourKey, bpf.MapsNeighbour](ebpf.Hash),
	bpf.MapsMapSettings:      shapeOf[uint32, bpf.MapsNodeSettings](ebpf.Array),
	bpf.MapsMapRejectBuckets: shapeOf[uint32, bpf.MapsRejectBucket](ebpf.PerCPUArray),
	bpf.MapsMapDrops:         shapeOf[uint32, uint64](ebpf.PerCPUArray),
}

func checkShape(name string, m *ebpf.Map) error {
	want := shapes[name]
	got := shape{m.Type(), uintptr(m.KeySize()), uintptr(m.ValueSize())}
	if got != want {
		return fmt.Errorf("map %s is %v with keys of %d and values of %d bytes, want %v with %d and %d: it is not of this layout; run `tclb uninstall` to start afresh",
			name, got.kind, got.key, got.value, want.kind, want.key, want.value)
	}
	return nil
}
