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
static __noinline bool tunnel_snat(const struct packet *p, __u32 id)
{
	struct subnet_key key ALIGNED = {.prefix_len = 32 + 8 * ADDR_LEN, .node = id};
	struct node *n = tunnel_node(id);

	if (!n || !(n->flags & NODE_SNAT_CHECK))
		return n && n->flags & NODE_SNAT;
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

#endif
