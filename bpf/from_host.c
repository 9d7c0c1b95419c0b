//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc egress of tclb0: what this host, or an unattached container behind it, sends to a VIP.
 *
 * The routes of the VIPs lead here and nowhere else, so nothing may pass: what is not
 * balanced ends here rather than looping by the default route.
 */
#include <linux/bpf.h>
#include "lib/deliver.h"
#include "lib/dsr.h"
#include "lib/flow.h"
#include "lib/other.h"
#include "lib/refuse.h"
#include "lib/release.h"

/* answer_sender sends the packet, an answer by now, back up by the ingress of tclb0. */
static __always_inline int answer_sender(struct __sk_buff *skb)
{
	int err = reject_swap_macs(skb);

	return err ? verdict_drop(err) : deliver_from_host(skb, NULL, DELIVER_HOST, 0);
}

/* refuse counts a refusal and tells its sender. */
static __always_inline int refuse(struct __sk_buff *skb, const struct packet *p,
				  const struct ct_hit *hit, int error)
{
	return refuse_hit(skb, p, hit, error) == REFUSE_TOLD ? answer_sender(skb) : VERDICT_DROP;
}

/* forward sends a packet with its pair on. Returns a verdict through `verdict`, or what its sender is to
 * be told.
 */
static __always_inline int forward(struct __sk_buff *skb, const struct packet *p,
				   struct ct_hit *hit, int *verdict)
{
	struct nat_target to;
	int err;

	err = nat_target(hit, &to);
	if (hit->pair->flags & PAIR_ANSWERS)
		dsr_answer(hit->index << 1 | hit->dir, hit->life, &to);
	if (!err) {
		err = deliver_fits(skb, p, &to);
		if (err)
			return err;
		ct_touch(skb, &hit->pair->half[hit->dir & 1], p);
		err = deliver_translate(skb, p, &to);
		if (!err && hit->pair->flags & PAIR_ANSWERS)
			err = dsr_report(skb, p, hit->index, to.deliver);
	}
	if (!err && p->fragment)
		err = fragment_first(skb, p, &to, fragment_place_of(hit),
				     FIRST_TRANSLATED | FIRST_EGRESS);
	*verdict = err ? verdict_drop(err) : deliver_from_host(skb, p, to.deliver, to.ifindex);
	return 0;
}

/* probe sends a probe of this host's proxy to the node that it is for; all else ends here. */
static __noinline int probe(struct __sk_buff *skb, const struct packet *p)
{
	__u32 id = probe_node(skb, p);
	struct node *n = id ? tunnel_node(id) : NULL;

	if (!n)
		return VERDICT_DROP;
	if (bpf_skb_store_bytes(skb, 0, n->mac, MAC_LEN, 0))
		return verdict_drop(-DROP_REWRITE);
	return deliver_to_node(skb, p, id);
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
	if (!found && parsed == PARSED_LATER && hit.pair->flags & PAIR_ANSWERS)
		dsr_answer(hit.index << 1 | hit.dir, hit.life, &to);
	if (!found)
		found = deliver_fits(skb, p, &to);
	if (!found)
		found = other_translate(skb, p, parsed, &q, &hit, &to);
	return found ? verdict_drop(found) : deliver_from_host(skb, p, to.deliver, to.ifindex);
}

SEC("tc")
int from_host(struct __sk_buff *skb)
{
	struct packet p;
	struct ct_hit hit = {};
	int found, parsed, verdict = VERDICT_DROP;

	parsed = parse_packet(skb, &p);
	if (parsed != PARSED_FLOW)
		return other(skb, &p, parsed);
	found = flow_find(skb, &p, &hit, SIDE_HOST);
	if (found > 0)
		return probe(skb, &p);
	if (!found)
		found = forward(skb, &p, &hit, &verdict);
	return found < 0 ? refuse(skb, &p, &hit, found) : verdict;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
