/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps of backends in VLANs; part of maps.h. */
#ifndef TCLB_VLAN_MAPS_H
#define TCLB_VLAN_MAPS_H

#include "types.h"

/* vlans: zone - VLAN_ZONES -> the VLAN. Written by the proxy. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct vlan);
	__uint(max_entries, VLANS);
} vlans SEC(".maps");

/* vlan_zones: (device, id of a tag) -> zone. What is not in it is none of ours. Written by the proxy. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct vlan_key);
	__type(value, __u32);
	__uint(max_entries, VLANS);
} vlan_zones SEC(".maps");

/* vlan_sources: (zone, prefix) -> this node's address there. Written by the proxy. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct subnet_key);
	__type(value, struct vlan_source);
	__uint(max_entries, 1);
} vlan_sources SEC(".maps");

/* neighbours: (backend's address, VLAN's zone) -> MAC address.
 * Written by:  the proxy makes and removes entries; from_trunk writes what they say of themselves
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct neighbour_key);
	__type(value, struct neighbour);
	__uint(max_entries, 1);
} neighbours SEC(".maps");

#endif
