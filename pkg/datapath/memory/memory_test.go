package memory

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

var small = datapath.Sizes{MaxServices: 2, MaxBackends: 3, TableSlots: 32, MaxConntrack: 10}

func TestWhatDoesNotExistIsRefused(t *testing.T) {
	m := New(small)
	for name, c := range map[string]struct {
		err, want error
	}{
		"the last service":   {m.PutService(2, datapath.Service{}), nil},
		"a service more":     {m.PutService(3, datapath.Service{}), datapath.ErrFull},
		"the last backend":   {m.PutBackend(3, datapath.Backend{Gen: 1}), nil},
		"a backend more":     {m.PutBackend(4, datapath.Backend{Gen: 1}), datapath.ErrFull},
		"no backend":         {m.PutBackend(0, datapath.Backend{Gen: 1}), datapath.ErrFull},
		"a whole region":     {m.WriteRegion(datapath.Region{Offset: 16, Len: 16}, make([]uint32, 16)), nil},
		"more than a region": {m.WriteRegion(datapath.Region{Offset: 16, Len: 8}, make([]uint32, 9)), datapath.ErrFull},
		"past the arena":     {m.WriteRegion(datapath.Region{Offset: 16, Len: 17}, nil), datapath.ErrNotFound},
		"over the edge":      {m.WriteRegion(datapath.Region{Offset: 1<<32 - 1, Len: 2}, nil), datapath.ErrNotFound},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", name, c.err, c.want)
		}
	}
	if _, err := m.ReadRegion(datapath.Region{Offset: 32, Len: 1}); !errors.Is(err, datapath.ErrNotFound) {
		t.Errorf("read past the arena: %v", err)
	}
	if _, err := m.Service(3); !errors.Is(err, datapath.ErrNotFound) {
		t.Errorf("read a service more: %v", err)
	}
	if m.At(32) != 0 || m.BackendAt(4) != nil || m.ServiceAt(3) != nil {
		t.Error("something is where nothing can be")
	}
}

func TestBackendsBehindAnInterface(t *testing.T) {
	m := New(small)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for id, r := range map[uint32]datapath.Backend{
		1: {Gen: 1, Ifindex: 7, Address: a, Live: true}, 2: {Gen: 1, Ifindex: 7, Address: b, Live: true}, 3: {Gen: 1, Ifindex: 7, Address: a},
	} {
		if err := m.PutBackend(id, r); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		ifindex uint32
		addrs   []netip.Addr
		want    []uint32
	}{{7, nil, []uint32{1, 2}}, {7, []netip.Addr{b}, []uint32{2}}, {8, nil, nil}, {0, nil, nil}} {
		if ids, _ := m.Behind(c.ifindex, c.addrs); !slices.Equal(ids, c.want) {
			t.Errorf("behind %d at %v: %v, want %v", c.ifindex, c.addrs, ids, c.want)
		}
	}
}

func TestAdmissionsAreCountedByPrefix(t *testing.T) {
	m := New(small)
	wide := datapath.AllowKey{Service: 1, Prefix: netip.MustParsePrefix("192.0.2.7/8")}
	narrow := datapath.AllowKey{Service: 1, Prefix: netip.MustParsePrefix("192.0.2.0/24")}
	source := netip.MustParseAddr("192.0.2.1")
	for _, step := range []struct {
		do   func(datapath.AllowKey) error
		key  datapath.AllowKey
		want bool
	}{
		{m.PutAllow, narrow, true},
		{m.PutAllow, narrow, true}, // it is there once
		{m.DeleteAllow, narrow, false},
		{m.DeleteAllow, narrow, false},
		{m.PutAllow, narrow, true},
		{m.PutAllow, wide, true},
		{m.DeleteAllow, narrow, true},
		{m.DeleteAllow, wide, false},
	} {
		if err := step.do(step.key); err != nil {
			t.Fatal(err)
		}
		if got := m.Admits(1, source); got != step.want || m.Admits(2, source) {
			t.Errorf("after %v: %t, another service %t", step.key, got, m.Admits(2, source))
		}
	}
}
