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

#include "deliver.h"
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
	/* Later IPv6 fragments may name another protocol than the first one (RFC 8200, 4.5). */
	key->proto = addr_is_v4(saddr) ? p->tuple.proto : 0;
}

static __always_inline bool fragment_key_equal(const struct fragment_key *a,
					       const struct fragment_key *b)
{
	return addr_equal(a->saddr, b->saddr) && addr_equal(a->daddr, b->daddr) && a->id == b->id &&
	       a->proto == b->proto;
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
	    p->tuple.proto != PROTO_DSTOPTS)
		return false;
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

/* What the waiting fragments are sent on with. */
struct release {
	struct __sk_buff *skb;
	struct fragment_key key;
	struct nat_target to;
	__u32 now;
	__u32 least; /* no packet becomes shorter: the first one's transport header is in it */
	__u32 pair;  /* 0: none, else number + 1 */
	__u8 dir;
	__u8 translate;
	__u8 egress; /* the program is at its device's egress */
	__u8 failed;
};

/* fragment_send sends a clone of the packet where deliver.h would send it. What stays on this host's
 * way meets the same program again, which finds the note of the translated datagram.
 */
static __always_inline long fragment_send(struct __sk_buff *skb, const struct release *r)
{
	if (r->to.deliver == DELIVER_PEER)
		return bpf_clone_redirect(skb, r->to.ifindex, 0);
	if (r->to.deliver == DELIVER_HOST)
		return bpf_clone_redirect(skb, r->to.ifindex, BPF_F_INGRESS);
	return bpf_clone_redirect(skb, skb->ifindex, r->egress ? 0 : BPF_F_INGRESS);
}

/* fragment_become puts other contents behind the packet's Ethernet header. */
static __always_inline int fragment_become(const struct release *r,
					   const struct held_fragment *held)
{
	__u32 len = held->len, size = ETH_HLEN + len;

	if (size < r->least)
		size = r->least;
	if (len < 1 || len > HELD_BYTES || bpf_skb_change_tail(r->skb, size, 0) ||
	    bpf_skb_store_bytes(r->skb, ETH_HLEN, held->packet, len, BPF_F_RECOMPUTE_CSUM))
		return -DROP_FRAGMENT;
	return 0;
}

/* fragment_translate translates the packet as the first one was, and accounts it. */
static __always_inline int fragment_translate(const struct release *r, __u32 len)
{
	void *data = (void *)(long)r->skb->data, *end = (void *)(long)r->skb->data_end;
	bool v4 = addr_is_v4(r->key.saddr);
	__u32 index = r->pair - 1;
	struct ct_pair *pair = bpf_map_lookup_elem(&ct_pairs, &index);

	if (pair) {
		pair->half[r->dir & 1].packets++;
		pair->half[r->dir & 1].bytes += len;
	}
	return nat_write_l3(data, end, &r->to, v4,
			    nat_addr_diff(r->key.saddr, r->to.saddr, v4) +
				    nat_addr_diff(r->key.daddr, r->to.daddr, v4));
}

static int fragment_release_one(__u32 i, struct release *r)
{
	struct held_fragment *held = bpf_map_lookup_elem(&held_fragments, &i);
	struct held_cursor *ring = fragment_ring();

	if (!held || !ring)
		return 1;
	if (held->state != HELD_READY || !fragment_key_equal(&held->key, &r->key) ||
	    !fragment_fresh(held->seen, r->now) ||
	    __sync_val_compare_and_swap(&held->state, HELD_READY, HELD_BUSY) != HELD_READY)
		return 0;
	__sync_fetch_and_add(&ring->waiting, -1);
	if (fragment_become(r, held) || (r->translate && fragment_translate(r, held->len)) ||
	    fragment_send(r->skb, r))
		verdict_count(-DROP_FRAGMENT);
	__sync_fetch_and_add(&ring->released, 1);
	__sync_lock_test_and_set(&held->state, HELD_FREE);
	return 0;
}

/* fragment_release sends the waiting ones on. Returns 0 with the packet as it was, or -DROP_... */
static __always_inline int fragment_release(struct release *r)
{
	__u32 zero = 0, len = r->skb->len - ETH_HLEN;
	struct held_fragment *aside = bpf_map_lookup_elem(&first_fragment, &zero);

	if (!aside || len < 1 || len > HELD_BYTES ||
	    bpf_skb_load_bytes(r->skb, ETH_HLEN, aside->packet, len))
		return -DROP_FRAGMENT;
	aside->len = len;
	bpf_loop(HELD_FRAGMENTS, fragment_release_one, r, 0);
	return fragment_become(r, aside);
}

/* fragment_note leaves the note of a first fragment; `place` is FLOW_PAIR << 1 | dir, 0 for none. */
static __always_inline void fragment_note(const struct fragment_key *key, __u32 place, __u32 life,
					  __u32 now)
{
	struct fragment note = {.seen = now, .fate = FRAGMENT_PASS};

	if (place) {
		note.fate = FRAGMENT_PAIR;
		note.pair = (place >> 1) - 1;
		note.dir = place & 1;
		note.life = life;
	}
	bpf_map_update_elem(&fragments, key, &note, BPF_ANY);
}

/* fragment_first leaves the note of a first fragment, which is translated into `to` already with
 * FIRST_TRANSLATED, and sends those on that wait for it. `place_life` is fragment_place_of its hit,
 * or 0. Returns 0: the packet goes on; or -DROP_FRAGMENT.
 */
#define FIRST_TRANSLATED 1
#define FIRST_EGRESS 2
__noinline int fragment_first(struct __sk_buff *skb, const struct packet *p,
			      const struct nat_target *to, __u64 place_life, __u32 how)
{
	struct release r = {};
	struct held_cursor *ring = fragment_ring();
	__u32 place = place_life, life = place_life >> 32;

	if (!p || !to || !ring)
		return 0;
	fragment_key(&r.key, p->tuple.saddr, p->tuple.daddr, p);
	fragment_note(&r.key, place, life, p->now);
	if (!ring->waiting)
		return 0;
	r.to = *to;
	r.skb = skb;
	r.now = p->now;
	r.least = p->l4_off + sizeof(struct tcphdr);
	r.pair = place >> 1;
	r.dir = place & 1;
	r.egress = !!(how & FIRST_EGRESS);
	r.translate = how & FIRST_TRANSLATED;
	if (r.translate) {
		struct fragment_key key ALIGNED;

		fragment_key(&key, to->saddr, to->daddr, p);
		if (!fragment_key_equal(&key, &r.key))
			fragment_note(&key, 0, 0, p->now);
	}
	return fragment_release(&r);
}

/* fragment_pass does the same for a first fragment that goes on as it is. */
__noinline int fragment_pass(struct __sk_buff *skb, const struct packet *p, __u32 how)
{
	struct nat_target as_it_is = {};

	return fragment_first(skb, p, &as_it_is, 0, how);
}

/* fragment_place_of packs where a hit is for fragment_first. */
static __always_inline __u64 fragment_place_of(const struct ct_hit *hit)
{
	return (__u64)hit->life << 32 | (__u32)FLOW_PAIR(hit->index) << 1 | (hit->dir & 1);
}

#endif
