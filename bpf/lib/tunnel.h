/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Other nodes, and VLANs: what a new flow to one of them has to know. The packets are in encap.h. */
#ifndef TCLB_TUNNEL_H
#define TCLB_TUNNEL_H

#include "conntrack.h"
#include "vlan.h"

/* tunnel_node returns the node of an id, or NULL if there is none. */
static __always_inline struct node *tunnel_node(__u32 id)
{
	struct node *n = bpf_map_lookup_elem(&nodes, &id);

	return n && n->flags & NODE_KNOWN ? n : NULL;
}

/* tunnel_snat says whether a client's address may be somebody else's on a node, so that answers to it
 * would not leave that node. A function because the programs' call chains share 512 bytes of stack.
 */
static __noinline bool tunnel_snat(const struct packet *p, __u32 id, bool outside)
{
	struct subnet_key key ALIGNED = {.prefix_len = 32 + 8 * ADDR_LEN, .node = id};
	struct node *n = tunnel_node(id);

	if (!n || !(n->flags & NODE_SNAT_CHECK))
		return n && n->flags & (outside ? NODE_SNAT : NODE_SNAT | NODE_SNAT_INSIDE);
	addr_copy(key.addr, p->tuple.saddr);
	return bpf_map_lookup_elem(&subnets, &key);
}

/* tunnel_leave lets a half's packets go to a node, or into a VLAN. */
static __always_inline void tunnel_leave(struct ct_half *half, __u32 id)
{
	struct node *n = tunnel_node(id);

	half->deliver = vlan_is(id) ? DELIVER_VLAN : DELIVER_TUNNEL;
	half->ifindex = id;
	if (n)
		__builtin_memcpy(half->mac, n->mac, MAC_LEN);
}

/* What a frame's destination MAC says inside the tunnel, where it says no device: locally administered
 * and of our nodes only, since who translates a packet writes it. So no client can make one.
 */
enum mark {
	MARK_NONE = 0,
	MARK_DSR = 1,	/* of a flow that the node which gets it may answer by itself */
	MARK_TELLS = 2, /* and behind the IP packet stands what its client asked */
	MARK_COPY = 3,	/* a copy of an answer that has left already, for who chose */
};

#define MARK_HEAD 0x6c637402 /* 02:74:63:6c in memory */
#define MARK_KIND 5	     /* the byte that is enum mark */

/* tunnel_mark writes a MAC that says a kind. */
static __always_inline void tunnel_mark(__u8 *mac, __u8 kind)
{
	*(__u32 *)mac = MARK_HEAD;
	mac[4] = 'b';
	mac[MARK_KIND] = kind;
}

/* tunnel_marked returns what the frame's destination MAC says: enum mark. */
static __always_inline __u32 tunnel_marked(const struct __sk_buff *skb)
{
	const __u8 *mac = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (mac + MAC_LEN > end || *(const __u32 *)mac != MARK_HEAD || mac[4] != 'b')
		return MARK_NONE;
	return mac[MARK_KIND];
}

/* tunnel_keep_answers takes back that a new flow's answers need not come here. */
static __always_inline void tunnel_keep_answers(struct ct_pair *pair)
{
	struct ct_half *out = &pair->half[DIR_ORIGINAL];

	pair->flags &= ~PAIR_DSR;
	if (out->deliver == DELIVER_TUNNEL)
		tunnel_leave(out, out->ifindex);
}

/* tunnel_dsr lets the node of a new flow's backend answer the client, if there is one that knows how. */
static __noinline int tunnel_dsr(struct ct_pair *pair)
{
	struct ct_half *out = &pair->half[DIR_ORIGINAL];
	struct node *n = out->deliver == DELIVER_TUNNEL ? tunnel_node(out->ifindex) : NULL;

	if (!n || !(n->flags & NODE_DSR)) {
		pair->flags &= ~PAIR_DSR;
		return 0;
	}
	tunnel_mark(out->mac, MARK_DSR);
	pair->flags &= ~PAIR_ASKED; /* nobody here sees the first response */
	return 1;
}

#endif
