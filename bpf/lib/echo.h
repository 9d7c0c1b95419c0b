/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Pings of our VIPs, answered in place. */
#ifndef TCLB_ECHO_H
#define TCLB_ECHO_H

#include "icmp.h"

#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO 8
#define ICMPV6_ECHO 128
#define ICMPV6_ECHO_REPLY 129

/* echo_is_request says whether the packet is an echo request, or a later fragment that may be of one. */
static __always_inline bool echo_is_request(struct __sk_buff *skb, const struct packet *p, bool v4)
{
	struct icmp_header h;

	if (p->fragment == FRAGMENT_LATER)
		return p->tuple.proto == (v4 ? PROTO_ICMP : PROTO_ICMPV6);
	return !bpf_skb_load_bytes(skb, p->l4_off, &h, sizeof(h)) && !h.code &&
	       h.type == (v4 ? ICMP_ECHO : ICMPV6_ECHO);
}

/* echo_turn swaps the packet's addresses and gives it a fresh TTL: another sender's packet. */
static __always_inline int echo_turn(struct __sk_buff *skb, const struct packet *p, bool v4)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr *v6 = data + ETH_HLEN;
	struct iphdr *ip = data + ETH_HLEN;

	if (v4) {
		if ((void *)(ip + 1) > end)
			return -DROP_REWRITE;
		ip->saddr = addr_to_v4(p->tuple.daddr);
		ip->daddr = addr_to_v4(p->tuple.saddr);
		ip->check = ~nat_fold16((__u64)(__u16)~ip->check + (__u16)~ip->ttl + REJECT_TTL);
		ip->ttl = REJECT_TTL;
		return 0;
	}
	if ((void *)(v6 + 1) > end)
		return -DROP_REWRITE;
	__builtin_memcpy(&v6->saddr, p->tuple.daddr, ADDR_LEN);
	__builtin_memcpy(&v6->daddr, p->tuple.saddr, ADDR_LEN);
	v6->hop_limit = REJECT_TTL;
	return 0;
}

/* echo_answer turns an echo request to a VIP into its answer. Fragments are turned one by one: the answer
 * differs from the request in its type alone, which the first one holds, with the checksum.
 * Returns 1 if it did, 0 for what is no ping of a VIP, or -DROP_...
 */
__noinline int echo_answer(struct __sk_buff *skb, const struct packet *p, __u32 side)
{
	__u32 off, from, to, zero = 0;
	struct node_settings *s = bpf_map_lookup_elem(&settings, &zero);
	__u8 type;
	bool v4;

	if (!p || !s)
		return 0;
	v4 = addr_is_v4(p->tuple.saddr);
	if (!echo_is_request(skb, p, v4) || !flow_is_vip(p))
		return 0;
	if (side == SIDE_CONTAINER && s->flags & SETTING_ANTI_SPOOF &&
	    flow_owner(p, skb->ifindex) < 0)
		return -DROP_SPOOFED;
	if (!reject_unicast(p->tuple.saddr))
		return -DROP_MALFORMED;
	if (echo_turn(skb, p, v4))
		return -DROP_REWRITE;
	if (p->fragment == FRAGMENT_LATER)
		return 1;
	off = p->l4_off;
	type = v4 ? ICMP_ECHO_REPLY : ICMPV6_ECHO_REPLY;
	from = v4 ? ICMP_ECHO : ICMPV6_ECHO;
	to = type;
	if (bpf_l4_csum_replace(skb, off + __builtin_offsetof(struct icmp_header, check), from, to,
				2) ||
	    bpf_skb_store_bytes(skb, off, &type, 1, 0))
		return -DROP_REWRITE;
	return 1;
}

#endif
