/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a first fragment does besides going its way: it leaves its note, and sends on those that wait
 * for it (fragment.h).
 */
#ifndef TCLB_RELEASE_H
#define TCLB_RELEASE_H

#include "deliver.h"
#include "fragment.h"

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
	__u8 sent;   /* the packet has other contents now */
};

/* fragment_wrap makes the packet one that goes to its node. Returns the device, or -DROP_... */
static __always_inline int fragment_wrap(const struct release *r)
{
	int err = encap_hop(r->skb, addr_is_v4(r->key.saddr));

	return err ? err : encap_wrap(r->skb, r->to.ifindex);
}

/* fragment_link makes a frame of the uplink's of the packet: there is no clone that asks the neighbours. It
 * goes back to the neighbour that its flow came from.
 */
static __always_inline int fragment_link(const struct release *r)
{
	__u32 ifindex = r->to.ifindex;
	struct uplink *up = bpf_map_lookup_elem(&uplinks, &ifindex);

	if (!up || bpf_skb_store_bytes(r->skb, ETH_ALEN, up->mac, MAC_LEN, 0))
		return -DROP_REWRITE;
	return ifindex;
}

/* fragment_tagged sends a clone into a VLAN. The packet itself has no tag again after that, for the next one. */
static __always_inline long fragment_tagged(struct __sk_buff *skb, const struct release *r)
{
	int device = vlan_wrap(skb, r->to.ifindex);
	long err;

	if (device < 0)
		return device;
	err = bpf_clone_redirect(skb, device, 0);
	return bpf_skb_vlan_pop(skb) ? -DROP_REWRITE : err;
}

/* fragment_send sends a clone of the packet where deliver.h would send it. What stays on this host's
 * way meets the same program again, which finds the note of the translated datagram.
 */
static __always_inline long fragment_send(struct __sk_buff *skb, const struct release *r)
{
	int device = r->to.ifindex;

	if (r->to.deliver == DELIVER_VLAN)
		return fragment_tagged(skb, r);
	if (r->to.deliver == DELIVER_TUNNEL)
		device = fragment_wrap(r);
	else if (r->to.deliver == DELIVER_UPLINK)
		device = fragment_link(r);
	else if (r->to.deliver != DELIVER_PEER)
		device = 0;
	if (device < 0)
		return device;
	if (device)
		return bpf_clone_redirect(skb, device, 0);
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

/* fragment_release_one sends on what waits in one place, or gives it up if it has waited too long. */
static int fragment_release_one(__u32 i, struct release *r)
{
	struct held_fragment *held = bpf_map_lookup_elem(&held_fragments, &i);
	struct held_cursor *ring = fragment_ring();
	bool fresh;

	if (!held || !ring)
		return 1;
	if (held->state != HELD_READY)
		return 0;
	fresh = fragment_fresh(held->seen, r->now);
	if ((fresh && !fragment_key_equal(&held->key, &r->key)) ||
	    __sync_val_compare_and_swap(&held->state, HELD_READY, HELD_BUSY) != HELD_READY)
		return 0;
	__sync_fetch_and_add(&ring->waiting, -1);
	r->sent |= fresh;
	if (!fresh || fragment_become(r, held) ||
	    (r->translate && fragment_translate(r, held->len)) || fragment_send(r->skb, r))
		verdict_count(-DROP_FRAGMENT);
	else
		__sync_fetch_and_add(&ring->released, 1);
	__sync_lock_test_and_set(&held->state, HELD_FREE);
	return 0;
}

/* fragment_release sends the waiting ones on. Returns 0 with the packet as it was, or -DROP_... A first one
 * too large to be put aside goes on alone.
 */
static __always_inline int fragment_release(struct release *r)
{
	__u32 zero = 0, len = r->skb->len - ETH_HLEN;
	struct held_fragment *aside = bpf_map_lookup_elem(&first_fragment, &zero);

	if (!aside || len < 1 || len > HELD_BYTES ||
	    bpf_skb_load_bytes(r->skb, ETH_HLEN, aside->packet, len))
		return 0;
	aside->len = len;
	bpf_loop(HELD_FRAGMENTS, fragment_release_one, r, 0);
	return r->sent ? fragment_become(r, aside) : 0;
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
 * FIRST_TRANSLATED (NULL: it stays as it is), and sends those on that wait for it. `place_life` is fragment_place_of its hit,
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

	if (!p || !ring)
		return 0;
	fragment_key(&r.key, p->tuple.saddr, p->tuple.daddr, p);
	fragment_note(&r.key, place, life, p->now);
	/* Atomic for its barrier: the note is out before this is read, as the other way round in
	 * fragment_hold, or both might miss each other.
	 */
	if (!__sync_fetch_and_add(&ring->waiting, 0))
		return 0;
	if (to)
		r.to = *to;
	r.skb = skb;
	r.now = p->now;
	r.least = p->l4_off;
	r.pair = place >> 1;
	r.dir = place & 1;
	r.egress = !!(how & FIRST_EGRESS);
	r.translate = to && how & FIRST_TRANSLATED;
	if (r.translate) {
		struct fragment_key key ALIGNED;

		/* Wherever it came from, it is of this node now. */
		fragment_key(&key, r.to.saddr, r.to.daddr, p);
		key.zone = 0;
		if (!fragment_key_equal(&key, &r.key))
			fragment_note(&key, 0, 0, p->now);
	}
	return fragment_release(&r);
}

/* fragment_pass does the same for a first fragment that goes on as it is. */
static __always_inline int fragment_pass(struct __sk_buff *skb, const struct packet *p, __u32 how)
{
	return fragment_first(skb, p, NULL, 0, how);
}

/* fragment_place_of packs where a hit is for fragment_first. */
static __always_inline __u64 fragment_place_of(const struct ct_hit *hit)
{
	return (__u64)hit->life << 32 | (__u32)FLOW_PAIR(hit->index) << 1 | (hit->dir & 1);
}

#endif
