/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One flow: a pair for it, what its packets leave there. */
#ifndef TCLB_CONNTRACK_H
#define TCLB_CONNTRACK_H

#include "parse.h"
#include "rooms.h"

/* ct_take returns the index of a pair that nobody else has, or CT_NO_ROOM. */
static __always_inline int ct_take(__u32 now)
{
	struct ct_rooms *rooms = ct_rooms_get();
	__u32 index;

	if (!rooms)
		return CT_NO_ROOM;
	for (int i = 0; i < 2; i++) {
		if (!bpf_map_pop_elem(&ct_free, &index))
			return index;
		if (rooms->high_water < config.pairs) {
			index = __sync_fetch_and_add(&rooms->high_water, 1);
			if (index < config.pairs)
				return index;
		}
		ct_evict(now);
	}
	return CT_NO_ROOM;
}

/* ct_give_back frees a pair that ct_take gave and that was never made live. */
static __always_inline void ct_give_back(__u32 index)
{
	bpf_map_push_elem(&ct_free, &index, BPF_ANY);
}

/* ct_track keeps how far one side of a TCP flow has come. Resets and SYNs do not count: they may
 * be made up (tcp.h judges them).
 */
static __always_inline void ct_track(struct ct_half *half, const struct packet *p)
{
	if ((p->tcp_flags & (TCP_ACK | TCP_RST | TCP_SYN)) != TCP_ACK)
		return;
	half->ack = p->ack;
	if ((__s32)(p->seq_end - half->end) > 0)
		half->end = p->seq_end;
}

/* ct_touch accounts a packet to its half; every segment of a GSO packet has headers of its own.
 * Only the tick's first packet stores `seen`.
 */
static __always_inline void ct_touch(struct __sk_buff *skb, struct ct_half *half,
				     const struct packet *p)
{
	__u32 segments = skb->gso_segs;

	ct_track(half, p);
	if (half->seen != p->now)
		half->seen = p->now;
	if (segments < 2) {
		half->packets++;
		half->bytes += skb->len - ETH_HLEN;
		return;
	}
	half->packets += segments;
	half->bytes += skb->len - ETH_HLEN + (segments - 1) * (p->payload_off - ETH_HLEN);
}

/* ct_alive says whether the hit's pair is still the one that was found. */
static __always_inline bool ct_alive(const struct ct_hit *hit)
{
	return *(volatile __u32 *)&hit->pair->life == hit->life;
}

#endif
