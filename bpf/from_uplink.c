//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc ingress of an uplink: what clients outside send to VIPs. Everything else goes on untouched. */
#include <linux/bpf.h>
#include "lib/announce.h"
#include "lib/deliver.h"
#include "lib/dsr.h"
#include "lib/flow.h"
#include "lib/other.h"
#include "lib/refuse.h"
#include "lib/release.h"

/* answer_sender sends the packet, an answer by now, back where it came from. */
static __always_inline int answer_sender(struct __sk_buff *skb)
{
	int err = reject_swap_macs(skb);

	return err ? verdict_drop(err) : bpf_redirect(skb->ifindex, 0);
}

/* refuse counts a refusal and tells its sender. */
static __always_inline int refuse(struct __sk_buff *skb, const struct packet *p,
				  const struct ct_hit *hit, int error)
{
	int answered = refuse_hit(skb, p, hit, error);

	return answered == REFUSE_TOLD ? answer_sender(skb) : VERDICT_DROP;
}

/* credible says whether a packet of a flow can come from outside: not if its sender is attached here. */
static __always_inline bool credible(const struct ct_hit *hit)
{
	__u32 zero = 0;
	struct node_settings *s = bpf_map_lookup_elem(&settings, &zero);

	return hit->pair->half[!(hit->dir & 1)].deliver != DELIVER_PEER || !s ||
	       !(s->flags & SETTING_ANTI_SPOOF);
}

/* forward sends a packet with its pair on. Returns a verdict through `verdict`, or what is to be refused. */
static __always_inline int forward(struct __sk_buff *skb, const struct packet *p,
				   struct ct_hit *hit, int *verdict)
{
	struct nat_target to;
	__u32 how = 0;
	int err;

	err = credible(hit) ? nat_target(hit, &to) : -DROP_SPOOFED;
	if (!err) {
		err = deliver_fits(skb, p, &to);
		if (err)
			return err;
		ct_touch(skb, &hit->pair->half[hit->dir & 1], p);
		if (flow_untouched(hit->pair)) {
			to.deliver = DELIVER_STACK;
		} else {
			err = deliver_translate(skb, p, &to);
			how = FIRST_TRANSLATED;
		}
		if (!err && hit->pair->flags & PAIR_DSR)
			dsr_tell(skb, p, hit->index);
	}
	if (!err && p->fragment)
		err = fragment_first(skb, p, &to, fragment_place_of(hit), how);
	*verdict = err ? verdict_drop(err) : deliver_from_ingress(skb, p, to.deliver, to.ifindex);
	return 0;
}

/* other handles what has no ports of its own. */
static __noinline int other(struct __sk_buff *skb, const struct packet *p, int parsed)
{
	struct nat_target to;
	struct ct_hit hit = {};
	struct quote q;
	int found;

	if (parsed == PARSED_FOREIGN)
		return verdict_next();
	found = other_find(skb, p, parsed, &q, &hit, SIDE_UPLINK);
	if (found == OTHER_FOREIGN)
		return verdict_next();
	if (found == OTHER_WAITS)
		return VERDICT_DROP;
	if (found == OTHER_ANSWERED)
		return answer_sender(skb);
	if (!found)
		found = credible(&hit) ? nat_target(&hit, &to) : -DROP_SPOOFED;
	if (!found)
		found = deliver_fits(skb, p, &to);
	if (found)
		return verdict_drop(found);
	if (flow_untouched(hit.pair))
		return verdict_next();
	found = other_translate(skb, p, parsed, &q, &hit, &to);
	return found ? verdict_drop(found) : deliver_from_ingress(skb, p, to.deliver, to.ifindex);
}

/* pass lets go on what is not ours; the fragments behind it need not wait. */
static __always_inline int pass(struct __sk_buff *skb, const struct packet *p)
{
	if (p->fragment)
		fragment_pass(skb, p, 0);
	return verdict_next();
}

SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	struct packet p;
	struct ct_hit hit = {};
	int parsed, found = 0, verdict = VERDICT_DROP;

	if (skb->pkt_type == PACKET_OTHERHOST)
		return verdict_next();
	parsed = parse_packet(skb, &p);
	if (parsed == PARSED_FOREIGN || parsed == PARSED_ICMP)
		found = announce_answer(skb, &p);
	if (found)
		return found < 0 ? verdict_drop(found) : bpf_redirect(skb->ifindex, 0);
	if (parsed != PARSED_FLOW)
		return other(skb, &p, parsed);
	found = flow_find(skb, &p, &hit, SIDE_UPLINK);
	if (found > 0)
		return pass(skb, &p);
	if (!found)
		found = forward(skb, &p, &hit, &verdict);
	return found < 0 ? refuse(skb, &p, &hit, found) : verdict;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
