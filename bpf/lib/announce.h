/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who has this VIP? On the link of an uplink the node that announces it answers ARP and neighbour
 * solicitations for it, with the MAC address of the uplink.
 */
#ifndef TCLB_ANNOUNCE_H
#define TCLB_ANNOUNCE_H

#include "reject.h"

#define ARP_REQUEST 1
#define ARP_REPLY 2
#define ARP_ETHERNET 1

#define ND_SOLICIT 135
#define ND_ADVERT 136
#define ND_HOPS 255
#define ND_SOLICITED 0x60000000 /* solicited, override */
#define ND_OVERRIDE 0x20000000
#define ND_TARGET_MAC 2 /* option: target's link-layer address, in units of 8 bytes long: 1 */

#define ETH_P_ARP 0x0806

/* An ARP packet about IPv4 on Ethernet, from its header on. */
struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 op;
	__u8 sender_mac[MAC_LEN];
	__u8 sender[4];
	__u8 target_mac[MAC_LEN];
	__u8 target[4];
};

/* A neighbour solicitation, or its answer with the one option that it needs. */
struct nd {
	__u8 type;
	__u8 code;
	__be16 check;
	__be32 flags;
	__u8 target[ADDR_LEN];
	__u8 option;
	__u8 option_len;
	__u8 mac[MAC_LEN];
};

/* announce_is_ours says whether this node answers for an address. */
static __always_inline bool announce_is_ours(const __u8 *addr)
{
	struct frontend_key key ALIGNED = {};
	struct frontend *f;

	__builtin_memcpy(key.vip, addr, ADDR_LEN);
	f = bpf_map_lookup_elem(&frontends, &key);
	return f && f->kind == FRONTEND_VIP && f->flags & FRONTEND_ANNOUNCE &&
	       !(f->flags & FRONTEND_OWN);
}

/* announce_frame addresses the answer: from our MAC to who asked. */
static __always_inline int announce_frame(struct __sk_buff *skb, const __u8 *to, const __u8 *mac)
{
	return bpf_skb_store_bytes(skb, 0, to, MAC_LEN, 0) ||
	       bpf_skb_store_bytes(skb, ETH_ALEN, mac, MAC_LEN, 0);
}

/* announce_read_arp fills a with an ARP packet about IPv4 on Ethernet. Returns whether it is one. */
static __always_inline bool announce_read_arp(struct __sk_buff *skb, struct arp *a)
{
	return !bpf_skb_load_bytes(skb, ETH_HLEN, a, sizeof(*a)) &&
	       a->hardware == bpf_htons(ARP_ETHERNET) && a->protocol == bpf_htons(ETH_P_IP);
}

/* announce_arp_address is an address of an ARP packet, mapped. */
static __always_inline void announce_arp_address(__u8 *to, const __u8 *from)
{
	__be32 v4;

	__builtin_memcpy(&v4, from, sizeof(v4));
	addr_from_v4(to, v4);
}

/* announce_arp_reply makes a request its answer: `mac` has the address. */
static __always_inline int announce_arp_reply(struct __sk_buff *skb, struct arp *a, const __u8 *mac)
{
	__be32 asked, asker;

	__builtin_memcpy(&asked, a->target, sizeof(asked));
	__builtin_memcpy(&asker, a->sender, sizeof(asker));
	a->op = bpf_htons(ARP_REPLY);
	__builtin_memcpy(a->target_mac, a->sender_mac, MAC_LEN);
	__builtin_memcpy(a->target, &asker, sizeof(asker));
	__builtin_memcpy(a->sender_mac, mac, MAC_LEN);
	__builtin_memcpy(a->sender, &asked, sizeof(asked));
	if (announce_frame(skb, a->target_mac, mac) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, a, sizeof(*a), 0))
		return -DROP_REWRITE;
	return 1;
}

/* announce_arp makes an ARP request for a VIP its answer. Returns 1 if it did, 0 for any other packet, or
 * -DROP_...
 */
static __always_inline int announce_arp(struct __sk_buff *skb, const struct uplink *up)
{
	struct arp a ALIGNED;
	__u8 vip[ADDR_LEN] ALIGNED;

	if (!announce_read_arp(skb, &a) || a.op != bpf_htons(ARP_REQUEST))
		return 0;
	announce_arp_address(vip, a.target);
	return announce_is_ours(vip) ? announce_arp_reply(skb, &a, up->mac) : 0;
}

