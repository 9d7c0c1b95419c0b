//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc ingress of a container's veth: what the container sends. */
#include <linux/bpf.h>
#include "lib/deliver.h"
#include "lib/dsr.h"
#include "lib/flow.h"
#include "lib/other.h"
#include "lib/refuse.h"
#include "lib/release.h"

/* In host stack mode a reply goes on untranslated, by way of the host, and to_container has it next. */
static __always_inline bool goes_by_the_host(const struct ct_hit *hit, const struct nat_target *to)
{
	return hit->dir == DIR_REPLY && to->deliver == DELIVER_STACK;
}

/* to_the_host addresses a frame to the bridge itself, which hands it to routing, where the firewall
 * sees it.
 */
static __always_inline void to_the_host(struct __sk_buff *skb, const struct packet *p)
{
	struct endpoint_key key ALIGNED = {.ifindex = skb->ifindex};
	struct endpoint *own;

	addr_copy(key.addr, p->tuple.saddr);
	own = bpf_map_lookup_elem(&endpoints, &key);
	if (own && own->up_ifindex)
		bpf_skb_store_bytes(skb, 0, own->up_mac, MAC_LEN, 0);
}

/* forward sends a packet with its pair on: account, translate, deliver. Returns a verdict through `verdict`,
 * or what its sender is to be told.
 */
static __always_inline int forward(struct __sk_buff *skb, const struct packet *p,
				   struct ct_hit *hit, int *verdict)
{
	struct nat_target to;
	__u32 how = 0;
	int err;

	err = nat_target(hit, &to);
	if (hit->pair->flags & PAIR_ANSWERS)
		dsr_answer(hit->index << 1 | hit->dir, hit->life, &to);
	if (!err && !flow_at_home(skb, hit) && !(hit->pair->flags & PAIR_DIRECT))
		err = flow_elsewhere(skb, p, hit->index, hit->dir);
	if (err) {
		*verdict = verdict_drop(err);
		return 0;
	}
	err = deliver_fits(skb, p, &to);
	if (err)
		return err;
	if (goes_by_the_host(hit, &to)) {
		to_the_host(skb, p);
	} else {
		ct_touch(skb, &hit->pair->half[hit->dir & 1], p);
		if (flow_untouched(hit->pair)) {
			to.deliver = DELIVER_STACK;
		} else {
			err = deliver_translate(skb, p, &to);
			how = FIRST_TRANSLATED;
		}
		if (!err && hit->pair->flags & PAIR_ANSWERS)
			err = dsr_report(skb, p, hit->index, to.deliver);
	}
	if (!err && p->fragment)
		err = fragment_first(skb, p, &to, fragment_place_of(hit), how);
	*verdict = err ? verdict_drop(err) : deliver_from_ingress(skb, p, to.deliver, to.ifindex);
	return 0;
}

/* reset_client sends what a removed backend still answers to its client, as a reset. */
static __always_inline int reset_client(struct __sk_buff *skb, struct packet *p, struct ct_hit *hit)
{
	const struct ct_half *back = &hit->pair->half[DIR_REPLY];
	int err = refuse_client(skb, p, hit);

	return err ? verdict_unanswered(err)
		   : deliver_from_ingress(skb, p, back->deliver, back->ifindex);
}

/* answer_sender sends the packet, an answer by now, back to the container that it came from. */
static __always_inline int answer_sender(struct __sk_buff *skb)
{
	int err = reject_swap_macs(skb);

	if (err)
		return verdict_drop(err);
	deliver_to_host_type(skb);
	return bpf_redirect_peer(skb->ifindex, 0);
}

/* A refusal that the container is told of comes back to it by its own veth. */
static __always_inline int refuse(struct __sk_buff *skb, struct packet *p, struct ct_hit *hit,
				  int error)
{
	if (hit->dir == DIR_REPLY && refuse_resets(p, error)) {
		verdict_count(error);
		return reset_client(skb, p, hit);
	}
	return refuse_hit(skb, p, hit, error) == REFUSE_TOLD ? answer_sender(skb) : VERDICT_DROP;
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
	found = other_find(skb, p, parsed, &q, &hit, SIDE_CONTAINER);
	if (found == OTHER_FOREIGN)
		return verdict_next();
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
	if (found)
		return verdict_drop(found);
	if (flow_untouched(hit.pair)) {
		if (parsed == PARSED_LATER)
			ct_touch(skb, &hit.pair->half[hit.dir & 1], p);
		return verdict_next();
	}
	if (goes_by_the_host(&hit, &to)) {
		to_the_host(skb, p);
		return verdict_next();
	}
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
int from_container(struct __sk_buff *skb)
{
	struct packet p;
	struct ct_hit hit = {};
	int parsed, found, verdict = VERDICT_DROP;

	parsed = parse_packet(skb, &p);
	if (parsed != PARSED_FLOW)
		return other(skb, &p, parsed);
	found = flow_find(skb, &p, &hit, SIDE_CONTAINER);
	if (found > 0)
		return pass(skb, &p);
	if (!found)
		found = forward(skb, &p, &hit, &verdict);
	return found < 0 ? refuse(skb, &p, &hit, found) : verdict;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
