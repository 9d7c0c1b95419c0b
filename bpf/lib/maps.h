/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every map. Sizes here are placeholders for the loader's (pkg/datapath), which takes them
 * from the configuration, or from what is pinned. Names have 15 characters at most.
 */
#ifndef TCLB_MAPS_H
#define TCLB_MAPS_H

#include "types.h"
#include "vlan_maps.h"

/* frontends: what a client connects to -> where its table is.
 * Written by:  the proxy, one update a frontend: readers see old or new, whole
 * Also holds:  VIPs and backends' own addresses, each with port 0 too, see enum frontend_kind
 * When full:   the update fails; what is there keeps working
 * Memory:      allocated as needed
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
	__uint(max_entries, 1);
} frontends SEC(".maps");

/* services: service id -> timeouts and policy. Written by the proxy. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct service);
	__uint(max_entries, 1);
} services SEC(".maps");

/* groups: group id -> cursor and load of the backends that one table spreads over; or of one frontend
 * its cursor alone, where it takes turns by itself.
 * Written by:  every program; the proxy, when the id is given anew
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct group);
	__uint(max_entries, 1);
} groups SEC(".maps");

/* backends: backend id -> where it is. Read on every packet for its generation.
 * Written by:  the proxy; the plugin's DEL clears the flags of its container's records
 * Record 0:    no backend, always live: what direct flows point to
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct backend);
	__uint(max_entries, 1);
} backends SEC(".maps");

/* backend_stats: backend id -> connections, folded traffic, latency. Written by BPF. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct backend_stat);
	__uint(max_entries, 1);
} backend_stats SEC(".maps");

/* arena: all lookup tables (up to four slots a position) and seat lists, 16 positions a cache line.
 * Written by:  the proxy, through mmap, in regions that no frontend points to
 * Lifetime:    a region is reused only after a grace time
 */
#define ARENA_LINE 16
struct arena_line {
	__u32 at[ARENA_LINE];
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct arena_line);
	__uint(max_entries, 1);
} arena SEC(".maps");

/* ct_pairs: the flows. A pair's number is its position.
 * Written by:  every program; a pair that is not in the index belongs to who took it
 * When full:   cannot be, the rooms are smaller (rooms.h)
 * Lifetime:    survives a proxy restart
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct ct_pair);
	__uint(max_entries, 1);
} ct_pairs SEC(".maps");

/* ct_index: tuple -> half of a pair, in buckets of one cache line. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE); /* begins on a page, so that a bucket is one line */
	__type(key, __u32);
	__type(value, struct ct_bucket);
	__uint(max_entries, 1);
} ct_index SEC(".maps");

/* ct_free: pairs that were used and are free again; last in, first out, so they are warm. */
struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__type(value, __u32);
	__uint(max_entries, 1);
} ct_free SEC(".maps");

/* ct_opening, ct_closing: the small rooms. A ring of life << 32 | pair + 1 each, in order of
 * entry; who takes a position evicts the pair that still stands there in that room.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} ct_opening SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} ct_closing SEC(".maps");

/* ct_shared: cursors and counts of the rooms, one record. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct ct_rooms);
	__uint(max_entries, 1);
} ct_shared SEC(".maps");

/* ct_times: pair -> when what is being measured of it began, in ns. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} ct_times SEC(".maps");

/* dsr_vips: return pair -> what its client asked, where answers leave from here: lib/dsr.h. Written by
 * from_overlay. Lifetime: the pair's, whose life it repeats.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct dsr_vip);
	__uint(max_entries, 1);
} dsr_vips SEC(".maps");

/* fragments: datagram -> what its first fragment said. Written by every program.
 * When full:   the least recently used goes; its later fragments are held, and lost
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
	__uint(max_entries, 1);
} fragments SEC(".maps");

/* held_fragments: a ring of fragments that wait for their datagram's first one; held_ring: its
 * cursor. When full: the oldest goes, counted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct held_fragment);
	__uint(max_entries, HELD_FRAGMENTS);
} held_fragments SEC(".maps");

/* first_fragment: where the first one is put aside meanwhile, per CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct held_fragment);
	__uint(max_entries, 1);
} first_fragment SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct held_cursor);
	__uint(max_entries, 1);
} held_ring SEC(".maps");

/* affinities: (client, service) -> seat. When full: the least recently used goes. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
	__uint(max_entries, 1);
} affinities SEC(".maps");

/* allow: (service, source prefix) -> present. Written by the proxy. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct allow_key);
	__type(value, __u32);
	__uint(max_entries, 1);
} allow SEC(".maps");

/* nodes: node id -> how to reach it by tunnel. Written by the proxy. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct node);
	__uint(max_entries, NODES);
} nodes SEC(".maps");

/* vteps: underlay address -> node id: whose packets are accepted. Written by the proxy. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct vtep_key);
	__type(value, __u32);
	__uint(max_entries, NODES);
} vteps SEC(".maps");

/* subnets: (node, prefix) -> present: where a client's address may be somebody else's. Written by
 * the proxy.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct subnet_key);
	__type(value, __u32);
	__uint(max_entries, 1);
} subnets SEC(".maps");

/* uplinks: devices on which clients outside reach VIPs, by ifindex. Written by the proxy. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct uplink);
	__uint(max_entries, 64);
} uplinks SEC(".maps");

/* endpoints: (address, veth) of the containers attached here. Written by the plugin. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct endpoint_key);
	__type(value, struct endpoint);
	__uint(max_entries, 1);
} endpoints SEC(".maps");

/* settings: one record, written by the proxy (the index keys by who made the maps). */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct node_settings);
	__uint(max_entries, 1);
} settings SEC(".maps");

/* reject_buckets: what limits the rate of resets and ICMP errors, per CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct reject_bucket);
	__uint(max_entries, 1);
} reject_buckets SEC(".maps");

/* drops: reason -> packets refused, per CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, DROP_REASONS);
} drops SEC(".maps");

#endif
