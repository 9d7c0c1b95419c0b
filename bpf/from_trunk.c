//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc ingress of a device that carries VLANs: answers of backends that are reached with a tag, and their
 * questions. Nothing begins here. Frames without a tag, with another one, and of no flow go on untouched.
 */
#include <linux/bpf.h>
#include "lib/deliver.h"
#include "lib/flow.h"
#include "lib/neighbour.h"
#include "lib/other.h"
#include "lib/refuse.h"
#include "lib/release.h"

/* leave sends a translated packet on without its tag, a first fragment with those that waited for it. */
static __always_inline int leave(struct __sk_buff *skb, const struct packet *p,
				 const struct nat_target *to, const struct ct_hit *hit)
{
	int err = bpf_skb_vlan_pop(skb) ? -DROP_REWRITE : 0;

	if (!err && p->fragment == FRAGMENT_FIRST)
		err = fragment_first(skb, p, to, fragment_place_of(hit), FIRST_TRANSLATED);
	return err ? verdict_drop(err) : deliver_from_ingress(skb, p, to->deliver, to->ifindex);
}

/* other handles what has no ports of its own. */
static __noinline int other(struct __sk_buff *skb, const struct packet *p, int parsed)
{
	struct nat_target to;
	struct ct_hit hit = {};
	struct quote q;
	int found;

	if (parsed >= PARSED_OTHER)
		return verdict_next();
	found = other_find(skb, p, parsed, &q, &hit, SIDE_NONE);
	if (found == OTHER_WAITS)
		return VERDICT_DROP;
	if (found > 0)
		return verdict_next();
	if (!found)
		found = nat_target(&hit, &to);
	if (!found)
		found = other_translate(skb, p, parsed, &q, &hit, &to);
	if (!found && bpf_skb_vlan_pop(skb))
		found = -DROP_REWRITE;
	return found ? verdict_drop(found) : deliver_from_ingress(skb, p, to.deliver, to.ifindex);
}

/* refuse counts a refusal. What a removed backend still answers becomes a reset for its client. */
static __always_inline int refuse(struct __sk_buff *skb, struct packet *p, const struct ct_hit *hit,
				  int error)
{
	const struct ct_half *back = &hit->pair->half[DIR_REPLY];
	int err;

	verdict_count(error);
	if (!refuse_resets(p, error))
		return VERDICT_DROP;
	err = refuse_client(skb, p, hit);
	if (!err && bpf_skb_vlan_pop(skb))
		err = -DROP_REWRITE;
	return err ? verdict_unanswered(err)
		   : deliver_from_ingress(skb, p, back->deliver, back->ifindex);
}

/* pass lets go on what is not ours; the fragments behind it need not wait. */
static __always_inline int pass(struct __sk_buff *skb, const struct packet *p)
{
	if (p->fragment)
		fragment_first(skb, p, NULL, 0, 0);
	return verdict_next();
}

SEC("tc")
int from_trunk(struct __sk_buff *skb)
{
	struct nat_target to;
	struct packet p;
	struct ct_hit hit = {};
	int parsed, err = 0;
	__u32 zone = skb->vlan_present ? neighbour_zone(skb) : 0;

	if (!zone || skb->pkt_type == PACKET_OTHERHOST)
		return verdict_next();
	__builtin_memset(&p, 0, sizeof(p));
	parsed = parse_frame(skb, &p);
	p.tuple.zone = zone;
	if (parsed == PARSED_FOREIGN || parsed == PARSED_ICMP)
		err = neighbour_answer(skb, &p);
	if (err)
		return err < 0 ? verdict_drop(err) : bpf_redirect(skb->ifindex, 0);
	if (parsed == PARSED_LATER && !neighbour_of(p.tuple.saddr, zone))
		return verdict_next();
	if (parsed != PARSED_FLOW)
		return other(skb, &p, parsed);
	if (!ct_lookup(&p.tuple, &hit))
		return pass(skb, &p);
	if (!flow_hot(&hit, &p)) {
		int flow = flow_packet(&p, hit.index << 1 | hit.dir, hit.life);

		if (flow <= 0)
			return flow < 0 ? refuse(skb, &p, &hit, flow) : verdict_next();
	}
	ct_touch(skb, &hit.pair->half[hit.dir & 1], &p);
	err = nat_target(&hit, &to);
	if (!err)
		err = nat_translate(skb, &p, &to);
	return err ? verdict_drop(err) : leave(skb, &p, &to, &hit);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
