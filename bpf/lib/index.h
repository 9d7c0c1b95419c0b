/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The index of flows: tuple -> half of a pair, in buckets of one cache line (types.h). Readers
 * take no lock; writers of one key agree by compare-and-swap on its bucket's version.
 */
#ifndef TCLB_INDEX_H
#define TCLB_INDEX_H

#include "addr.h"
#include "config.h"
#include "maps.h"

#define CT_TRIES 4 /* writers that may come between before an insert gives up */
#define CT_NO_ROOM -1

/* Where a packet was found in the table. */
struct ct_hit {
	struct ct_pair *pair;
	__u32 index;
	__u32 life;
	__u32 dir;
	__u32 pad;
};

/* ct_hash is multilinear with secret odd keys, so nobody can aim at a bucket. */
static __always_inline __u64 ct_hash(const struct tuple *t)
{
	__u32 zero = 0;
	struct node_settings *s = bpf_map_lookup_elem(&settings, &zero);
	__u64 h = 0;

	if (!s)
		return 0;
	for (int i = 0; i < TUPLE_WORDS; i++)
		h += (tuple_word(t, i) ^ tuple_word(t, i) >> 32) * s->keys[i];
	h ^= h >> 29;
	return h * 0xbf58476d1ce4e5b9ULL;
}

static __always_inline __u32 ct_tag(__u64 hash)
{
	return (__u32)hash | 1;
}

static __always_inline __u32 ct_bucket_first(__u64 hash)
{
	return (__u32)(hash >> 32) & config.bucket_mask;
}

static __always_inline __u32 ct_bucket_second(__u64 hash)
{
	return ((__u32)(hash >> 32) ^ ct_tag(hash) * 0x5bd1e995) & config.bucket_mask;
}

/* ct_scan looks for a live half with tuple t in one bucket. Returns 1 and fills hit, or 0. */
static __always_inline int ct_scan(const struct ct_bucket *b, __u32 tag, const struct tuple *t,
				   struct ct_hit *hit)
{
	for (int i = 0; i < BUCKET_SLOTS; i++) {
		__u64 slot = *(volatile const __u64 *)&b->slot[i];
		struct ct_pair *pair;
		__u32 index, dir;

		if (slot >> 32 != tag)
			continue;
		index = (__u32)slot >> 1;
		dir = slot & 1;
		pair = bpf_map_lookup_elem(&ct_pairs, &index);
		if (!pair)
			continue;
		hit->life = *(volatile __u32 *)&pair->life;
		if (!(hit->life & 1) || !tuple_equal(&pair->half[dir].tuple, t))
			continue;
		hit->pair = pair;
		hit->index = index;
		hit->dir = dir;
		return 1;
	}
	return 0;
}

/* ct_lookup finds the half that a packet belongs to. Returns 1 and fills hit, or 0. */
static __always_inline int ct_lookup(const struct tuple *t, struct ct_hit *hit)
{
	__u64 hash = ct_hash(t);
	__u32 at = ct_bucket_first(hash);
	struct ct_bucket *b = bpf_map_lookup_elem(&ct_index, &at);

	if (!b)
		return 0;
	if (ct_scan(b, ct_tag(hash), t, hit))
		return 1;
	if (!b->spilled)
		return 0;
	at = ct_bucket_second(hash);
	b = bpf_map_lookup_elem(&ct_index, &at);
	return b && ct_scan(b, ct_tag(hash), t, hit);
}

/* ct_hit_at fills hit with a half whose place is known. Returns 1, or 0 if it is not t's any more. */
static __always_inline int ct_hit_at(__u32 index, __u32 dir, const struct tuple *t,
				     struct ct_hit *hit)
{
	hit->index = index;
	hit->dir = dir & 1;
	hit->pair = bpf_map_lookup_elem(&ct_pairs, &index);
	if (!hit->pair)
		return 0;
	hit->life = *(volatile __u32 *)&hit->pair->life;
	return hit->life & 1 && tuple_equal(&hit->pair->half[hit->dir].tuple, t);
}

