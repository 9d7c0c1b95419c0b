package datapath

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/tc-loadbalancer/tclb/bpf"
)

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
	bpf.MapsDropReasonDROP_TUNNEL_NODE:   "tunnel-node",
	bpf.MapsDropReasonDROP_TUNNEL_CARGO:  "tunnel-cargo",
}

// The reasons that a proxy refuses flows for by itself, where it carries them.
const (
	DropNoFrontend   = DropReason(bpf.MapsDropReasonDROP_NO_FRONTEND)
	DropNoBackend    = DropReason(bpf.MapsDropReasonDROP_NO_BACKEND)
	DropNotAllowed   = DropReason(bpf.MapsDropReasonDROP_NOT_ALLOWED)
	DropBackendGone  = DropReason(bpf.MapsDropReasonDROP_BACKEND_GONE)
	DropFull         = DropReason(bpf.MapsDropReasonDROP_CT_FULL)
	DropSecondChance = DropReason(bpf.MapsDropReasonDROP_SECOND_CHANCE)
)

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