/* announce_advert writes the answer to a solicitation. A node that looks whether its new address is free has
 * none yet: everybody is told then (RFC 4861, 7.2.4).
 */
static __always_inline int announce_advert(struct __sk_buff *skb, const struct packet *p,
					   struct nd *n, const __u8 *asker, const __u8 *mac)
{
	__u8 everybody[MAC_LEN] = {0x33, 0x33, 0, 0, 0, 1};
	bool probe = !(addr_word(p->tuple.saddr, 0) | addr_word(p->tuple.saddr, 1));
	struct packet turned ALIGNED = {};
	__u8 hops = ND_HOPS;
	__u32 l4 = ETH_HLEN + sizeof(struct ipv6hdr);
	__u64 sum;

	/* reject_ip and reject_pseudo answer a packet: it came from who is answered, to the VIP. */
	__builtin_memcpy(turned.tuple.daddr, n->target, ADDR_LEN);
	addr_copy(turned.tuple.saddr, p->tuple.saddr);
	if (probe) {
		turned.tuple.saddr[0] = 0xff;
		turned.tuple.saddr[1] = 0x02;
		turned.tuple.saddr[15] = 1;
		asker = everybody;
	}
	n->type = ND_ADVERT;
	n->check = 0;
	n->flags = bpf_htonl(probe ? ND_OVERRIDE : ND_SOLICITED);
	n->option = ND_TARGET_MAC;
	n->option_len = 1;
	__builtin_memcpy(n->mac, mac, MAC_LEN);
	sum = reject_pseudo(&turned, PROTO_ICMPV6, sizeof(*n)) +
	      (__u32)bpf_csum_diff(NULL, 0, (__be32 *)n, sizeof(*n), 0);
	n->check = ~nat_fold16(sum);
	if (bpf_skb_change_tail(skb, l4 + sizeof(*n), 0) ||
	    reject_ip(skb, &turned, PROTO_ICMPV6, sizeof(*n)) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, hop_limit),
				&hops, 1, 0) ||
	    bpf_skb_store_bytes(skb, l4, n, sizeof(*n), 0) || announce_frame(skb, asker, mac))
		return -DROP_REWRITE;
	return 1;
}

/* announce_read_nd fills n with a message of neighbour discovery up to its target, and asker with its sender's
 * MAC address. Returns whether it is one of this link.
 */
static __always_inline bool announce_read_nd(struct __sk_buff *skb, const struct packet *p,
					     struct nd *n, __u8 *asker)
{
	struct ipv6hdr ip ALIGNED;

	return p->tuple.proto == PROTO_ICMPV6 && !addr_is_v4(p->tuple.saddr) && !p->fragment &&
	       p->l4_off == ETH_HLEN + sizeof(ip) &&
	       !bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) && ip.hop_limit == ND_HOPS &&
	       !bpf_skb_load_bytes(skb, p->l4_off, n, __builtin_offsetof(struct nd, option)) &&
	       !n->code && !bpf_skb_load_bytes(skb, ETH_ALEN, asker, MAC_LEN);
}

/* announce_nd does for a neighbour solicitation what announce_arp does for a request. */
static __always_inline int announce_nd(struct __sk_buff *skb, const struct packet *p,
				       const struct uplink *up)
{
	__u8 asker[MAC_LEN];
	struct nd n ALIGNED = {};

	if (!announce_read_nd(skb, p, &n, asker) || n.type != ND_SOLICIT ||
	    !announce_is_ours(n.target))
		return 0;
	return announce_advert(skb, p, &n, asker, up->mac);
}

/* announce_answer makes a question for a VIP its answer, to be sent out of the uplink that it came in by.
 * Returns 1 if it did, 0 for any other packet, or -DROP_...
 */
__noinline int announce_answer(struct __sk_buff *skb, const struct packet *p)
{
	__u32 ifindex = skb->ifindex;
	struct uplink *up = bpf_map_lookup_elem(&uplinks, &ifindex);

	if (!p || !up || skb->vlan_present)
		return 0;
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return announce_arp(skb, up);
	return announce_nd(skb, p, up);
}

#endif
