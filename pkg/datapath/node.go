package datapath

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/tc-loadbalancer/tclb/bpf"
)

// veth is the key of an attachment as such, whatever its addresses.
func (k EndpointKey) veth() EndpointKey { return EndpointKey{Ifindex: k.Ifindex} }

// PutEndpoint records an address of a container that is attached here, and whose veth that is.
func (d *Datapath) PutEndpoint(k EndpointKey, e Endpoint) error {
	key, v := endpointKeyTo(k.veth()), bpf.MapsEndpoint{UpIfindex: e.UpIfindex, UpMac: e.UpMAC, Owner: e.Owner}
	if err := d.maps[bpf.MapsMapEndpoints].Put(&key, &v); err != nil {
		return mapError("write", bpf.MapsMapEndpoints, err)
	}
	key = endpointKeyTo(k)
	return mapError("write", bpf.MapsMapEndpoints, d.maps[bpf.MapsMapEndpoints].Put(&key, &v))
}

// DeleteEndpoint removes an address and forgets whose its veth was: addresses go together, with their
// container. A missing one is no error.
func (d *Datapath) DeleteEndpoint(k EndpointKey) error {
	key := endpointKeyTo(k.veth())
	if err := deleteKey(d, bpf.MapsMapEndpoints, &key); err != nil {
		return err
	}
	key = endpointKeyTo(k)
	return deleteKey(d, bpf.MapsMapEndpoints, &key)
}

// Endpoints returns all addresses of attached containers.
func (d *Datapath) Endpoints() (map[EndpointKey]Endpoint, error) {
	out := map[EndpointKey]Endpoint{}
	var k bpf.MapsEndpointKey
	var v bpf.MapsEndpoint
	it := d.maps[bpf.MapsMapEndpoints].Iterate()
	for it.Next(&k, &v) {
		if k.Addr == [16]uint8{} {
			continue // a veth as such
		}
		out[EndpointKey{addrFrom(k.Addr), k.Ifindex}] = Endpoint{UpIfindex: v.UpIfindex, UpMAC: v.UpMac, Owner: v.Owner}
	}
	return out, mapError("read", bpf.MapsMapEndpoints, it.Err())
}

// PutAllow admits a source prefix to a service.
func (d *Datapath) PutAllow(k AllowKey) error {
	key := allowKeyTo(k)
	return mapError("write", bpf.MapsMapAllow, d.maps[bpf.MapsMapAllow].Put(&key, uint32(1)))
}

// DeleteAllow takes an admission back; a missing one is no error.
func (d *Datapath) DeleteAllow(k AllowKey) error {
	key := allowKeyTo(k)
	return deleteKey(d, bpf.MapsMapAllow, &key)
}

// Allows returns all admissions.
func (d *Datapath) Allows() (map[AllowKey]struct{}, error) {
	out := map[AllowKey]struct{}{}
	var k bpf.MapsAllowKey
	var v uint32
	it := d.maps[bpf.MapsMapAllow].Iterate()
	for it.Next(&k, &v) {
		out[allowKeyFrom(k)] = struct{}{}
	}
	return out, mapError("read", bpf.MapsMapAllow, it.Err())
}

func deleteKey(d *Datapath, name string, key any) error {
	err := d.maps[name].Delete(key)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return mapError("delete from", name, err)
}

// PutSettings replaces the operator's settings; the index keys stay.
func (d *Datapath) PutSettings(s Settings) error {
	m := d.maps[bpf.MapsMapSettings]
	var v bpf.MapsNodeSettings
	if err := m.Lookup(uint32(0), &v); err != nil {
		return mapError("read", bpf.MapsMapSettings, err)
	}
	v.Flags = 0
	if s.HostStack {
		v.Flags |= uint32(bpf.MapsSettingFlagSETTING_HOST_STACK)
	}
	if s.AntiSpoof {
		v.Flags |= uint32(bpf.MapsSettingFlagSETTING_ANTI_SPOOF)
	}
	v.HostIfindex, v.HostMac = s.HostIfindex, s.HostMAC
	v.Hairpin4, v.Hairpin6 = addr16(s.Hairpin4), addr16(s.Hairpin6)
	return mapError("write", bpf.MapsMapSettings, m.Put(uint32(0), &v))
}

// Settings returns the operator's settings as programs see them.
func (d *Datapath) Settings() (Settings, error) {
	var v bpf.MapsNodeSettings
	err := d.maps[bpf.MapsMapSettings].Lookup(uint32(0), &v)
	return Settings{
		HostStack:   v.Flags&uint32(bpf.MapsSettingFlagSETTING_HOST_STACK) != 0,
		AntiSpoof:   v.Flags&uint32(bpf.MapsSettingFlagSETTING_ANTI_SPOOF) != 0,
		HostIfindex: v.HostIfindex, HostMAC: v.HostMac,
		Hairpin4: addrFrom(v.Hairpin4), Hairpin6: addrFrom(v.Hairpin6),
	}, mapError("read", bpf.MapsMapSettings, err)
}

var dropNames = [bpf.MapsDropReasonDROP_REASONS]string{
	bpf.MapsDropReasonDROP_MALFORMED:     "malformed",
	bpf.MapsDropReasonDROP_NO_FRONTEND:   "no-frontend",
	bpf.MapsDropReasonDROP_NO_BACKEND:    "no-backend",
	bpf.MapsDropReasonDROP_NOT_ALLOWED:   "not-allowed",
	bpf.MapsDropReasonDROP_SPOOFED:       "spoofed",
	bpf.MapsDropReasonDROP_NO_PORT:       "no-port",
	bpf.MapsDropReasonDROP_NO_PAIR:       "no-pair",
	bpf.MapsDropReasonDROP_BACKEND_GONE:  "backend-gone",
	bpf.MapsDropReasonDROP_FRAGMENT:      "fragment",
	bpf.MapsDropReasonDROP_CT_FULL:       "conntrack-full",
	bpf.MapsDropReasonDROP_REWRITE:       "rewrite",
	bpf.MapsDropReasonDROP_UNROUTABLE:    "unroutable",
	bpf.MapsDropReasonDROP_HOP_LIMIT:     "hop-limit",
	bpf.MapsDropReasonDROP_BAD_ICMP:      "bad-icmp",
	bpf.MapsDropReasonDROP_TUNNEL_SOURCE: "tunnel-source",
	bpf.MapsDropReasonDROP_TUNNEL_MTU:    "tunnel-mtu",
	bpf.MapsDropReasonDROP_RATE_LIMITED:  "rate-limited",
	bpf.MapsDropReasonDROP_SECOND_CHANCE: "second-chance",
}

// String returns the reason's word in metrics and listings.
func (r DropReason) String() string {
	if int(r) < len(dropNames) && dropNames[r] != "" {
		return dropNames[r]
	}
	return fmt.Sprintf("reason-%d", uint8(r))
}

// DropReasons returns every reason there is.
func DropReasons() []DropReason {
	var out []DropReason
	for r := range dropNames {
		if dropNames[r] != "" {
			out = append(out, DropReason(r))
		}
	}
	return slices.Clip(out)
}

// Drops returns the packets refused since the maps were made, by reason, over all CPUs.
func (d *Datapath) Drops() (map[DropReason]uint64, error) {
	out := map[DropReason]uint64{}
	for _, r := range DropReasons() {
		var perCPU []uint64
		if err := d.maps[bpf.MapsMapDrops].Lookup(uint32(r), &perCPU); err != nil {
			return nil, mapError("read", bpf.MapsMapDrops, err)
		}
		for _, n := range perCPU {
			out[r] += n
		}
	}
	return out, nil
}

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
