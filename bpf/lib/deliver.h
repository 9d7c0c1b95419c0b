/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Out of the program: into a container, up into the host, or on to the host's stack. */
#ifndef TCLB_DELIVER_H
#define TCLB_DELIVER_H

#include "encap.h"
#include "nat.h"
#include "verdict.h"

#define PACKET_HOST 0
#define PACKET_OTHERHOST 3 /* what a device in promiscuous mode sees, or a switch floods */

/* A frame to a bridge's own MAC is PACKET_OTHERHOST at its port and would be dropped. */
static __always_inline void deliver_to_host_type(struct __sk_buff *skb)
{
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
}

/* deliver_far says whether packets leave for another zone: a node's or a VLAN's. In this order it costs who stays
 * here one comparison.
 */
static __always_inline bool deliver_far(__u8 deliver)
{
	return deliver >= DELIVER_TUNNEL && (deliver == DELIVER_TUNNEL || deliver == DELIVER_VLAN);
}

/* deliver_to_node sends a packet by tunnel, or with a tag. */
static __always_inline int deliver_to_node(struct __sk_buff *skb, const struct packet *p, __u32 id)
{
	int sent = encap_send(skb, p, id);

	return sent < 0 ? verdict_drop(sent) : sent;
}

/* deliver_route asks routing for the next hop between two ends. Returns BPF_FIB_LKUP_RET_... */
static __always_inline long deliver_route(struct __sk_buff *skb, struct bpf_fib_lookup *fib,
					  const __u8 *saddr, const __u8 *daddr, __u32 flags)
{
	if (addr_is_v4(daddr)) {
		fib->family = 2;
		fib->ipv4_src = addr_to_v4(saddr);
		fib->ipv4_dst = addr_to_v4(daddr);
	} else {
		fib->family = 10;
		__builtin_memcpy(fib->ipv6_src, saddr, ADDR_LEN);
		__builtin_memcpy(fib->ipv6_dst, daddr, ADDR_LEN);
	}
	return bpf_fib_lookup(skb, fib, sizeof(*fib), flags);
}

/* deliver_from_ingress sends a packet on from the ingress of a container's veth, an uplink or the tunnel
 * device.
 */
static __always_inline int deliver_from_ingress(struct __sk_buff *skb, const struct packet *p,
						__u8 deliver, __u32 ifindex)
{
	if (deliver == DELIVER_PEER) {
		deliver_to_host_type(skb);
		return bpf_redirect_peer(ifindex, 0);
	}
	if (deliver_far(deliver))
		return deliver_to_node(skb, p, ifindex);
	if (deliver == DELIVER_UPLINK)
		return bpf_redirect_neigh(ifindex, NULL, 0, 0);
	if (deliver == DELIVER_HOST) {
		deliver_to_host_type(skb);
		return bpf_redirect(ifindex, BPF_F_INGRESS);
	}
	return verdict_next();
}

/* deliver_from_host sends a packet on from the egress of tclb0, where redirect_peer does not
 * work: out of the veth, past its to_container, which leaves original packets alone.
 */
static __always_inline int deliver_from_host(struct __sk_buff *skb, const struct packet *p,
					     __u8 deliver, __u32 ifindex)
{
	if (deliver == DELIVER_PEER)
		return bpf_redirect(ifindex, 0);
	if (deliver_far(deliver))
		return deliver_to_node(skb, p, ifindex);
	if (deliver == DELIVER_UPLINK)
		return bpf_redirect_neigh(ifindex, NULL, 0, 0);
	deliver_to_host_type(skb);
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/* deliver_fits says whether a packet of a half can leave as the half does. Returns 0 or -DROP_... */
static __always_inline int deliver_fits(struct __sk_buff *skb, const struct packet *p,
					const struct nat_target *to)
{
	return deliver_far(to->deliver) ? encap_fits(skb, p, to->ifindex) : 0;
}

/* deliver_translate rewrites a packet into `to` and fits a handshake to where it goes. */
static __always_inline int deliver_translate(struct __sk_buff *skb, const struct packet *p,
					     const struct nat_target *to)
{
	int err = nat_translate(skb, p, to);

	if (!err && deliver_far(to->deliver) && p->tcp_flags & TCP_SYN)
		err = encap_clamp(skb, p, to->ifindex);
	return err;
}

#endif
