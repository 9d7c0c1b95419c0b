//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc egress of tclb0: what this host, or an unattached container behind it, sends to a VIP.
 *
 * The routes of the VIPs lead here and nowhere else, so nothing may pass: what is not
 * balanced ends here rather than looping by the default route.
 */
#include <linux/bpf.h>
#include "lib/deliver.h"
#include "lib/flow.h"
#include "lib/reject.h"

/* answer_host counts a refusal and tells its sender, by the ingress of tclb0. */
static __always_inline int answer_host(struct __sk_buff *skb, const struct packet *p, int error)
{
	if (!reject_wanted(error))
		return verdict_drop(error);
	verdict_count(error);
	error = reject_answer(skb, p);
	if (!error)
		error = reject_swap_macs(skb);
	if (error)
		return verdict_drop(error);
	return deliver_from_host(skb, DELIVER_HOST, skb->ifindex);
}

/* refuse ends what no flow is for; only packets to a VIP count and are answered. */
static __always_inline int refuse(struct __sk_buff *skb, const struct packet *p, int parsed)
{
	struct frontend_key key ALIGNED = {};

	if (parsed == PARSED_FOREIGN)
		return VERDICT_DROP;
	addr_copy(key.vip, p->tuple.daddr);
	if (!bpf_map_lookup_elem(&frontends, &key))
		return VERDICT_DROP;
	if (parsed == PARSED_FLOW)
		return answer_host(skb, p, -DROP_NO_FRONTEND);
	return verdict_drop(p->fragment ? -DROP_FRAGMENT : -DROP_UNROUTABLE);
}

static __always_inline int forward(struct __sk_buff *skb, const struct packet *p,
				   struct ct_hit *hit)
{
	struct nat_target to;
	int err;

	ct_touch(skb, &hit->pair->half[hit->dir & 1], p);
	err = nat_target(hit, &to);
	if (!err)
		err = nat_translate(skb, p, &to);
	return err ? verdict_drop(err) : deliver_from_host(skb, to.deliver, to.ifindex);
}

SEC("tc")
int from_host(struct __sk_buff *skb)
{
	struct packet p;
	struct ct_hit hit = {};
	int found, parsed;

	parsed = parse_packet(skb, &p);
	if (parsed != PARSED_FLOW)
		return refuse(skb, &p, parsed);
	found = flow_find(skb, &p, &hit, SIDE_HOST);
	if (found > 0)
		return refuse(skb, &p, parsed);
	if (found < 0)
		return hit.dir == DIR_REPLY ? verdict_drop(found) : answer_host(skb, &p, found);
	return forward(skb, &p, &hit);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
