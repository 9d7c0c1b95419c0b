/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The way of a flow's exceptional packets: its first, and those with SYN, FIN or RST.
 *
 * Established packets never come here (flow_hot decides), so nothing here is counted in
 * nanoseconds, and everything may be a function call.
 */
#ifndef TCLB_FLOW_H
#define TCLB_FLOW_H

#include "conntrack.h"
#include "select.h"

#define FLOW_PORT_TRIES 10
#define FLOW_PORT_MIN 1024
#define FLOW_ACK_WINDOW (1 << 20) /* how far the handshake's last ACK may have run on */

/* What flow_packet says besides -DROP_... : go on with the pair, or not ours. */
#define FLOW_NONE 0
#define FLOW_AGAIN(retry) (-1000 - (int)(retry))
#define FLOW_RETRY(flow) (-1000 - (flow))
#define FLOW_PAIR(index) ((int)(index) + 1)

/* A retry is the backend that refused a flow, and in its upper byte how many did; 0 for a new flow.
 * Each costs the client a retransmission: a second, then two.
 */
#define RETRY_SHIFT 24
#define RETRY_BACKEND(retry) ((retry) & ((1 << RETRY_SHIFT) - 1))
#define RETRY_COUNT(retry) ((retry) >> RETRY_SHIFT)
#define RETRY_MAX 2

/* Which program asks: decides how the two directions leave. */
enum flow_side {
	SIDE_CONTAINER = 0, /* from_container: the client is the container behind skb->ifindex */
	SIDE_HOST = 1,	    /* from_host: the client is a process here, or forwarded by us */
};

/* flow_hot says whether the hit needs nothing but translation: the way of nearly all packets.
 * Direct flows have backend 0, a record that always lives.
 */
