/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who may send what: VIPs, containers' own addresses, services' source prefixes. */
#ifndef TCLB_ACCESS_H
#define TCLB_ACCESS_H

#include "conntrack.h"

/* Which program asks: decides how the two directions leave. */
enum flow_side {
	SIDE_CONTAINER = 0, /* from_container: the client is the container behind skb->ifindex */
	SIDE_HOST = 1,	    /* from_host: the client is a process here, or forwarded by us */
	SIDE_NONE = 2,	    /* to_container, to_uplink: answers only, nothing begins */
	SIDE_UPLINK = 3,  /* from_uplink: the client is somewhere behind the device skb->ifindex */
	SIDE_OVERLAY = 4, /* from_overlay: another node chose, this one delivers */
};

/* flow_is_vip says whether a packet goes to an address that is a VIP. */
static __always_inline bool flow_is_vip(const struct packet *p)
{
	struct frontend_key key ALIGNED = {};
	struct frontend *f;

	addr_copy(key.vip, p->tuple.daddr);
	f = bpf_map_lookup_elem(&frontends, &key);
	return f && f->kind == FRONTEND_VIP;
}

/* flow_is_ours says whether a packet that is of no flow of ours goes to a VIP that is ours alone there. From
 * outside, one that is an address of this node too may be anything of the node's own.
 */
static __always_inline bool flow_is_ours(const struct packet *p, __u32 side)
{
	struct frontend_key key ALIGNED = {};
	struct frontend *f;

	addr_copy(key.vip, p->tuple.daddr);
	f = bpf_map_lookup_elem(&frontends, &key);
	return f && f->kind == FRONTEND_VIP &&
	       !(f->flags & FRONTEND_OWN && (side == SIDE_UPLINK || side == SIDE_OVERLAY));
}

/* flow_owner returns the container that has the packet's source behind the veth ifindex, or
 * -DROP_SPOOFED if that is not its address.
 */
__noinline int flow_owner(const struct packet *p, __u32 ifindex)
{
	struct endpoint_key key ALIGNED = {.ifindex = ifindex};
	struct endpoint *own;

	/* The unspecified address is nobody's; as a key it is the veth as such. */
	if (!p || !(addr_word(p->tuple.saddr, 0) | addr_word(p->tuple.saddr, 1)))
		return -DROP_SPOOFED;
	addr_copy(key.addr, p->tuple.saddr);
	own = bpf_map_lookup_elem(&endpoints, &key);
	return own ? (int)own->owner : -DROP_SPOOFED;
}

/* flow_attached returns the container here that has an address, or NULL. */
static __always_inline struct endpoint *flow_attached(const __u8 *addr)
{
	struct endpoint_key key ALIGNED = {};

	addr_copy(key.addr, addr);
	return bpf_map_lookup_elem(&endpoints, &key);
}

/* flow_sender returns the owner of a new flow's client, 0 if it is nobody attached here, or -DROP_SPOOFED
 * where a packet with that source cannot come from: containers' packets do not come from outside.
 */
static __noinline int flow_sender(const struct packet *p, __u32 ifindex, __u32 side)
{
	if (side == SIDE_CONTAINER)
		return flow_owner(p, ifindex);
	return side == SIDE_UPLINK && flow_attached(p->tuple.saddr) ? -DROP_SPOOFED : 0;
}

/* flow_is_own says whether a packet's source is an address of the container behind the veth ifindex,
 * there or, as another interface of the same container, behind the veth `home`.
 */
static __always_inline bool flow_is_own(const struct packet *p, __u32 ifindex, __u32 home)
{
	struct endpoint_key key ALIGNED = {.ifindex = ifindex};
	struct endpoint *veth = bpf_map_lookup_elem(&endpoints, &key), *own;

	if (flow_owner(p, ifindex) >= 0)
		return true;
	addr_copy(key.addr, p->tuple.saddr);
	key.ifindex = home;
	own = bpf_map_lookup_elem(&endpoints, &key);
	return veth && own && veth->owner && veth->owner == own->owner;
}

/* flow_elsewhere judges a packet of a flow that comes from another veth than the flow is delivered to.
 * It may be an address of somebody else's, a container's other interface, or the next container that
 * got a client's address: then the flow's answers go there from now on. Returns 0 or -DROP_SPOOFED.
 */
__noinline int flow_elsewhere(struct __sk_buff *skb, const struct packet *p, __u32 index, __u32 dir)
{
	struct ct_pair *pair = bpf_map_lookup_elem(&ct_pairs, &index);
	__u32 zero = 0, id, home;
	struct node_settings *s = bpf_map_lookup_elem(&settings, &zero);
	struct ct_half *back;
	struct backend *b;

	if (!p || !pair || !s)
		return -DROP_SPOOFED;
	back = &pair->half[DIR_REPLY];
	id = pair->backend;
	b = bpf_map_lookup_elem(&backends, &id);
	home = dir == DIR_ORIGINAL ? back->ifindex : b ? b->ifindex : 0;
	if (s->flags & SETTING_ANTI_SPOOF && !flow_is_own(p, skb->ifindex, home))
		return -DROP_SPOOFED;
	if (dir == DIR_ORIGINAL && back->deliver == DELIVER_PEER) {
		back->ifindex = skb->ifindex;
		bpf_skb_load_bytes(skb, ETH_ALEN, back->mac, MAC_LEN);
	}
	return 0;
}

/* flow_allowed checks that the service admits the source. */
__noinline int flow_allowed(const struct packet *p, __u32 service)
{
	struct allow_key key ALIGNED = {.prefix_len = 32 + 8 * ADDR_LEN, .service = service};

	if (!p)
		return -DROP_NOT_ALLOWED;
	addr_copy(key.addr, p->tuple.saddr);
	return bpf_map_lookup_elem(&allow, &key) ? 0 : -DROP_NOT_ALLOWED;
}

#endif
