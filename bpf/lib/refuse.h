/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What becomes of a packet that is refused: counted, and its sender told, or not. */
#ifndef TCLB_REFUSE_H
#define TCLB_REFUSE_H

#include "encap.h"
#include "reject.h"

#define REFUSE_TOLD 1	/* the packet is now the answer to its sender */
#define REFUSE_SILENT 0 /* it ends here */

/* refuse_way says whether an error is about the packet's way: its sender can do something about it. */
static __always_inline bool refuse_way(int error)
{
	return error == -DROP_TUNNEL_MTU || error == -DROP_HOP_LIMIT;
}

/* refuse_answer counts a refusal and makes the packet the answer to its sender, if it is to have one.
 * `dir` is the packet's: answers to flows that cannot be served go to their clients only. `id` is the node
 * that it was to go to, if that is what it is refused for.
 */
__noinline int refuse_answer(struct __sk_buff *skb, const struct packet *p, __u32 dir, __u32 id,
			     int error)
{
	int answer;

	verdict_count(error);
	if (refuse_way(error))
		answer = reject_path(skb, p, error == -DROP_TUNNEL_MTU ? encap_mtu(id) : 0);
	else if (dir != DIR_REPLY && reject_wanted(error))
		answer = reject_answer(skb, p);
	else
		return REFUSE_SILENT;
	if (answer < 0)
		verdict_count(answer);
	return answer ? REFUSE_SILENT : REFUSE_TOLD;
}

/* refuse_resets says whether a backend's packet that is refused becomes a reset for its client. */
static __always_inline bool refuse_resets(const struct packet *p, int error)
{
	return error == -DROP_BACKEND_GONE && p->tuple.proto == PROTO_TCP;
}

/* refuse_as_client makes of a removed backend's answer the segment that its client would send next. */
static __always_inline void refuse_as_client(struct packet *p, const struct ct_hit *hit)
{
	p->tuple = hit->pair->half[DIR_ORIGINAL].tuple;
	p->ack = p->seq;
	p->tcp_flags = (p->tcp_flags & TCP_RST) | TCP_ACK;
}

/* refuse_client makes what a removed backend still answers a reset for its client, who would wait otherwise: at
 * the sequence number that it expects. Returns as reject_answer does.
 */
static __always_inline int refuse_client(struct __sk_buff *skb, struct packet *p,
					 const struct ct_hit *hit)
{
	const struct ct_half *back = &hit->pair->half[DIR_REPLY];
	int err;

	refuse_as_client(p, hit);
	err = reject_answer(skb, p);
	if (!err && back->deliver != DELIVER_STACK &&
	    bpf_skb_store_bytes(skb, 0, back->mac, MAC_LEN, 0))
		err = -DROP_REWRITE;
	return err;
}

/* refuse_hit is refuse_answer for a packet of a flow, or one that was looked up in vain. */
static __always_inline int refuse_hit(struct __sk_buff *skb, const struct packet *p,
				      const struct ct_hit *hit, int error)
{
	__u32 id = hit->pair ? hit->pair->half[hit->dir & 1].ifindex : 0;

	return refuse_answer(skb, p, hit->dir, id, error);
}

#endif