static __always_inline bool flow_hot(const struct ct_hit *hit, const struct packet *p)
{
	__u32 id = hit->pair->backend;
	struct backend *b;

	if (hit->pair->state != CT_ESTABLISHED || p->tcp_flags & TCP_CONTROL)
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

/* flow_backend returns the pair's backend if it is still the one that was chosen, else NULL. */
static __always_inline struct backend *flow_backend(const struct ct_pair *pair)
{
	__u32 id = pair->backend;
	struct backend *b = bpf_map_lookup_elem(&backends, &id);

	return b && b->gen == pair->backend_gen && b->flags & BACKEND_LIVE ? b : NULL;
}

/* flow_owner returns the container that has the packet's source behind the veth ifindex, or
 * -DROP_SPOOFED if that is not its address.
 */
__noinline int flow_owner(const struct packet *p, __u32 ifindex)
{
	struct endpoint_key key ALIGNED = {.ifindex = ifindex};
	struct endpoint *own;

	if (!p)
		return -DROP_SPOOFED;
	addr_copy(key.addr, p->tuple.saddr);
	own = bpf_map_lookup_elem(&endpoints, &key);
	return own ? (int)own->owner : -DROP_SPOOFED;
}

/* flow_allowed checks that the service admits the source. */
__noinline int flow_allowed(const struct packet *p, __u32 service)
{
	struct allow_key key ALIGNED = {.prefix_len = 32 + 8 * ADDR_LEN, .service = service};

	if (!p)
		return -DROP_NOT_ALLOWED;
	addr_copy(key.addr, p->tuple.saddr);
	return bpf_map_lookup_elem(&allow, &key) ? 0 : -DROP_NOT_ALLOWED;
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
	if (p->tcp_flags & TCP_SYN) {
		pair->half[DIR_ORIGINAL].flags = HALF_SYN;
		pair->half[DIR_ORIGINAL].seq = p->seq + 1;
	}
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
					const struct frontend *f, const struct node_settings *s,
					__u32 side, int owner, __u32 retry)
{
	__u32 id, index, state = p->tcp_flags & TCP_SYN ? CT_OPENING : CT_ESTABLISHED;
	struct backend_stat *stat;
	struct ct_pair *pair;
	struct backend *b;
	int chosen, taken;

	chosen = select_backend(f, &p->tuple, RETRY_BACKEND(retry), p->now, s->second);
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
	pair->service = f->service;
	pair->backend = id;
	pair->backend_gen = b->gen;
	pair->flags = RETRY_COUNT(retry) << 8 & PAIR_REFUSALS;
	flow_reply_tuple(pair, p, b, s, side, owner);
	if (side == SIDE_CONTAINER)
		flow_leave_container(skb, pair, b, s->flags);
	else
		flow_leave_host(pair, b, s);
	taken = flow_publish(index, pair, state, p->now);
	if (taken == FLOW_PAIR(index))
		__sync_fetch_and_add(&stat->total, 1);
	return taken;
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
	int err, owner = 0;

	if (!p)
		return FLOW_NONE;
	addr_copy(key.vip, p->tuple.daddr);
	key.port = p->tuple.dport;
	key.proto = p->tuple.proto;
	f = bpf_map_lookup_elem(&frontends, &key);
	s = bpf_map_lookup_elem(&settings, &zero);
	if (!f || !s)
		return FLOW_NONE;
	if (f->kind == FRONTEND_BACKEND)
		return side == SIDE_CONTAINER ? flow_direct(skb, p) : FLOW_NONE;
	if (side == SIDE_CONTAINER)
		owner = flow_owner(p, skb->ifindex);
	if (owner < 0 && s->flags & SETTING_ANTI_SPOOF)
		return owner;
	if (f->flags & FRONTEND_ALLOW && (err = flow_allowed(p, f->service)))
		return err;
	if (p->tuple.proto == PROTO_TCP) {
		__u8 control = p->tcp_flags & TCP_CONTROL;

		if (control == TCP_SYN && p->tcp_flags & TCP_ACK)
			return -DROP_NO_PAIR;
		if (control != TCP_SYN && control & (TCP_SYN | TCP_RST))
			return -DROP_NO_PAIR;
		if (control != TCP_SYN && f->scheduler != SCHED_MAGLEV)
			return -DROP_NO_PAIR;
	}
	return flow_balance(skb, p, f, s, side, owner, retry);
}

/* flow_syn handles a SYN on a pair that exists. Returns whether the pair goes on. */
static __always_inline bool flow_syn(struct ct_hit *hit, const struct packet *p, struct backend *b)
{
	struct ct_half *half = &hit->pair->half[DIR_ORIGINAL];

	if (hit->pair->state == CT_CLOSING || hit->pair->flags & PAIR_REFUSED)
		return false;
	/* Half-open: a retransmission, or a new attempt from the same port; either way the backend
	 * stays while it may take new flows. Established: passed on, the backend answers.
	 */
	if (hit->pair->state == CT_OPENING && hit->pair->backend && !(b->flags & BACKEND_NEW))
		return false;
	half->seq = p->seq + 1;
	return true;
}

/* flow_another says whether a flow that its backend refuses can go to one that has refused nobody. */
static __always_inline bool flow_another(const struct ct_pair *pair, __u32 now)
{
	const struct tuple *t = &pair->half[DIR_ORIGINAL].tuple;
	struct frontend_key key ALIGNED = {.port = t->dport, .proto = t->proto};
	struct node_settings *s;
	struct frontend *f;
	__u32 zero = 0;

	addr_copy(key.vip, t->daddr);
	f = bpf_map_lookup_elem(&frontends, &key);
	s = bpf_map_lookup_elem(&settings, &zero);
	return f && s && f->table_len && select_walk(f, 0, pair->backend, now - s->second);
}

/* flow_refused gives a flow that its backend refuses another chance: the refusal is not passed on,
 * and when the client repeats its SYN, a second later, another backend gets it. So a connection
 * survives a backend that dies, or has not begun to listen, between two updates of the table.
 * A refusal is remembered, so others do not meet it; when all have refused, it is passed on.
 */
static __always_inline bool flow_refused(struct ct_hit *hit, const struct packet *p)
{
	struct ct_pair *pair = hit->pair;
	struct backend_stat *stat;
	__u32 id = pair->backend;

	if (!(p->tcp_flags & TCP_RST) || hit->dir != DIR_REPLY || pair->state != CT_OPENING ||
	    !id || p->ack != pair->half[DIR_ORIGINAL].seq)
		return false;
	stat = bpf_map_lookup_elem(&backend_stats, &id);
	if (stat)
		stat->refused = p->now ? p->now : 1;
	if ((pair->flags & PAIR_REFUSALS) >> 8 >= RETRY_MAX || !flow_another(pair, p->now))
		return false;
	pair->flags |= PAIR_REFUSED;
	return true;
}

/* flow_control follows the TCP state machine for a packet of a pair that goes on. */
static __always_inline void flow_control(struct ct_hit *hit, const struct packet *p)
{
	struct ct_pair *pair = hit->pair;
	struct ct_half *mine = &pair->half[hit->dir & 1], *other = &pair->half[!(hit->dir & 1)];
	__u32 state = pair->state;

	if (p->tcp_flags & TCP_RST) {
		mine->flags |= HALF_RST;
		if (state != CT_CLOSING)
			ct_move(hit->index, state, CT_CLOSING, p->now);
		return;
	}
	if (p->tcp_flags & TCP_SYN) {
		if (hit->dir != DIR_REPLY || p->ack != other->seq)
			return;
		mine->flags |= HALF_SYN;
		mine->seq = p->seq + 1;
		if (state == CT_ESTABLISHED) /* the backend had forgotten the flow: it restarts */
			ct_move(hit->index, state, CT_OPENING, p->now);
		return;
	}
	if (p->tcp_flags & TCP_FIN)
		mine->flags |= HALF_FIN;
	if (state == CT_OPENING && hit->dir == DIR_ORIGINAL && p->tcp_flags & TCP_ACK &&
	    other->flags & HALF_SYN && p->ack - other->seq < FLOW_ACK_WINDOW) {
		ct_move(hit->index, state, CT_ESTABLISHED, p->now);
		state = CT_ESTABLISHED;
	}
	if (state == CT_ESTABLISHED && mine->flags & HALF_FIN && other->flags & HALF_FIN)
		ct_move(hit->index, state, CT_CLOSING, p->now);
}

/* flow_packet handles a packet that has a pair but is not a plain one of an established flow.
 * `place` is index << 1 | dir of the hit. Returns FLOW_PAIR, FLOW_NONE, FLOW_AGAIN of a retry
 * (or 0) if the pair had to go and the packet begins a new flow, or -DROP_...
 */
__noinline int flow_packet(const struct packet *p, __u32 place, __u32 life)
{
	struct ct_hit hit = {.index = place >> 1, .dir = place & 1, .life = life};
	struct backend *b;

	if (!p)
		return FLOW_NONE;
	hit.pair = bpf_map_lookup_elem(&ct_pairs, &hit.index);
	if (!hit.pair)
		return FLOW_NONE;
	b = flow_backend(hit.pair);
	if (!b && hit.dir == DIR_REPLY)
		return -DROP_BACKEND_GONE;
	if (!b && p->tuple.proto == PROTO_TCP && (p->tcp_flags & TCP_CONTROL) != TCP_SYN)
		return -DROP_BACKEND_GONE;
	if (!b || (hit.dir == DIR_ORIGINAL && (p->tcp_flags & TCP_CONTROL) == TCP_SYN &&
		   !flow_syn(&hit, p, b))) {
		__u32 retry = 0;

		if (hit.pair->flags & PAIR_REFUSED)
			retry = hit.pair->backend | (((hit.pair->flags & PAIR_REFUSALS) >> 8) + 1)
							    << RETRY_SHIFT;
		ct_remove(hit.index, life);
		return FLOW_AGAIN(retry);
	}
	if (p->tuple.proto == PROTO_TCP) {
		if (flow_refused(&hit, p))
			return -DROP_SECOND_CHANCE;
		flow_control(&hit, p);
	}
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
		flow = flow_new(skb, p, side, FLOW_RETRY(flow));
	}
	if (flow == FLOW_NONE)
		return 1;
	if (flow < 0)
		return flow;
	return ct_hit_at(flow - 1, hit->dir, &p->tuple, hit) ? 0 : -DROP_NO_PAIR;
}

#endif
