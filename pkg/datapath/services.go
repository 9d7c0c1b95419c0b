package datapath

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// DefaultTimeouts are the node-wide idle times until a proxy writes others.
var DefaultTimeouts = lb.Timeouts{
	TCPEstablished: 2*time.Hour + 15*time.Minute,
	TCPSyn:         60 * time.Second,
	TCPFin:         30 * time.Second,
	UDP:            30 * time.Second,
	UDPStream:      180 * time.Second,
}

// mapError turns the kernel's words for missing and full into ours.
func mapError(action, name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return fmt.Errorf("%s map %s: %w", action, name, ErrNotFound)
	case errors.Is(err, unix.E2BIG), errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%s map %s: %w", action, name, ErrFull)
	}
	return fmt.Errorf("%s map %s: %w", action, name, err)
}

// Frontends returns every entry of the frontends map.
func (d *Datapath) Frontends() (map[lb.Frontend]Frontend, error) {
	out := map[lb.Frontend]Frontend{}
	var k bpf.MapsFrontendKey
	var v bpf.MapsFrontend
	it := d.maps[bpf.MapsMapFrontends].Iterate()
	for it.Next(&k, &v) {
		out[frontendKeyFrom(k)] = frontendFrom(v)
	}
	return out, mapError("read", bpf.MapsMapFrontends, it.Err())
}

// PutFrontends inserts or replaces entries; each is swapped whole. On an error some may be written.
func (d *Datapath) PutFrontends(fs map[lb.Frontend]Frontend) error {
	keys := make([]bpf.MapsFrontendKey, 0, len(fs))
	values := make([]bpf.MapsFrontend, 0, len(fs))
	for k, v := range fs {
		key, value := frontendKeyTo(k), frontendTo(v)
		value.Check = frontendCheck(key, value)
		keys, values = append(keys, key), append(values, value)
	}
	if len(keys) == 0 {
		return nil
	}
	_, err := d.maps[bpf.MapsMapFrontends].BatchUpdate(keys, values, nil)
	return mapError("write", bpf.MapsMapFrontends, err)
}

// DeleteFrontends removes entries; missing ones are no error.
func (d *Datapath) DeleteFrontends(fs []lb.Frontend) error {
	for _, f := range fs {
		k := frontendKeyTo(f)
		if err := d.maps[bpf.MapsMapFrontends].Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return mapError("delete from", bpf.MapsMapFrontends, err)
		}
	}
	return nil
}

// Service returns the record of a service id.
func (d *Datapath) Service(id uint32) (Service, error) {
	var v bpf.MapsService
	err := d.maps[bpf.MapsMapServices].Lookup(id, &v)
	return serviceFrom(v), mapError("read", bpf.MapsMapServices, err)
}

// PutService replaces the record of a service id.
func (d *Datapath) PutService(id uint32, s Service) error {
	v := serviceTo(s)
	return mapError("write", bpf.MapsMapServices, d.maps[bpf.MapsMapServices].Put(id, &v))
}

// Backend returns the record of a backend id.
func (d *Datapath) Backend(id uint32) (Backend, error) {
	v, err := record[bpf.MapsBackend](d, bpf.MapsMapBackends, id)
	if err != nil {
		return Backend{}, err
	}
	return backendFrom(*v), nil
}

// PutBackends replaces the records of backend ids, one by one.
func (d *Datapath) PutBackends(ids []uint32, bs []Backend) error {
	m := d.maps[bpf.MapsMapBackends]
	values := make([]bpf.MapsBackend, len(bs))
	for i, b := range bs {
		if ids[i] == 0 || ids[i] >= m.MaxEntries() {
			return fmt.Errorf("write backend %d of %d: %w", ids[i], m.MaxEntries()-1, ErrFull)
		}
		values[i] = backendTo(b)
	}
	if len(ids) == 0 {
		return nil
	}
	_, err := m.BatchUpdate(ids, values, nil)
	return mapError("write", bpf.MapsMapBackends, err)
}

// Backends returns all records that were ever given to a backend, by id.
func (d *Datapath) Backends() (map[uint32]Backend, error) {
	out := map[uint32]Backend{}
	err := each(d, bpf.MapsMapBackends, 1, math.MaxUint32, func(id uint32, v *bpf.MapsBackend) bool {
		if v.Gen != 0 {
			out[id] = backendFrom(*v)
		}
		return true
	})
	return out, err
}

// RetireEndpoint marks the backends gone that are delivered to the veth ifindex at one of addrs (all
// of that veth if there are none), so that packets pass over them at once. It returns how many.
func (d *Datapath) RetireEndpoint(ifindex uint32, addrs []netip.Addr) (int, error) {
	if ifindex == 0 {
		return 0, nil
	}
	n := 0
	err := each(d, bpf.MapsMapBackends, 1, math.MaxUint32, func(_ uint32, v *bpf.MapsBackend) bool {
		if v.Ifindex != ifindex || v.Flags == 0 || len(addrs) > 0 && !slices.Contains(addrs, addrFrom(v.Addr)) {
			return true
		}
		v.Flags = 0
		n++
		return true
	})
	return n, err
}
