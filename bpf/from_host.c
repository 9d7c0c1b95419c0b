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
#include "lib/other.h"
#include "lib/release.h"
#include "lib/reject.h"

/* answer_sender sends the packet, an answer by now, back up by the ingress of tclb0. */
static __always_inline int answer_sender(struct __sk_buff *skb)
{
	int err = reject_swap_macs(skb);

	return err ? verdict_drop(err) : deliver_from_host(skb, DELIVER_HOST, skb->ifindex);
}

/* refuse counts a refusal and tells its sender. */
static __always_inline int refuse(struct __sk_buff *skb, const struct packet *p, __u32 dir,
				  int error)
{
	if (dir == DIR_REPLY || !reject_wanted(error))
		return verdict_drop(error);
	verdict_count(error);
	error = reject_answer(skb, p);
	return error ? verdict_unanswered(error) : answer_sender(skb);
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
	if (!err && p->fragment)
		err = fragment_first(skb, p, &to, fragment_place_of(hit),
				     FIRST_TRANSLATED | FIRST_EGRESS);
	return err ? verdict_drop(err) : deliver_from_host(skb, to.deliver, to.ifindex);
}

/* other handles what has no ports of its own. Only what goes to a VIP counts when it ends here. */
static __noinline int other(struct __sk_buff *skb, const struct packet *p, int parsed)
{
	struct nat_target to;
	struct ct_hit hit = {};
	struct quote q;
	int found;

	if (parsed == PARSED_FOREIGN)
		return VERDICT_DROP;
	found = other_find(skb, p, parsed, &q, &hit, SIDE_HOST);
	if (found == OTHER_FOREIGN)
		return flow_is_vip(p) ? verdict_drop(-DROP_UNROUTABLE) : VERDICT_DROP;
	if (found == OTHER_WAITS)
		return VERDICT_DROP;
	if (found == OTHER_ANSWERED)
		return answer_sender(skb);
	if (!found)
		found = nat_target(&hit, &to);
	if (!found)
		found = other_translate(skb, p, parsed, &q, &hit, &to);
	return found ? verdict_drop(found) : deliver_from_host(skb, to.deliver, to.ifindex);
}

SEC("tc")
int from_host(struct __sk_buff *skb)
{
	struct packet p;
	struct ct_hit hit = {};
	int found, parsed;

	parsed = parse_packet(skb, &p);
	if (parsed != PARSED_FLOW)
		return other(skb, &p, parsed);
	found = flow_find(skb, &p, &hit, SIDE_HOST);
	if (found > 0)
		return VERDICT_DROP;
	if (found < 0)
		return refuse(skb, &p, hit.dir, found);
	return forward(skb, &p, &hit);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
