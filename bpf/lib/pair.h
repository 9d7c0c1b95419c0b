/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Making a pair: which tuples its halves have, how each direction leaves. */
#ifndef TCLB_PAIR_H
#define TCLB_PAIR_H

#include "choose.h"
#include "source.h"
#include "tcp.h"

#define FLOW_PORT_TRIES 16
#define FLOW_MOVED_SPAN (1 << 23) /* sequence numbers: more than any window in flight */

/* What the functions of a flow return besides -DROP_...: not ours, or the pair to go on with. */
#define FLOW_NONE 0
#define FLOW_PAIR(index) ((int)(index) + 1)

/* flow_backend returns the pair's backend if it is still the one that was chosen, else NULL. */
static __always_inline struct backend *flow_backend(const struct ct_pair *pair)
{
	__u32 id = pair->backend;
	struct backend *b = bpf_map_lookup_elem(&backends, &id);

	return b && b->gen == pair->backend_gen && b->flags & BACKEND_LIVE ? b : NULL;
}

/* flow_reply_tuple writes how the backend will answer. The client's own address stays, except
 * that a container reaching itself, by whichever of its interfaces, sees the hairpin address,
 * that a host reaching what is not attached here sees the VIP (answers to either come back
 * to our programs, and a container never sees a packet from its own address), and that a client
 * whose address may be there too goes to another node under the address of this one.
 */
static __always_inline void flow_reply_tuple(struct ct_pair *pair, const struct packet *p,
					     const struct backend *b, const struct node_settings *s,
					     __u32 side, int owner)
{
	struct tuple *reply = &pair->half[DIR_REPLY].tuple;
	bool v4 = addr_is_v4(b->addr);

	reply->proto = p->tuple.proto;
	reply->pad = 0;
	reply->zone = b->zone;
	addr_copy(reply->saddr, b->addr);
	reply->sport = b->port;
	reply->dport = p->tuple.sport;
	if (b->flags & BACKEND_LOCAL &&
	    (addr_equal(b->addr, p->tuple.saddr) || (owner > 0 && (int)b->owner == owner))) {
		pair->flags |= PAIR_HAIRPIN;
		addr_copy(reply->daddr, v4 ? s->hairpin4 : s->hairpin6);
	} else if (vlan_is(b->zone)) {
		flow_reply_to_vlan(pair, p, b, side);
	} else if (b->zone && tunnel_snat(p, b->zone, side == SIDE_UPLINK)) {
		pair->flags |= PAIR_SNAT;
		addr_copy(reply->daddr, v4 ? s->snat4 : s->snat6);
		reply->dport = flow_other_port(pair);
	} else if (side == SIDE_HOST && !(b->flags & BACKEND_LOCAL) && !b->zone) {
		addr_copy(reply->daddr, p->tuple.daddr);
	} else {
		addr_copy(reply->daddr, p->tuple.saddr);
	}
}

/* flow_leave_by fills in how one half leaves. */
static __always_inline void flow_leave_by(struct ct_half *half, __u8 deliver, __u32 ifindex,
					  const __u8 *mac)
{
	half->deliver = deliver;
	half->ifindex = ifindex;
	if (mac)
		__builtin_memcpy(half->mac, mac, MAC_LEN);
}

/* flow_leave_back says how answers leave: the way that the flow's first packet came. */
static __always_inline void flow_leave_back(struct __sk_buff *skb, struct ct_pair *pair,
					    const struct node_settings *s, __u32 side)
{
	struct ct_half *back = &pair->half[DIR_REPLY];

	if (side == SIDE_HOST) {
		flow_leave_by(back, DELIVER_HOST, s->host_ifindex, s->host_mac);
		return;
	}
	flow_leave_by(back, side == SIDE_UPLINK ? DELIVER_UPLINK : DELIVER_PEER, skb->ifindex,
		      NULL);
	bpf_skb_load_bytes(skb, ETH_ALEN, back->mac, MAC_LEN);
}

/* flow_leave says how both directions of a new flow leave. In host stack mode they go by the stack, but
 * for what it knows no way for: to itself, and to other nodes.
 */
