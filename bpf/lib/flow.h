/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The way of a flow's exceptional packets: its first, and those with SYN, FIN or RST.
 *
 * Established packets never come here (flow_hot decides), so nothing here is counted in
 * nanoseconds, and everything may be a function call.
 */
#ifndef TCLB_FLOW_H
#define TCLB_FLOW_H

#include "own.h"
#include "pair.h"
#include "return.h"
#include "tcp.h"

/* What flow_packet says besides -DROP_... : go on with the pair, or not ours. */
#define FLOW_AGAIN(retry) (-1000 - (int)(retry))
#define FLOW_RETRY(flow) (-1000 - (flow))

/* flow_hot says whether the hit needs nothing but translation: the way of nearly all packets.
 * Direct flows have backend 0, a record that always lives.
 */
static __always_inline bool flow_hot(const struct ct_hit *hit, const struct packet *p)
{
	__u32 id = hit->pair->backend;
	struct backend *b;

	if (hit->pair->state != CT_ESTABLISHED || p->tcp_flags & TCP_CONTROL ||
	    hit->pair->flags & (PAIR_ASKS | PAIR_ASKED))
		return false;
	b = bpf_map_lookup_elem(&backends, &id);
	return b && b->gen == hit->pair->backend_gen && b->flags & BACKEND_LIVE;
}

/* flow_untouched says whether packets of a direct flow go on as they are. */
static __always_inline bool flow_untouched(const struct ct_pair *pair)
{
	return pair->flags & PAIR_DIRECT &&
	       pair->half[DIR_REPLY].tuple.dport == pair->half[DIR_ORIGINAL].tuple.sport;
}

/* flow_at_home says whether a container's packet comes from the veth that its flow is delivered to. */
static __always_inline bool flow_at_home(const struct __sk_buff *skb, const struct ct_hit *hit)
{
	const struct ct_half *other = &hit->pair->half[!(hit->dir & 1)];

	return other->ifindex == skb->ifindex && other->deliver == DELIVER_PEER;
}

/* flow_new handles a packet that no pair knows. A TCP packet in mid-flow gets a pair where the
 * choice is a function of its tuple: it goes where its flow went before. Returns FLOW_PAIR, FLOW_NONE or -DROP_...
 */
__noinline int flow_new(struct __sk_buff *skb, const struct packet *p, __u32 side, __u32 retry)
{
	struct frontend_key key ALIGNED = {};
	struct node_settings *s;
	struct frontend *f;
	__u32 zero = 0;
	bool vip, own;
	int owner;

	if (!p)
		return FLOW_NONE;
	addr_copy(key.vip, p->tuple.daddr);
	f = bpf_map_lookup_elem(&frontends, &key);
	s = bpf_map_lookup_elem(&settings, &zero);
	if (!f || !s)
		return FLOW_NONE;
	vip = f->kind == FRONTEND_VIP;
	own = vip && side == SIDE_UPLINK && f->flags & FRONTEND_OWN;
	key.port = p->tuple.dport;
	key.proto = p->tuple.proto;
	f = bpf_map_lookup_elem(&frontends, &key);
	if (!f && !vip)
		return FLOW_NONE;
	if (f && f->kind == FRONTEND_BACKEND && frontend_is(f, &key))
		return side == SIDE_HOST ? FLOW_NONE : flow_direct(skb, p, s, side);
	if (own && (!f || own_socket(skb, p)))
		return FLOW_NONE;
	owner = flow_sender(p, skb->ifindex, side);
	if (owner < 0 && s->flags & SETTING_ANTI_SPOOF)
		return owner;
	if (!f)
		return -DROP_NO_FRONTEND;
	return flow_balance(skb, p, f, &key, s, side, owner, retry);
}

/* flow_packet handles a packet that has a pair but is not a plain one of an established flow.
 * `place` is index << 1 | dir of the hit. Returns FLOW_PAIR, FLOW_NONE, FLOW_AGAIN of a retry
 * (or 0) if the pair had to go and the packet begins a new flow, or -DROP_...
 */
__noinline int flow_packet(const struct packet *p, __u32 place, __u32 life)
{
	struct ct_hit hit = {.index = place >> 1, .dir = place & 1, .life = life};
	struct backend *b;
	bool syn;

	if (!p)
		return FLOW_NONE;
	hit.pair = bpf_map_lookup_elem(&ct_pairs, &hit.index);
	if (!hit.pair)
		return FLOW_NONE;
	b = flow_backend(hit.pair);
	syn = (p->tcp_flags & TCP_CONTROL) == TCP_SYN;
	if (!b && (hit.dir == DIR_REPLY || (p->tuple.proto == PROTO_TCP && !syn))) {
		/* It still resets who sends on it, but is no connection any more. */
		if (p->tuple.proto == PROTO_TCP && hit.pair->state != CT_CLOSING)
			ct_move(hit.index, hit.pair->state, CT_CLOSING, p->now);
		return -DROP_BACKEND_GONE;
	}
	if (!b || (hit.dir == DIR_ORIGINAL && syn && !tcp_syn(&hit, p, b))) {
		__u32 retry = tcp_retry(hit.pair);

		ct_remove(hit.index, life);
		return FLOW_AGAIN(retry);
	}
	if (p->tuple.proto == PROTO_TCP) {
		if (tcp_refused(&hit, p))
			return -DROP_SECOND_CHANCE;
		tcp_control(&hit, p);
	}
	if (hit.pair->flags & (PAIR_ASKS | PAIR_ASKED) && hit.pair->state != CT_OPENING)
		latency_data(hit.pair, hit.index, hit.dir, p);
	return FLOW_PAIR(hit.index);
}

/* flow_find fills hit with the half that a packet belongs to, making the flow if it has to.
 * Returns 0, 1 for a packet that is not ours, or -DROP_...
 */
static __always_inline int flow_find(struct __sk_buff *skb, const struct packet *p,
				     struct ct_hit *hit, __u32 side)
{
	int flow = FLOW_AGAIN(0);

	if (ct_lookup(&p->tuple, hit)) {
		if (flow_hot(hit, p))
			return 0;
		flow = flow_packet(p, hit->index << 1 | hit->dir, hit->life);
	}
	if (flow <= FLOW_AGAIN(0)) {
		hit->dir = DIR_ORIGINAL;
		flow = side == SIDE_OVERLAY ? flow_return(skb, p)
					    : flow_new(skb, p, side, FLOW_RETRY(flow));
	}
	if (flow == FLOW_NONE)
		return 1;
	if (flow < 0)
		return flow;
	return ct_hit_at(flow - 1, hit->dir, &p->tuple, hit) ? 0 : -DROP_NO_PAIR;
}

#endif
