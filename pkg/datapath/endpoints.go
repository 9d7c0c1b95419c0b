package datapath

import (
	"errors"

	"github.com/cilium/ebpf"

	"github.com/tc-loadbalancer/tclb/bpf"
)

// veth is the key of an attachment as such, whatever its addresses.
func (k EndpointKey) veth() EndpointKey { return EndpointKey{Ifindex: k.Ifindex} }

// place is the key of an address as such, wherever it is.
func (k EndpointKey) place() EndpointKey { return EndpointKey{Address: k.Address} }

// PutEndpoint records an address of a container that is attached here, whose veth that is, and that the
// address is there: of several containers with one address, at the one that was recorded last.
func (d *Datapath) PutEndpoint(k EndpointKey, e Endpoint) error {
	v := bpf.MapsEndpoint{UpIfindex: e.UpIfindex, UpMac: e.UpMAC, Owner: e.Owner, Ifindex: k.Ifindex, Mac: e.MAC}
	for _, at := range []EndpointKey{k.veth(), k, k.place()} {
		key := endpointKeyTo(at)
		if err := d.maps[bpf.MapsMapEndpoints].Put(&key, &v); err != nil {
			return mapError("write", bpf.MapsMapEndpoints, err)
		}
	}
	return nil
}

// DeleteEndpoint removes an address and forgets whose its veth was: addresses go together, with their
// container. A missing one is no error. Another container with the address keeps it.
func (d *Datapath) DeleteEndpoint(k EndpointKey) error {
	keys := []EndpointKey{k.veth(), k}
	place := endpointKeyTo(k.place())
	var v bpf.MapsEndpoint
	switch err := d.maps[bpf.MapsMapEndpoints].Lookup(&place, &v); {
	case err == nil && v.Ifindex == k.Ifindex:
		keys = append(keys, k.place())
	case err != nil && !errors.Is(err, ebpf.ErrKeyNotExist):
		return mapError("read", bpf.MapsMapEndpoints, err)
	}
	for _, at := range keys {
		key := endpointKeyTo(at)
		if err := deleteKey(d, bpf.MapsMapEndpoints, &key); err != nil {
			return err
		}
	}
	return nil
}

// Endpoints returns all addresses of attached containers.
func (d *Datapath) Endpoints() (map[EndpointKey]Endpoint, error) {
	out := map[EndpointKey]Endpoint{}
	var k bpf.MapsEndpointKey
	var v bpf.MapsEndpoint
	it := d.maps[bpf.MapsMapEndpoints].Iterate()
	for it.Next(&k, &v) {
		if k.Addr == [16]uint8{} || k.Ifindex == 0 {
			continue // a veth or an address as such
		}
		out[EndpointKey{addrFrom(k.Addr), k.Ifindex}] = Endpoint{UpIfindex: v.UpIfindex, UpMAC: v.UpMac, Owner: v.Owner, MAC: v.Mac}
	}
	return out, mapError("read", bpf.MapsMapEndpoints, it.Err())
}
