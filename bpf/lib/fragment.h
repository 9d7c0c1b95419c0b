/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Fragments: all of a datagram go where its first one goes, which alone has the ports.
 *
 * In order, the first one leaves a note under the datagram's id and the others follow it. One that
 * comes before the first waits in a ring, if it can be of a flow of ours: to a VIP, or from a backend's
 * address. The first then sends the waiting ones on: it is put aside, the packet becomes one after the
 * other and is sent as a clone each time, and in the end it becomes the first one again.
 *
 * A fragment becomes HELD_READY before it looks for the note a second time, and the first one leaves
 * its note before it looks for the waiting ones: one of them sees the other.
 */
#ifndef TCLB_FRAGMENT_H
#define TCLB_FRAGMENT_H

#include "flow.h"

#define FRAGMENT_SECONDS 2 /* that a note, or a waiting fragment, counts */

/* What becomes of a later fragment, besides -DROP_... */
#define FRAGMENT_FOUND 0
#define FRAGMENT_FOREIGN 1
#define FRAGMENT_WAITS 2

static __always_inline void fragment_key(struct fragment_key *key, const __u8 *saddr,
					 const __u8 *daddr, const struct packet *p)
{
	__builtin_memset(key, 0, sizeof(*key));
	addr_copy(key->saddr, saddr);
	addr_copy(key->daddr, daddr);
	key->id = p->fragment_id;
	key->zone = p->tuple.zone;
	/* Later IPv6 fragments may name another protocol than the first one (RFC 8200, 4.5). */
	key->proto = addr_is_v4(saddr) ? p->tuple.proto : 0;
}

static __always_inline bool fragment_key_equal(const struct fragment_key *a,
					       const struct fragment_key *b)
{
	return addr_equal(a->saddr, b->saddr) && addr_equal(a->daddr, b->daddr) && a->id == b->id &&
	       a->proto == b->proto && a->zone == b->zone;
}

static __always_inline bool fragment_fresh(__u32 seen, __u32 now)
{
	__u32 zero = 0;
	struct node_settings *s = bpf_map_lookup_elem(&settings, &zero);

	return s && (__s32)(now - seen) <= (__s32)(FRAGMENT_SECONDS * s->second);
}

/* fragment_noted looks for the first fragment's note and fills hit with its half. */
static __always_inline int fragment_noted(const struct fragment_key *key, const struct packet *p,
					  struct ct_hit *hit)
{
	struct fragment *note = bpf_map_lookup_elem(&fragments, key);

	if (!note || !fragment_fresh(note->seen, p->now))
		return FRAGMENT_WAITS;
	if (note->seen != p->now)
		note->seen = p->now;
	if (note->fate == FRAGMENT_PASS)
		return FRAGMENT_FOREIGN;
	hit->index = note->pair;
	hit->dir = note->dir & 1;
	hit->life = note->life;
	hit->pair = bpf_map_lookup_elem(&ct_pairs, &hit->index);
	return hit->pair && ct_alive(hit) ? FRAGMENT_FOUND : -DROP_FRAGMENT;
}

/* fragment_concerns says whether a fragment without a note can be of a flow of ours. */
static __always_inline bool fragment_concerns(const struct packet *p, __u32 side)
{
	struct frontend_key key ALIGNED = {};
	struct frontend *f;

	/* Of IPv6, the ports may be behind options. */
	if (p->tuple.proto != PROTO_TCP && p->tuple.proto != PROTO_UDP &&
	    (p->tuple.proto != PROTO_DSTOPTS || addr_is_v4(p->tuple.saddr)))
		return false;
	/* Nothing else comes there; of a VLAN, from_trunk asked who sends. */
	if (side == SIDE_OVERLAY || side == SIDE_HOST || p->tuple.zone)
		return true;
	addr_copy(key.vip, p->tuple.daddr);
	f = bpf_map_lookup_elem(&frontends, &key);
	if (f && f->kind == FRONTEND_VIP)
		return side != SIDE_NONE;
	addr_copy(key.vip, p->tuple.saddr);
	f = bpf_map_lookup_elem(&frontends, &key);
	return f && f->kind == FRONTEND_BACKEND;
}

static __always_inline struct held_cursor *fragment_ring(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&held_ring, &zero);
}

/* fragment_take takes the ring's next place. What waited there in vain is counted. */
static __always_inline struct held_fragment *fragment_take(struct held_cursor *ring)
{
	__u32 at = __sync_fetch_and_add(&ring->next, 1) % HELD_FRAGMENTS;
	struct held_fragment *held = bpf_map_lookup_elem(&held_fragments, &at);

	if (!held)
		return NULL;
	if (!__sync_val_compare_and_swap(&held->state, HELD_FREE, HELD_BUSY))
		return held;
	if (__sync_val_compare_and_swap(&held->state, HELD_READY, HELD_BUSY) != HELD_READY)
		return NULL;
	__sync_fetch_and_add(&ring->waiting, -1);
	verdict_count(-DROP_FRAGMENT);
	return held;
}

/* fragment_hold keeps the packet until its first fragment comes. Returns FRAGMENT_WAITS, or what the
 * note says if it came meanwhile, or -DROP_FRAGMENT.
 */
static __always_inline int fragment_hold(struct __sk_buff *skb, const struct packet *p,
					 const struct fragment_key *key, struct ct_hit *hit)
{
	struct held_cursor *ring = fragment_ring();
	struct held_fragment *held;
	__u32 len = skb->len - ETH_HLEN;
	int found;

	if (!ring || len < 1 || len > HELD_BYTES)
		return -DROP_FRAGMENT;
	held = fragment_take(ring);
	if (!held)
		return -DROP_FRAGMENT;
	held->key = *key;
	held->seen = p->now;
	held->len = len;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, held->packet, len)) {
		__sync_lock_test_and_set(&held->state, HELD_FREE);
		return -DROP_FRAGMENT;
	}
	__sync_fetch_and_add(&ring->waiting, 1);
	__sync_fetch_and_add(&ring->held, 1);
	__sync_lock_test_and_set(&held->state, HELD_READY);
	found = fragment_noted(key, p, hit);
	if (found == FRAGMENT_WAITS ||
	    __sync_val_compare_and_swap(&held->state, HELD_READY, HELD_FREE) != HELD_READY)
		return FRAGMENT_WAITS;
	__sync_fetch_and_add(&ring->waiting, -1);
	__sync_fetch_and_add(&ring->held, -1);
	return found;
}

/* fragment_find fills hit with the half that a later fragment belongs to. Returns FRAGMENT_FOUND,
 * FRAGMENT_FOREIGN, FRAGMENT_WAITS for one that is held, or -DROP_...
 */
static __noinline int fragment_find(struct __sk_buff *skb, const struct packet *p,
				    struct ct_hit *hit, __u32 side)
{
	struct fragment_key key ALIGNED;
	int found;

	fragment_key(&key, p->tuple.saddr, p->tuple.daddr, p);
	found = fragment_noted(&key, p, hit);
	if (found != FRAGMENT_WAITS)
		return found;
	return fragment_concerns(p, side) ? fragment_hold(skb, p, &key, hit) : FRAGMENT_FOREIGN;
}

#endif
