package datapath

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/tc-loadbalancer/tclb/bpf"
)

func vlanKeyOf(v bpf.MapsVlan) bpf.MapsVlanKey {
	return bpf.MapsVlanKey{Ifindex: v.Ifindex, Id: uint32(v.Id)}
}

// PutVLAN says which VLAN a zone is. Frames with its tag are looked at from then on, and those of the
// record before are not.
func (d *Datapath) PutVLAN(zone uint16, v VLAN) error {
	if zone < VLANZones || zone >= VLANZones+MaxVLANs || v.Ifindex == 0 {
		return fmt.Errorf("write VLAN: no zone %d for device %d", zone, v.Ifindex)
	}
	old, err := d.vlan(zone)
	if err != nil {
		return err
	}
	record := bpf.MapsVlan{Ifindex: v.Ifindex, Id: v.ID, Mac: v.MAC, Mtu: v.MTU}
	if err := d.maps[bpf.MapsMapVlans].Put(uint32(zone-VLANZones), &record); err != nil {
		return mapError("write", bpf.MapsMapVlans, err)
	}
	key := vlanKeyOf(record)
	if err := d.maps[bpf.MapsMapVlanZones].Put(&key, uint32(zone)); err != nil {
		return mapError("write", bpf.MapsMapVlanZones, err)
	}
	if vlanKeyOf(old) == key {
		return nil
	}
	return d.forgetVLAN(zone, old)
}

// DeleteVLAN forgets a zone's VLAN: nothing can be sent there, and its frames pass. One that is not known is no error.
func (d *Datapath) DeleteVLAN(zone uint16) error {
	old, err := d.vlan(zone)
	if err != nil {
		return err
	}
	if err := d.forgetVLAN(zone, old); err != nil {
		return err
	}
	return mapError("write", bpf.MapsMapVlans, d.maps[bpf.MapsMapVlans].Put(uint32(zone-VLANZones), &bpf.MapsVlan{}))
}

// forgetVLAN stops looking at frames of a VLAN, unless they are another zone's by now.
func (d *Datapath) forgetVLAN(zone uint16, v bpf.MapsVlan) error {
	key := vlanKeyOf(v)
	var of uint32
	err := d.maps[bpf.MapsMapVlanZones].Lookup(&key, &of)
	if errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && of != uint32(zone) {
		return nil
	}
	if err != nil {
		return mapError("read", bpf.MapsMapVlanZones, err)
	}
	return deleteKey(d, bpf.MapsMapVlanZones, &key)
}

func (d *Datapath) vlan(zone uint16) (v bpf.MapsVlan, err error) {
	return v, mapError("read", bpf.MapsMapVlans, d.maps[bpf.MapsMapVlans].Lookup(uint32(zone-VLANZones), &v))
}

// VLANs returns those that a device carries, by zone.
func (d *Datapath) VLANs() (map[uint16]VLAN, error) {
	out := map[uint16]VLAN{}
	var at uint32
	var v bpf.MapsVlan
	it := d.maps[bpf.MapsMapVlans].Iterate()
	for it.Next(&at, &v) {
		if v.Ifindex != 0 {
			out[uint16(at+VLANZones)] = VLAN{Ifindex: v.Ifindex, ID: v.Id, MAC: v.Mac, MTU: v.Mtu}
		}
	}
	return out, mapError("read", bpf.MapsMapVlans, it.Err())
}

func sourceKeyTo(k SourceKey) bpf.MapsSubnetKey {
	length, addr := prefixTo(k.Prefix)
	return bpf.MapsSubnetKey{PrefixLen: length, Node: uint32(k.Zone), Addr: addr}
}

// PutSource says as whom clients go to backends in a prefix of a VLAN.
func (d *Datapath) PutSource(k SourceKey, address netip.Addr) error {
	key := sourceKeyTo(k)
	return mapError("write", bpf.MapsMapVlanSources, d.maps[bpf.MapsMapVlanSources].Put(&key, &bpf.MapsVlanSource{Addr: addr16(address)}))
}

// DeleteSource takes that back; a missing one is no error.
func (d *Datapath) DeleteSource(k SourceKey) error {
	key := sourceKeyTo(k)
	return deleteKey(d, bpf.MapsMapVlanSources, &key)
}

// Sources returns all of them.
func (d *Datapath) Sources() (map[SourceKey]netip.Addr, error) {
	out := map[SourceKey]netip.Addr{}
	var k bpf.MapsSubnetKey
	var v bpf.MapsVlanSource
	it := d.maps[bpf.MapsMapVlanSources].Iterate()
	for it.Next(&k, &v) {
		out[SourceKey{Zone: uint16(k.Node), Prefix: prefixFrom(k.PrefixLen, k.Addr)}] = addrFrom(v.Addr)
	}
	return out, mapError("read", bpf.MapsMapVlanSources, it.Err())
}

func neighbourKeyTo(k NeighbourKey) bpf.MapsNeighbourKey {
	return bpf.MapsNeighbourKey{Addr: addr16(k.Address), Zone: uint32(k.Zone)}
}

// PutNeighbour makes a backend's address in a VLAN one that programs send to, and learn about.
func (d *Datapath) PutNeighbour(k NeighbourKey, n Neighbour) error {
	key := neighbourKeyTo(k)
	v := bpf.MapsNeighbour{Mac: n.MAC, Answers: n.Answers}
	if n.Fixed {
		v.Flags = uint16(bpf.MapsNeighbourFlagNEIGHBOUR_FIXED)
	}
	return mapError("write", bpf.MapsMapNeighbours, d.maps[bpf.MapsMapNeighbours].Put(&key, &v))
}

// DeleteNeighbour forgets one; a missing one is no error.
func (d *Datapath) DeleteNeighbour(k NeighbourKey) error {
	key := neighbourKeyTo(k)
	return deleteKey(d, bpf.MapsMapNeighbours, &key)
}

// Neighbour returns what is known of one: ErrNotFound if it is not one that programs send to.
func (d *Datapath) Neighbour(k NeighbourKey) (Neighbour, error) {
	key := neighbourKeyTo(k)
	var v bpf.MapsNeighbour
	err := d.maps[bpf.MapsMapNeighbours].Lookup(&key, &v)
	return neighbourFrom(v), mapError("read", bpf.MapsMapNeighbours, err)
}

func neighbourFrom(v bpf.MapsNeighbour) Neighbour {
	return Neighbour{MAC: v.Mac, Answers: v.Answers, Fixed: v.Flags&uint16(bpf.MapsNeighbourFlagNEIGHBOUR_FIXED) != 0}
}

// Neighbours returns all of them.
func (d *Datapath) Neighbours() (map[NeighbourKey]Neighbour, error) {
	out := map[NeighbourKey]Neighbour{}
	var k bpf.MapsNeighbourKey
	var v bpf.MapsNeighbour
	it := d.maps[bpf.MapsMapNeighbours].Iterate()
	for it.Next(&k, &v) {
		out[NeighbourKey{Zone: uint16(k.Zone), Address: addrFrom(k.Addr)}] = neighbourFrom(v)
	}
	return out, mapError("read", bpf.MapsMapNeighbours, it.Err())
}