/* ct_claim puts entry into a free slot of b. Returns the slot, or NULL. */
static __noinline __u64 *ct_claim(struct ct_bucket *b, __u64 entry)
{
	for (int i = 0; i < BUCKET_SLOTS; i++)
		if (!b->slot[i] && !__sync_val_compare_and_swap(&b->slot[i], 0, entry))
			return &b->slot[i];
	return NULL;
}

/* ct_taken returns 1 + the index of the live pair in one bucket that has tuple t, or 0. A function,
 * like ct_claim, because the programs' call chains share 512 bytes of stack.
 */
static __noinline __u32 ct_taken(const struct ct_bucket *b, __u32 tag, const struct tuple *t)
{
	struct ct_hit hit;

	return ct_scan(b, tag, t, &hit) ? hit.index + 1 : 0;
}

/* ct_index_add enters one half of a pair that its caller owns. It returns 0, or 1 + the index
 * of the live pair that has this tuple already, or CT_NO_ROOM.
 */
__noinline int ct_index_add(__u32 index, __u32 dir)
{
	struct ct_pair *pair = bpf_map_lookup_elem(&ct_pairs, &index);
	struct ct_bucket *first, *second;
	const struct tuple *t;
	__u64 hash, entry, *slot;
	__u32 at, other;

	if (!pair)
		return CT_NO_ROOM;
	dir &= 1;
	t = &pair->half[dir].tuple;
	hash = ct_hash(t);
	entry = (__u64)ct_tag(hash) << 32 | index << 1 | dir;
	at = ct_bucket_first(hash);
	first = bpf_map_lookup_elem(&ct_index, &at);
	at = ct_bucket_second(hash);
	second = bpf_map_lookup_elem(&ct_index, &at);
	if (!first || !second)
		return CT_NO_ROOM;

	for (int i = 0; i < CT_TRIES; i++) {
		__u32 version = *(volatile __u32 *)&first->version;

		other = ct_taken(first, ct_tag(hash), t);
		if (!other && first->spilled)
			other = ct_taken(second, ct_tag(hash), t);
		if (other)
			return other;
		slot = ct_claim(first, entry);
		if (!slot) {
			__sync_fetch_and_add(&first->spilled, 1);
			slot = ct_claim(second, entry);
			if (!slot) {
				__sync_fetch_and_add(&first->spilled, -1);
				return CT_NO_ROOM;
			}
			if (__sync_val_compare_and_swap(&first->version, version, version + 1) ==
			    version)
				return 0;
			__sync_val_compare_and_swap(slot, entry, 0);
			__sync_fetch_and_add(&first->spilled, -1);
			continue;
		}
		if (__sync_val_compare_and_swap(&first->version, version, version + 1) == version)
			return 0;
		__sync_val_compare_and_swap(slot, entry, 0);
	}
	return CT_NO_ROOM;
}

/* ct_unclaim gives the slot that holds entry back. Returns 1 if it was there. */
static __always_inline int ct_unclaim(struct ct_bucket *b, __u64 entry)
{
	for (int i = 0; i < BUCKET_SLOTS; i++)
		if (b->slot[i] == entry &&
		    __sync_val_compare_and_swap(&b->slot[i], entry, 0) == entry)
			return 1;
	return 0;
}

/* ct_index_del takes one half out of the index; it may be absent. */
__noinline int ct_index_del(__u32 index, __u32 dir)
{
	struct ct_pair *pair = bpf_map_lookup_elem(&ct_pairs, &index);
	struct ct_bucket *first, *second;
	__u64 hash, entry;
	__u32 at;

	if (!pair)
		return 0;
	dir &= 1;
	hash = ct_hash(&pair->half[dir].tuple);
	entry = (__u64)ct_tag(hash) << 32 | index << 1 | dir;
	at = ct_bucket_first(hash);
	first = bpf_map_lookup_elem(&ct_index, &at);
	if (!first || ct_unclaim(first, entry) || !first->spilled)
		return 0;
	at = ct_bucket_second(hash);
	second = bpf_map_lookup_elem(&ct_index, &at);
	if (second && ct_unclaim(second, entry))
		__sync_fetch_and_add(&first->spilled, -1);
	return 0;
}

#endif
