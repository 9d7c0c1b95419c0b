package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/tc-loadbalancer/tclb/bpf"
)

// PutNode makes a node known under an id: packets can be sent to it and are accepted from its address. The
// address of the record before is forgotten.
func (d *Datapath) PutNode(id uint16, n Node) error {
	if id == 0 || id >= MaxNodes {
		return fmt.Errorf("write node: id %d is not between 1 and %d", id, MaxNodes-1)
	}
	old, err := d.node(id)
	if err != nil {
		return err
	}
	v := bpf.MapsNode{Vtep: addr16(n.VTEP), Mac: n.MAC, Mtu: n.MTU, Flags: uint16(bpf.MapsNodeFlagNODE_KNOWN)}
	switch n.SNAT {
	case SNATAlways:
		v.Flags |= uint16(bpf.MapsNodeFlagNODE_SNAT)
	case SNATCheck:
		v.Flags |= uint16(bpf.MapsNodeFlagNODE_SNAT_CHECK)
	case SNATInside:
		v.Flags |= uint16(bpf.MapsNodeFlagNODE_SNAT_INSIDE)
	}
	if n.DSR {
		v.Flags |= uint16(bpf.MapsNodeFlagNODE_DSR)
	}
	if err := d.maps[bpf.MapsMapNodes].Put(uint32(id), &v); err != nil {
		return mapError("write", bpf.MapsMapNodes, err)
	}
	if err := d.maps[bpf.MapsMapVteps].Put(&bpf.MapsVtepKey{Addr: v.Vtep}, uint32(id)); err != nil {
		return mapError("write", bpf.MapsMapVteps, err)
	}
	if old.Vtep == v.Vtep {
		return nil
	}
	return d.forgetVTEP(id, old.Vtep)
}

// DeleteNode forgets a node; one that is not known is no error.
func (d *Datapath) DeleteNode(id uint16) error {
	old, err := d.node(id)
	if err != nil {
		return err
	}
	if err := d.forgetVTEP(id, old.Vtep); err != nil {
		return err
	}
	return mapError("write", bpf.MapsMapNodes, d.maps[bpf.MapsMapNodes].Put(uint32(id), &bpf.MapsNode{}))
}

// forgetVTEP stops accepting packets from an address, unless it is another node's by now.
func (d *Datapath) forgetVTEP(id uint16, vtep [16]uint8) error {
	key := bpf.MapsVtepKey{Addr: vtep}
	var of uint32
	err := d.maps[bpf.MapsMapVteps].Lookup(&key, &of)
	if errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && of != uint32(id) {
		return nil
	}
	if err != nil {
		return mapError("read", bpf.MapsMapVteps, err)
	}
	return deleteKey(d, bpf.MapsMapVteps, &key)
}

func (d *Datapath) node(id uint16) (v bpf.MapsNode, err error) {
	return v, mapError("read", bpf.MapsMapNodes, d.maps[bpf.MapsMapNodes].Lookup(uint32(id), &v))
}

// Nodes returns the nodes that are known, by id.
func (d *Datapath) Nodes() (map[uint16]Node, error) {
	out := map[uint16]Node{}
	var id uint32
	var v bpf.MapsNode
	it := d.maps[bpf.MapsMapNodes].Iterate()
	for it.Next(&id, &v) {
		if v.Flags&uint16(bpf.MapsNodeFlagNODE_KNOWN) == 0 {
			continue
		}
		n := Node{VTEP: addrFrom(v.Vtep), MAC: v.Mac, MTU: v.Mtu, DSR: v.Flags&uint16(bpf.MapsNodeFlagNODE_DSR) != 0}
		switch {
		case v.Flags&uint16(bpf.MapsNodeFlagNODE_SNAT) != 0:
			n.SNAT = SNATAlways
		case v.Flags&uint16(bpf.MapsNodeFlagNODE_SNAT_CHECK) != 0:
			n.SNAT = SNATCheck
		case v.Flags&uint16(bpf.MapsNodeFlagNODE_SNAT_INSIDE) != 0:
			n.SNAT = SNATInside
		}
		out[uint16(id)] = n
	}
	return out, mapError("read", bpf.MapsMapNodes, it.Err())
}

// PutSubnet says that addresses in a prefix are given to containers of a node.
func (d *Datapath) PutSubnet(k SubnetKey) error {
	key := subnetKeyTo(k)
	return mapError("write", bpf.MapsMapSubnets, d.maps[bpf.MapsMapSubnets].Put(&key, uint32(1)))
}

// DeleteSubnet takes that back; a missing one is no error.
func (d *Datapath) DeleteSubnet(k SubnetKey) error {
	key := subnetKeyTo(k)
	return deleteKey(d, bpf.MapsMapSubnets, &key)
}

// Subnets returns all of them.
func (d *Datapath) Subnets() (map[SubnetKey]struct{}, error) {
	out := map[SubnetKey]struct{}{}
	var k bpf.MapsSubnetKey
	var v uint32
	it := d.maps[bpf.MapsMapSubnets].Iterate()
	for it.Next(&k, &v) {
		out[subnetKeyFrom(k)] = struct{}{}
	}
	return out, mapError("read", bpf.MapsMapSubnets, it.Err())
}

// PutUplink says that VIPs answer clients outside on a device, and its MAC address.
func (d *Datapath) PutUplink(ifindex uint32, mac [6]byte) error {
	return mapError("write", bpf.MapsMapUplinks, d.maps[bpf.MapsMapUplinks].Put(ifindex, &bpf.MapsUplink{Mac: mac}))
}

// DeleteUplink takes that back; a missing one is no error.
func (d *Datapath) DeleteUplink(ifindex uint32) error {
	return deleteKey(d, bpf.MapsMapUplinks, ifindex)
}

// Uplinks returns the devices on which VIPs answer, and their MAC addresses.
func (d *Datapath) Uplinks() (map[uint32][6]byte, error) {
	out := map[uint32][6]byte{}
	var ifindex uint32
	var v bpf.MapsUplink
	it := d.maps[bpf.MapsMapUplinks].Iterate()
	for it.Next(&ifindex, &v) {
		out[ifindex] = v.Mac
	}
	return out, mapError("read", bpf.MapsMapUplinks, it.Err())
}