static __always_inline void flow_leave(struct __sk_buff *skb, struct ct_pair *pair,
				       const struct backend *b, const struct node_settings *s,
				       __u32 side)
{
	struct ct_half *out = &pair->half[DIR_ORIGINAL];

	if (s->flags & SETTING_HOST_STACK && side != SIDE_HOST && !(pair->flags & PAIR_HAIRPIN) &&
	    !b->zone)
		return;
	flow_leave_back(skb, pair, s, side);
	if (b->flags & BACKEND_LOCAL)
		flow_leave_by(out, DELIVER_PEER, b->ifindex, b->mac);
	else if (b->zone)
		tunnel_leave(out, b->zone);
	else if (side == SIDE_HOST)
		flow_leave_by(out, DELIVER_HOST, s->host_ifindex, s->host_mac);
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

/* flow_moved says whether a new pair, made in mid-flow, is the old one's flow that comes another way:
 * by another node, which chose the same backend. Its numbers go on where the old one's were.
 */
static __always_inline bool flow_moved(const struct ct_pair *pair, const struct ct_pair *old)
{
	const struct ct_half *half = &pair->half[DIR_ORIGINAL], *was = &old->half[DIR_ORIGINAL];

	return half->tuple.proto == PROTO_TCP && !(half->flags & HALF_SYN) &&
	       old->state == CT_ESTABLISHED &&
	       half->end - was->end + FLOW_MOVED_SPAN <= 2 * FLOW_MOVED_SPAN;
}

/* flow_stale says whether the pair that stands in a new flow's way has nothing left to lose. */
static __noinline bool flow_stale(const struct ct_pair *pair, __u32 index, __u32 *life)
{
	struct ct_pair *old = bpf_map_lookup_elem(&ct_pairs, &index);

	if (!old)
		return false;
	*life = old->life;
	return old->state == CT_CLOSING || !flow_backend(old) || flow_moved(pair, old);
}

/* flow_index enters a half, into the place of another one if it has to. Returns as ct_index_add does. */
static __noinline int flow_index(__u32 index, __u32 dir, __u32 state, __u32 now)
{
	int other = ct_index_add(index, dir);

	if (other != CT_NO_ROOM || !ct_uncrowd(index, dir, state, now))
		return other;
	return ct_index_add(index, dir);
}

/* flow_index_reply enters the reply half, under another source port if the tuple is taken. */
static __always_inline int flow_index_reply(__u32 index, struct ct_pair *pair, __u32 state,
					    __u32 now)
{
	for (int i = 0; i < FLOW_PORT_TRIES; i++) {
		int other = flow_index(index, DIR_REPLY, state, now);
		__u32 life = 0;

		if (!other)
			return 0;
		if (other < 0)
			return -DROP_CT_FULL;
		if (flow_stale(pair, other - 1, &life)) {
			ct_remove(other - 1, life);
			continue;
		}
		pair->half[DIR_REPLY].tuple.dport = flow_other_port(pair);
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
	err = flow_index_reply(index, pair, state, now);
	if (err) {
		ct_remove(index, life);
		return err;
	}
	other = flow_index(index, DIR_ORIGINAL, state, now);
	if (other) {
		ct_remove(index, life);
		return other > 0 ? other : -DROP_CT_FULL;
	}
	ct_move(index, CT_FREE, state, now);
	return FLOW_PAIR(index);
}

/* flow_direct tracks a flow to a backend's own address, so that a balanced flow
 * never takes its tuple, nor it theirs. It only ever changes the source port.
 */
static __always_inline int flow_direct(struct __sk_buff *skb, const struct packet *p,
				       const struct node_settings *s, __u32 side)
{
	bool syn = (p->tcp_flags & TCP_CONTROL) == TCP_SYN;
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
	flow_leave_back(skb, pair, s, side); /* once translated, past the egress program */
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
	if (side == SIDE_UPLINK && f->flags & FRONTEND_DSR)
		pair->flags |= PAIR_DSR;
	if (latency_wanted(f, p))
		pair->flags |= latency_begin(p, index);
	flow_reply_tuple(pair, p, b, s, side, owner);
	flow_leave(skb, pair, b, s, side);
	if (pair->flags & PAIR_DSR)
		tunnel_dsr(pair);
	taken = flow_publish(index, pair, state, p->now);
	if (taken != FLOW_PAIR(index))
		return taken;
	__sync_fetch_and_add(&stat->total, 1);
	if (state == CT_OPENING)
		__sync_fetch_and_add(&stat->syns, 1);
	return taken;
}

#endif
