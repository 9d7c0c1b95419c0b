/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Out of the program: into a container, up into the host, or on to the host's stack. */
#ifndef TCLB_DELIVER_H
#define TCLB_DELIVER_H

#include "nat.h"
#include "verdict.h"

#define PACKET_HOST 0

/* A frame to a bridge's own MAC is PACKET_OTHERHOST at its port and would be dropped. */
static __always_inline void deliver_to_host_type(struct __sk_buff *skb)
{
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
}

/* deliver_from_veth sends a packet on from the ingress of a container's veth. */
static __always_inline int deliver_from_veth(struct __sk_buff *skb, __u8 deliver, __u32 ifindex)
{
	if (deliver == DELIVER_PEER) {
		deliver_to_host_type(skb);
		return bpf_redirect_peer(ifindex, 0);
	}
	if (deliver == DELIVER_HOST) {
		deliver_to_host_type(skb);
		return bpf_redirect(ifindex, BPF_F_INGRESS);
	}
	return verdict_next();
}

/* deliver_from_host sends a packet on from the egress of tclb0, where redirect_peer does not
 * work: out of the veth, past its to_container, which leaves original packets alone.
 */
static __always_inline int deliver_from_host(struct __sk_buff *skb, __u8 deliver, __u32 ifindex)
{
	if (deliver == DELIVER_PEER)
		return bpf_redirect(ifindex, 0);
	deliver_to_host_type(skb);
	return bpf_redirect(ifindex, BPF_F_INGRESS);
}

#endif
