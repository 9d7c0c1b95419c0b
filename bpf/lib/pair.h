/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Making a pair: which tuples its halves have, how each direction leaves. */
#ifndef TCLB_PAIR_H
#define TCLB_PAIR_H

#include "choose.h"
#include "tcp.h"

#define FLOW_PORT_TRIES 10
#define FLOW_PORT_MIN 1024

/* What the functions of a flow return besides -DROP_...: not ours, or the pair to go on with. */
#define FLOW_NONE 0
#define FLOW_PAIR(index) ((int)(index) + 1)

/* Which program asks: decides how the two directions leave. */
enum flow_side {
	SIDE_CONTAINER = 0, /* from_container: the client is the container behind skb->ifindex */
	SIDE_HOST = 1,	    /* from_host: the client is a process here, or forwarded by us */
	SIDE_NONE = 2,	    /* to_container: answers only, nothing begins */
};

/* flow_backend returns the pair's backend if it is still the one that was chosen, else NULL. */
static __always_inline struct backend *flow_backend(const struct ct_pair *pair)
{
	__u32 id = pair->backend;
	struct backend *b = bpf_map_lookup_elem(&backends, &id);

	return b && b->gen == pair->backend_gen && b->flags & BACKEND_LIVE ? b : NULL;
}

/* flow_reply_tuple writes how the backend will answer. The client's own address stays, except
 * that a container reaching itself, by whichever of its interfaces, sees the hairpin address,
 * and that a host reaching what is not attached here sees the VIP: answers to either come back
 * to our programs, and a container never sees a packet from its own address.
 */
static __always_inline void flow_reply_tuple(struct ct_pair *pair, const struct packet *p,
					     const struct backend *b, const struct node_settings *s,
					     __u32 side, int owner)
{
	struct tuple *reply = &pair->half[DIR_REPLY].tuple;

	reply->proto = p->tuple.proto;
	reply->pad = 0;
	reply->zone = 0;
	addr_copy(reply->saddr, b->addr);
	reply->sport = b->port;
	reply->dport = p->tuple.sport;
	if (b->flags & BACKEND_LOCAL &&
	    (addr_equal(b->addr, p->tuple.saddr) || (owner > 0 && (int)b->owner == owner))) {
		pair->flags |= PAIR_HAIRPIN;
		addr_copy(reply->daddr, addr_is_v4(b->addr) ? s->hairpin4 : s->hairpin6);
	} else if (side == SIDE_HOST && !(b->flags & BACKEND_LOCAL)) {
		addr_copy(reply->daddr, p->tuple.daddr);
	} else {
		addr_copy(reply->daddr, p->tuple.saddr);
	}
}

/* flow_leave_container says how both directions of a container's flow leave. */
static __always_inline void flow_leave_container(struct __sk_buff *skb, struct ct_pair *pair,
						 const struct backend *b, __u32 flags)
{
	struct ct_half *out = &pair->half[DIR_ORIGINAL], *back = &pair->half[DIR_REPLY];

	if (flags & SETTING_HOST_STACK && !(pair->flags & PAIR_HAIRPIN))
		return;
	back->deliver = DELIVER_PEER;
	back->ifindex = skb->ifindex;
	bpf_skb_load_bytes(skb, ETH_ALEN, back->mac, MAC_LEN);
	if (b->flags & BACKEND_LOCAL) {
		out->deliver = DELIVER_PEER;
		out->ifindex = b->ifindex;
		__builtin_memcpy(out->mac, b->mac, MAC_LEN);
	}
}

/* flow_leave_host says the same for a flow that came to tclb0. */
static __always_inline void flow_leave_host(struct ct_pair *pair, const struct backend *b,
					    const struct node_settings *s)
{
	struct ct_half *out = &pair->half[DIR_ORIGINAL], *back = &pair->half[DIR_REPLY];

	back->deliver = DELIVER_HOST;
	back->ifindex = s->host_ifindex;
	__builtin_memcpy(back->mac, s->host_mac, MAC_LEN);
	if (b->flags & BACKEND_LOCAL) {
		out->deliver = DELIVER_PEER;
		out->ifindex = b->ifindex;
		__builtin_memcpy(out->mac, b->mac, MAC_LEN);
	} else {
		out->deliver = DELIVER_HOST;
		out->ifindex = s->host_ifindex;
		__builtin_memcpy(out->mac, s->host_mac, MAC_LEN);
	}
}

/* flow_begin resets a taken pair to an empty flow with p's tuple. */
static __always_inline void flow_begin(struct ct_pair *pair, const struct packet *p)
{
	__u32 life = pair->life;

	__builtin_memset(pair, 0, sizeof(*pair));
	pair->life = life;
	pair->half[DIR_ORIGINAL].tuple = p->tuple;
	pair->half[DIR_ORIGINAL].seen = p->now;
	pair->half[DIR_REPLY].seen = p->now;
	pair->created = p->now;
	if (p->tcp_flags)
		tcp_first(pair, p);
}

/* flow_stale says whether the pair that stands in a new flow's way has nothing left to lose. */
static __always_inline bool flow_stale(__u32 index, __u32 *life)
{
	struct ct_pair *pair = bpf_map_lookup_elem(&ct_pairs, &index);

	if (!pair)
		return false;
	*life = pair->life;
	return pair->state == CT_CLOSING || !flow_backend(pair);
}

