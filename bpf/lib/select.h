/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Tables that Go built (pkg/sched): how they are indexed and walked, and who in them may take a flow.
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

/* How long a backend that refused a flow, and has answered none since, is passed over: longer than a
 * client waits between two of its SYNs, so that the third does not meet who refused the first.
 */
#define REFUSAL_SECONDS 3

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

#define SELECT_COARSE 256 /* the least size of a table of slots */

/* select_probe is sched.Probe: where the walk from slot goes at step i. It is made from the slot's
 * place in a table of the least size, so that it stays what it is when the table doubles.
 */
static __always_inline __u32 select_probe(__u32 slot, __u32 i, __u32 len)
{
	__u32 unit = len / SELECT_COARSE;
	__u32 x = (slot / unit + 1) * 0x9e3779b1 + i * 0x85ebca77;

	x ^= x >> 16;
	x *= 0x7feb352d;
	x ^= x >> 15;
	x *= 0x846ca68b;
	x ^= x >> 16;
	return (x & (SELECT_COARSE - 1)) * unit + slot % unit;
}

/* select_next is where the walk from slot goes at step i, 0 being the slot itself. */
static __always_inline __u32 select_next(const struct frontend *f, __u32 slot, __u32 i)
{
	if (f->flags & FRONTEND_LISTED)
		return (slot + i) % f->table_len;
	return i ? select_probe(slot, i, f->table_len) : slot;
}

static __always_inline __u32 select_arena(__u32 at)
{
	__u32 line = at / ARENA_LINE;
	struct arena_line *l = bpf_map_lookup_elem(&arena, &line);

	return l ? l->at[at & (ARENA_LINE - 1)] : 0;
}

/* select_table returns the seat in a slot. */
static __always_inline __u32 select_table(const struct frontend *f, __u32 slot)
{
	__u32 word = select_arena(f->table + (slot >> f->narrow)), bits = 32 >> f->narrow;

	return word >> (slot & ((1 << f->narrow) - 1)) * bits & (__u32)((1ULL << bits) - 1);
}

/* Whom a new flow asks for. */
struct wish {
	__u32 now;   /* tick */
	__u32 since; /* not who refused any flow after this tick */
	__u32 avoid; /* not this backend, which refused this flow; 0: none */
	__u8 proven; /* only who has answered a flow before */
	__u8 any;    /* those are better than nobody */
	__u16 home;  /* only where the flow was before, if that is a function of its tuple */
};

/* A backend and what it carries for its weight. */
struct share {
	__u32 seat;
	__u32 id;
	__u32 load;
	__u32 weight;
};

/* select_willing says whether a backend may take the flow. */
static __always_inline bool select_willing(const struct backend *b, const struct backend_stat *stat,
					   __u32 id, const struct wish *w)
{
	if ((b->flags & BACKEND_SERVES) != BACKEND_SERVES)
		return false;
	if (w->any)
		return true;
	if (w->proven && !stat->answered)
		return false;
	if (id == w->avoid || (stat->refused && (__s32)(stat->refused - w->since) > 0))
		return false;
	return !(b->flags & BACKEND_TRIAL) || stat->load <= stat->active;
}

/* select_look fills share with who sits in a seat. Returns 1 if that backend may take the flow, or 0. */
static __always_inline int select_look(const struct frontend *f, __u32 seat, const struct wish *w,
				       struct share *share)
{
	struct backend_stat *stat;
	struct backend *b;
	__u32 id;

	if (seat >= f->members_len)
		return 0;
	id = select_arena(f->members + seat);
	b = id ? bpf_map_lookup_elem(&backends, &id) : NULL;
	stat = bpf_map_lookup_elem(&backend_stats, &id);
	if (!b || !stat || !select_willing(b, stat, id, w))
		return 0;
	share->seat = seat;
	share->id = id;
	share->load = stat->load;
	share->weight = b->weight ? b->weight : 1;
	return 1;
}

/* select_seat is select_look, verified once for the many that look often. */
__noinline int select_seat(const struct frontend *f, __u32 seat, const struct wish *w,
			   struct share *share)
{
	return f && w && share ? select_look(f, seat, w, share) : 0;
}

static __always_inline int select_slot(const struct frontend *f, __u32 slot, const struct wish *w,
				       struct share *share)
{
	return select_seat(f, select_table(f, slot), w, share);
}

/* select_walk fills share with the first that may take the flow: a slot's owner, then along the walk
 * that the next table is built with, then everybody. Returns 1, or 0 if it found nobody.
 */
__noinline int select_walk(const struct frontend *f, __u32 slot, const struct wish *w,
			   struct share *share)
{
	if (!f || !w || !share)
		return 0;
	if (select_look(f, select_table(f, slot), w, share))
		return 1;
	for (__u32 i = 1; i <= SELECT_WALK; i++)
		if (select_slot(f, select_next(f, slot, i), w, share))
			return 1;
	for (__u32 i = 0; i < SELECT_SEATS; i++)
		if (select_seat(f, i, w, share))
			return 1;
	return 0;
}

#endif
