package datapath

import "github.com/tc-loadbalancer/tclb/bpf"

// FlushAffinity forgets the clients' choices of a service, of all services if it is 0.
func (d *Datapath) FlushAffinity(service uint32) (int, error) {
	m := d.maps[bpf.MapsMapAffinities]
	var k bpf.MapsAffinityKey
	var v bpf.MapsAffinity
	var gone []bpf.MapsAffinityKey
	it := m.Iterate()
	for it.Next(&k, &v) {
		if service == 0 || k.Service == service {
			gone = append(gone, k)
		}
	}
	if err := it.Err(); err != nil {
		return 0, mapError("read", bpf.MapsMapAffinities, err)
	}
	for i := range gone {
		if err := deleteKey(d, bpf.MapsMapAffinities, &gone[i]); err != nil {
			return i, err
		}
	}
	return len(gone), nil
}

// FlushFragments forgets which flows the fragments on their way belong to. Those that wait for their
// datagram's first one are given up within two seconds anyway.
func (d *Datapath) FlushFragments() error {
	m := d.maps[bpf.MapsMapFragments]
	var k bpf.MapsFragmentKey
	var v bpf.MapsFragment
	var gone []bpf.MapsFragmentKey
	it := m.Iterate()
	for it.Next(&k, &v) {
		gone = append(gone, k)
	}
	if err := it.Err(); err != nil {
		return mapError("read", bpf.MapsMapFragments, err)
	}
	for i := range gone {
		if err := deleteKey(d, bpf.MapsMapFragments, &gone[i]); err != nil {
			return err
		}
	}
	return nil
}
