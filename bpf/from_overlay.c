//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc ingress of the tunnel device: what other nodes send, decapsulated. Flows that they chose a backend
 * here for, and answers to flows that this node sent to them. Nothing else comes in this way.
 */
#include <linux/bpf.h>
#include "lib/deliver.h"
#include "lib/dsr.h"
#include "lib/flow.h"
#include "lib/other.h"
#include "lib/refuse.h"
#include "lib/release.h"

/* answer_sender sends the packet, an answer by now, back to the node that it came from. */
static __always_inline int answer_sender(struct __sk_buff *skb, const struct packet *p)
{
	int err = reject_swap_macs(skb);

	return err ? verdict_drop(err) : deliver_to_node(skb, p, p->tuple.zone);
}

/* refuse counts a refusal and tells its sender. */
static __always_inline int refuse(struct __sk_buff *skb, const struct packet *p,
				  const struct ct_hit *hit, int error)
{
	int answered = refuse_hit(skb, p, hit, error);

	return answered == REFUSE_TOLD ? answer_sender(skb, p) : VERDICT_DROP;
}

/* leave sends what came by tunnel out of an uplink. Before Linux 6.18 bpf_redirect_neigh leaks what the
 * tunnel device has put beside such a packet: it has what is left, a next hop whose MAC is not known.
 */
static __noinline int leave(struct __sk_buff *skb, const struct nat_target *to)
{
	struct bpf_fib_lookup fib ALIGNED = {.ifindex = to->ifindex};
	__u8 macs[2 * MAC_LEN] ALIGNED;

	if (deliver_route(skb, &fib, to->saddr, to->daddr, BPF_FIB_LOOKUP_OUTPUT) !=
	    BPF_FIB_LKUP_RET_SUCCESS)
		return bpf_redirect_neigh(to->ifindex, NULL, 0, 0);
	__builtin_memcpy(macs, fib.dmac, MAC_LEN);
	__builtin_memcpy(macs + MAC_LEN, fib.smac, MAC_LEN);
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return verdict_drop(-DROP_REWRITE);
	return bpf_redirect(to->ifindex, 0);
}

/* deliver sends a packet on. There is no other way than ours: the stack would not know whose it is. */
static __always_inline int deliver(struct __sk_buff *skb, const struct packet *p,
				   const struct nat_target *to)
{
	if (to->deliver == DELIVER_STACK || deliver_far(to->deliver))
		return verdict_drop(-DROP_TUNNEL_CARGO);
	if (to->deliver == DELIVER_UPLINK)
		return leave(skb, to);
	return deliver_from_ingress(skb, p, to->deliver, to->ifindex);
}

/* forward sends a packet with its pair on. A peer without our programs does not fit its handshakes to the
 * tunnel: ours are done once more.
 */
static __always_inline int forward(struct __sk_buff *skb, const struct packet *p,
				   struct ct_hit *hit)
{
	struct nat_target to;
	int err;

	if (skb->pkt_type != PACKET_HOST || hit->pair->flags & PAIR_ANSWERS)
		dsr_heard(skb, p, hit->index << 1 | hit->dir, hit->life);
	ct_touch(skb, &hit->pair->half[hit->dir & 1], p);
	err = nat_target(hit, &to);
	if (!err)
		err = nat_translate(skb, p, &to);
	if (!err && p->tcp_flags & TCP_SYN)
		err = encap_clamp(skb, p, p->tuple.zone);
	if (!err && p->fragment)
		err = fragment_first(skb, p, &to, fragment_place_of(hit), FIRST_TRANSLATED);
	return err ? verdict_drop(err) : deliver(skb, p, &to);
}

/* gone ends a flow whose container is not there any more. */
static __always_inline int gone(struct __sk_buff *skb, const struct packet *p, struct ct_hit *hit)
{
	ct_remove(hit->index, hit->life);
	return refuse(skb, p, hit, -DROP_BACKEND_GONE);
}

/* probe turns another node's probe round, and hands the answer to one of ours up to the proxy. */
static __noinline int probe(struct __sk_buff *skb, const struct packet *p)
{
	struct node_settings *s = encap_settings();
	int err;

	if (!s)
		return VERDICT_DROP;
	if (probe_asks(p)) {
		err = probe_turn(skb, p);
		return err ? verdict_drop(err) : answer_sender(skb, p);
	}
	if (bpf_skb_store_bytes(skb, 0, s->host_mac, MAC_LEN, 0))
		return verdict_drop(-DROP_REWRITE);
	return deliver_from_ingress(skb, p, DELIVER_HOST, s->host_ifindex);
}

/* other handles what has no ports of its own. */
static __noinline int other(struct __sk_buff *skb, const struct packet *p, int parsed)
{
	struct nat_target to;
	struct ct_hit hit = {};
	struct quote q;
	int found = OTHER_FOREIGN;

	if (parsed != PARSED_FOREIGN)
		found = other_find(skb, p, parsed, &q, &hit, SIDE_OVERLAY);
	if (found == OTHER_WAITS)
		return VERDICT_DROP;
	if (found > 0)
		return verdict_drop(-DROP_TUNNEL_CARGO);
	if (!found && return_stale(&hit))
		found = -DROP_BACKEND_GONE;
	if (!found)
		found = nat_target(&hit, &to);
	if (!found)
		found = other_translate(skb, p, parsed, &q, &hit, &to);
	return found ? verdict_drop(found) : deliver(skb, p, &to);
}

SEC("tc")
int from_overlay(struct __sk_buff *skb)
{
	struct packet p;
	struct ct_hit hit = {};
	int parsed, found, zone = encap_source(skb);

	if (zone < 0)
		return verdict_drop(zone);
	parsed = parse_packet(skb, &p);
	p.tuple.zone = zone;
	if (skb->pkt_type != PACKET_HOST && tunnel_marked(skb) == MARK_COPY)
		return dsr_copy(&p, parsed);
	if (parsed != PARSED_FLOW)
		return other(skb, &p, parsed);
	found = flow_find(skb, &p, &hit, SIDE_OVERLAY);
	if (found > 0)
		return probe(skb, &p);
	if (found < 0)
		return refuse(skb, &p, &hit, found);
	return return_stale(&hit) ? gone(skb, &p, &hit) : forward(skb, &p, &hit);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
