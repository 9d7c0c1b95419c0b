/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which backend takes a new flow: an index into a table that Go built (pkg/sched).
 *
 * The hashes and the walk are the same in Go, bit for bit; parity tests hold them together.
 */
#ifndef TCLB_SELECT_H
#define TCLB_SELECT_H

#include <bpf/bpf_endian.h>

#include "addr.h"
#include "maps.h"
#include "verdict.h"

#define SELECT_WALK 16	/* slots probed for a backend that takes new flows */
#define SELECT_SEATS 64 /* then seats looked at in order */

#define HASH_SEED 0x9e3779b97f4a7c15ULL
#define HASH_PRIME 0xd6e8feb86659fd93ULL

static __always_inline __u64 select_mix(__u64 h, __u64 word)
{
	h = (h ^ word) * HASH_PRIME;
	return h ^ h >> 32;
}

static __always_inline __u32 select_finish(__u64 h)
{
	h *= HASH_PRIME;
	h ^= h >> 29;
	return h >> 32;
}

/* select_tuple_hash is sched.TupleHash. */
static __always_inline __u32 select_tuple_hash(const struct tuple *t)
{
	__u64 h = HASH_SEED;

	for (int i = 0; i < 4; i++)
		h = select_mix(h, tuple_word(t, i));
	return select_finish(select_mix(h, (__u64)bpf_ntohs(t->sport) << 32 |
						   (__u32)bpf_ntohs(t->dport) << 16 | t->proto));
}

/* select_client_hash is sched.ClientHash. */
static __always_inline __u32 select_client_hash(const struct tuple *t)
{
	__u64 h = select_mix(HASH_SEED, tuple_word(t, 0));

	return select_finish(select_mix(select_mix(h, tuple_word(t, 1)), 0));
}

/* select_probe is sched.Probe: where the walk from slot goes at step i; len is a power of two. */
static __always_inline __u32 select_probe(__u32 slot, __u32 i, __u32 len)
{
	__u32 x = (slot + 1) * 0x9e3779b1 + i * 0x85ebca77;

	x ^= x >> 16;
	x *= 0x7feb352d;
	x ^= x >> 15;
	x *= 0x846ca68b;
	x ^= x >> 16;
	return x & (len - 1);
}

static __always_inline __u32 select_arena(__u32 at)
{
	__u32 line = at / ARENA_LINE;
	struct arena_line *l = bpf_map_lookup_elem(&arena, &line);

	return l ? l->at[at & (ARENA_LINE - 1)] : 0;
}

/* select_seat returns the id of the backend in a seat if it may take new flows, is not the one
 * to avoid and has refused nobody after `since`; else 0.
 */
static __always_inline __u32 select_seat(const struct frontend *f, __u32 seat, __u32 avoid,
					 __u32 since)
{
	struct backend_stat *stat;
	struct backend *b;
	__u32 id;

	if (seat >= f->members_len)
		return 0;
	id = select_arena(f->members + seat);
	b = id && id != avoid ? bpf_map_lookup_elem(&backends, &id) : NULL;
	if (!b || (b->flags & BACKEND_SERVES) != BACKEND_SERVES)
		return 0;
	stat = bpf_map_lookup_elem(&backend_stats, &id);
	return stat && (!stat->refused || (__s32)(stat->refused - since) <= 0) ? id : 0;
}

/* The scheduler's index rule: the slot where a new flow begins. */
static __always_inline __u32 select_slot(const struct frontend *f, const struct tuple *t)
{
	__u32 h;

	if (f->scheduler == SCHED_RANDOM)
		h = bpf_get_prandom_u32();
	else if (f->flags & FRONTEND_AFFINITY)
		h = select_client_hash(t);
	else
		h = select_tuple_hash(t);
	return (__u64)h * f->table_len >> 32;
}

/* select_walk looks for a backend from a slot on: its owner, then the walk that the next table is
 * built with, then everybody. Returns an id, or 0.
 */
__noinline int select_walk(const struct frontend *f, __u32 slot, __u32 avoid, __u32 since)
{
	__u32 id;

	if (!f)
		return 0;
	id = select_seat(f, select_arena(f->table + slot), avoid, since);
	for (int i = 1; !id && i <= SELECT_WALK; i++)
		id = select_seat(f, select_arena(f->table + select_probe(slot, i, f->table_len)),
				 avoid, since);
	for (int i = 0; !id && i < SELECT_SEATS; i++)
		id = select_seat(f, i, avoid, since);
	return id;
}

/* select_backend picks the backend of a new flow. Passed over are one that went since the table was
 * built, `avoid`, which refused this flow (0: none), and, while there are others, whoever
 * refused any flow within the last second. Returns the backend's id, or -DROP_NO_BACKEND.
 */
static __always_inline int select_backend(const struct frontend *f, const struct tuple *t,
					  __u32 avoid, __u32 now, __u32 second)
{
	__u32 slot;
	int id;

	if (!f->table_len)
		return -DROP_NO_BACKEND;
	slot = select_slot(f, t);
	id = select_walk(f, slot, avoid, now - second);
	if (!id)
		id = select_walk(f, slot, 0, now + second);
	return id ? id : -DROP_NO_BACKEND;
}

#endif
