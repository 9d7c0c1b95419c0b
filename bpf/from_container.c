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
	return deliver_from_veth(skb, &to);
}

/* A refusal that the container is told of comes back to it by its own veth. */
static __always_inline int refuse(struct __sk_buff *skb, const struct packet *p, struct ct_hit *hit,
				  int error)
{
	if (hit->dir == DIR_REPLY || !reject_wanted(error))
		return verdict_drop(error);
	verdict_count(error);
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
