//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc ingress of a container's veth: what the container sends. */
#include <linux/bpf.h>
#include "lib/deliver.h"
#include "lib/flow.h"
#include "lib/reject.h"

/* In host stack mode the reply goes on untranslated, by way of the host: a bridge that reads
 * its own MAC hands the frame to routing, where the firewall sees it.
 */
static __always_inline int reply_to_stack(struct __sk_buff *skb, const struct packet *p)
{
	struct endpoint_key key ALIGNED = {.ifindex = skb->ifindex};
	struct endpoint *own;

	addr_copy(key.addr, p->tuple.saddr);
	own = bpf_map_lookup_elem(&endpoints, &key);
	if (own && own->up_ifindex)
		bpf_skb_store_bytes(skb, 0, own->up_mac, MAC_LEN, 0);
	return verdict_next();
}

/* A packet with its pair: account, translate, deliver. */
static __always_inline int forward(struct __sk_buff *skb, const struct packet *p,
				   struct ct_hit *hit)
{
	struct nat_target to;
	int err;

	ct_touch(skb, &hit->pair->half[hit->dir & 1], p);
	err = nat_target(hit, &to);
	if (err)
		return verdict_drop(err);
	if (flow_untouched(hit->pair))
		return verdict_next();
	if (hit->dir == DIR_REPLY && to.deliver == DELIVER_STACK)
		return reply_to_stack(skb, p);
	err = nat_translate(skb, p, &to);
	if (err)
		return verdict_drop(err);
	return deliver_from_veth(skb, to.deliver, to.ifindex);
}

/* What a removed backend still answers becomes a reset for its client, who would wait otherwise:
 * the answer that the client's next segment would get, at the sequence number that it expects.
 */
static __always_inline int reset_client(struct __sk_buff *skb, struct packet *p, struct ct_hit *hit)
{
	const struct ct_half *back = &hit->pair->half[DIR_REPLY];
	int err;

	p->tuple = hit->pair->half[DIR_ORIGINAL].tuple;
	p->ack = p->seq;
	p->tcp_flags = (p->tcp_flags & TCP_RST) | TCP_ACK;
	err = reject_answer(skb, p);
	if (!err && back->deliver != DELIVER_STACK &&
	    bpf_skb_store_bytes(skb, 0, back->mac, MAC_LEN, 0))
		err = -DROP_REWRITE;
	return err ? verdict_drop(err) : deliver_from_veth(skb, back->deliver, back->ifindex);
}

/* A refusal that the container is told of comes back to it by its own veth. */
static __always_inline int refuse(struct __sk_buff *skb, struct packet *p, struct ct_hit *hit,
				  int error)
{
	if (!reject_wanted(error) ||
	    (hit->dir == DIR_REPLY && (error != -DROP_BACKEND_GONE || p->tuple.proto != PROTO_TCP)))
		return verdict_drop(error);
	verdict_count(error);
	if (hit->dir == DIR_REPLY)
		return reset_client(skb, p, hit);
	error = reject_answer(skb, p);
	if (!error)
		error = reject_swap_macs(skb);
	if (error)
		return verdict_drop(error);
	deliver_to_host_type(skb);
	return bpf_redirect_peer(skb->ifindex, 0);
}

SEC("tc")
int from_container(struct __sk_buff *skb)
{
	struct packet p;
	struct ct_hit hit = {};
	int found;

	if (parse_packet(skb, &p) != PARSED_FLOW)
		return verdict_next();
	found = flow_find(skb, &p, &hit, SIDE_CONTAINER);
	if (found > 0)
		return verdict_next();
	if (found < 0)
		return refuse(skb, &p, &hit, found);
	return forward(skb, &p, &hit);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
