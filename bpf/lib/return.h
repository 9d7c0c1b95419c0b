/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Flows that another node sends here: it chose the backend, this one delivers and remembers where
 * the answers go. That memory is a pair like any other, without a service.
 */
#ifndef TCLB_RETURN_H
#define TCLB_RETURN_H

#include "pair.h"
#include "probe.h"

/* return_stale says whether a packet's container is not any more where its flow is delivered. */
static __always_inline bool return_stale(const struct ct_hit *hit)
{
	const struct ct_half *out = &hit->pair->half[DIR_ORIGINAL];
	struct endpoint *e;

	if (!(hit->pair->flags & PAIR_RETURN) || hit->dir != DIR_ORIGINAL ||
	    out->deliver != DELIVER_PEER)
		return false;
	e = flow_attached(out->tuple.daddr);
	return !e || e->ifindex != out->ifindex;
}

/* return_tuple writes how the backend will answer. What is no container of ours answers through the
 * host's stack, which knows no way to the client: it sees the hairpin address, whose answers come to
 * tclb0. So does a container that has the client's address itself.
 */
static __always_inline void return_tuple(struct ct_pair *pair, const struct packet *p,
					 const struct node_settings *s, bool local)
{
	struct tuple *reply = &pair->half[DIR_REPLY].tuple;

	reply->proto = p->tuple.proto;
	addr_copy(reply->saddr, p->tuple.daddr);
	reply->sport = p->tuple.dport;
	reply->dport = p->tuple.sport;
	if (local && !addr_equal(p->tuple.saddr, p->tuple.daddr))
		addr_copy(reply->daddr, p->tuple.saddr);
	else
		addr_copy(reply->daddr, addr_is_v4(p->tuple.daddr) ? s->hairpin4 : s->hairpin6);
}

/* return_begins says whether a packet without a pair may make one. */
static __always_inline bool return_begins(const struct packet *p)
{
	if (p->tuple.proto != PROTO_TCP)
		return true;
	if (p->tcp_flags & TCP_SYN)
		return (p->tcp_flags & (TCP_CONTROL | TCP_ACK)) == TCP_SYN;
	return !(p->tcp_flags & TCP_RST) && p->tcp_flags & TCP_ACK;
}

/* flow_return makes the pair of a flow that came by tunnel. Returns FLOW_PAIR, FLOW_NONE for a probe, or
 * -DROP_...
 */
__noinline int flow_return(struct __sk_buff *skb, const struct packet *p)
{
	__u32 zero = 0, index;
	struct node_settings *s = bpf_map_lookup_elem(&settings, &zero);
	struct endpoint *e;
	struct ct_pair *pair;
	int taken;

	if (!p || !s)
		return -DROP_TUNNEL_CARGO;
	if (probe_is(skb, p))
		return FLOW_NONE;
	if (!return_begins(p) || flow_is_ours(p, SIDE_OVERLAY))
		return -DROP_NO_PAIR;
	e = flow_attached(p->tuple.daddr);
	taken = ct_take(p->now);
	index = taken;
	pair = taken < 0 ? NULL : bpf_map_lookup_elem(&ct_pairs, &index);
	if (!pair)
		return -DROP_CT_FULL;
	flow_begin(pair, p);
	pair->flags = PAIR_RETURN;
	return_tuple(pair, p, s, e);
	if (e)
		flow_leave_by(&pair->half[DIR_ORIGINAL], DELIVER_PEER, e->ifindex, e->mac);
	else
		flow_leave_by(&pair->half[DIR_ORIGINAL], DELIVER_HOST, s->host_ifindex,
			      s->host_mac);
	tunnel_leave(&pair->half[DIR_REPLY], p->tuple.zone);
	return flow_publish(index, pair, p->tcp_flags & TCP_SYN ? CT_OPENING : CT_ESTABLISHED,
			    p->now);
}

#endif