/* flow_index_reply enters the reply half, under another source port if the tuple is taken. */
static __always_inline int flow_index_reply(__u32 index, struct ct_pair *pair)
{
	for (int i = 0; i < FLOW_PORT_TRIES; i++) {
		int other = ct_index_add(index, DIR_REPLY);
		__u32 life = 0;

		if (!other)
			return 0;
		if (other < 0)
			return -DROP_CT_FULL;
		if (flow_stale(other - 1, &life)) {
			ct_remove(other - 1, life);
			continue;
		}
		pair->half[DIR_REPLY].tuple.dport =
			bpf_htons(FLOW_PORT_MIN + bpf_get_prandom_u32() % (65536 - FLOW_PORT_MIN));
	}
	return -DROP_NO_PORT;
}

/* flow_publish makes a filled pair live, indexes both halves and lets it into its room.
 * It returns FLOW_PAIR of the pair, or of the one that another CPU made for the same flow.
 */
static __always_inline int flow_publish(__u32 index, struct ct_pair *pair, __u32 state, __u32 now)
{
	__u32 life = pair->life + 1;
	int err, other;

	__sync_lock_test_and_set(&pair->life, life);
	err = flow_index_reply(index, pair);
	if (err) {
		ct_remove(index, life);
		return err;
	}
	other = ct_index_add(index, DIR_ORIGINAL);
	if (other) {
		ct_remove(index, life);
		return other > 0 ? other : -DROP_CT_FULL;
	}
	ct_move(index, CT_FREE, state, now);
	return FLOW_PAIR(index);
}

/* flow_direct tracks a container's flow to a backend's own address, so that a balanced flow
 * never takes its tuple, nor it theirs. It only ever changes the source port.
 */
static __always_inline int flow_direct(struct __sk_buff *skb, const struct packet *p)
{
	bool syn = (p->tcp_flags & TCP_CONTROL) == TCP_SYN;
	struct ct_half *back;
	struct ct_pair *pair;
	struct tuple *reply;
	__u32 index;
	int taken;

	if (p->tuple.proto == PROTO_TCP && (!syn || p->tcp_flags & TCP_ACK))
		return FLOW_NONE;
	taken = ct_take(p->now);
	index = taken;
	pair = taken < 0 ? NULL : bpf_map_lookup_elem(&ct_pairs, &index);
	if (!pair)
		return FLOW_NONE;
	flow_begin(pair, p);
	pair->flags = PAIR_DIRECT;
	reply = &pair->half[DIR_REPLY].tuple;
	reply->proto = p->tuple.proto;
	addr_copy(reply->saddr, p->tuple.daddr);
	addr_copy(reply->daddr, p->tuple.saddr);
	reply->sport = p->tuple.dport;
	reply->dport = p->tuple.sport;
	back = &pair->half[DIR_REPLY];
	back->deliver = DELIVER_PEER; /* once translated, past to_container */
	back->ifindex = skb->ifindex;
	bpf_skb_load_bytes(skb, ETH_ALEN, back->mac, MAC_LEN);
	return flow_publish(index, pair, syn ? CT_OPENING : CT_ESTABLISHED, p->now);
}

/* flow_balance makes the pair of a new flow to a service. */
static __always_inline int flow_balance(struct __sk_buff *skb, const struct packet *p,
					const struct frontend *f, const struct frontend_key *key,
					const struct node_settings *s, __u32 side, int owner,
					__u32 retry)
{
	__u32 id, index, state = p->tcp_flags & TCP_SYN ? CT_OPENING : CT_ESTABLISHED;
	struct backend_stat *stat;
	struct ct_pair *pair;
	struct backend *b;
	int chosen, taken;

	chosen = choose_backend(key, p, RETRY_BACKEND(retry));
	if (chosen < 0)
		return chosen;
	id = chosen;
	b = bpf_map_lookup_elem(&backends, &id);
	stat = bpf_map_lookup_elem(&backend_stats, &id);
	taken = ct_take(p->now);
	index = taken;
	pair = taken < 0 ? NULL : bpf_map_lookup_elem(&ct_pairs, &index);
	if (!b || !stat || !pair)
		return -DROP_CT_FULL;
	flow_begin(pair, p);
	pair->service = b->service;
	pair->backend = id;
	pair->backend_gen = b->gen;
	pair->flags = RETRY_COUNT(retry) << 8 & PAIR_REFUSALS;
	if (latency_wanted(f, p))
		pair->flags |= latency_begin(p, index);
	flow_reply_tuple(pair, p, b, s, side, owner);
	if (side == SIDE_CONTAINER)
		flow_leave_container(skb, pair, b, s->flags);
	else
		flow_leave_host(pair, b, s);
	taken = flow_publish(index, pair, state, p->now);
	if (taken == FLOW_PAIR(index))
		__sync_fetch_and_add(&stat->total, 1);
	if (taken == FLOW_PAIR(index) && state == CT_OPENING)
		__sync_fetch_and_add(&stat->syns, 1);
	return taken;
}

#endif
