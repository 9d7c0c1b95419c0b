/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Neighbours in a VLAN, of which the kernel knows nothing: what backends say of themselves is learned, and
 * their questions for addresses that we come from are answered, with the tag.
 */
#ifndef TCLB_NEIGHBOUR_H
#define TCLB_NEIGHBOUR_H

#include "access.h"
#include "announce.h"
#include "vlan.h"

#define VLAN_ID 0xfff /* of a tag; the rest is its priority */

/* neighbour_zone returns the zone that a tagged packet comes from, or 0 if that is none of ours. A function because
 * the programs' call chains share 512 bytes of stack.
 */
static __noinline __u32 neighbour_zone(const struct __sk_buff *skb)
{
	struct vlan_key key ALIGNED = {.ifindex = skb->ifindex, .id = skb->vlan_tci & VLAN_ID};
	__u32 *zone;

	if (skb->vlan_proto != bpf_htons(ETH_P_8021Q))
		return 0;
	zone = bpf_map_lookup_elem(&vlan_zones, &key);
	return zone ? *zone : 0;
}

/* neighbour_of returns the backend that has an address in a VLAN, or NULL. */
static __noinline struct neighbour *neighbour_of(const __u8 *addr, __u32 zone)
{
	struct neighbour_key key ALIGNED = {.zone = zone};

	addr_copy(key.addr, addr);
	return bpf_map_lookup_elem(&neighbours, &key);
}

/* neighbour_learn keeps the MAC address of a backend that says who it is. Only the proxy makes entries, so that
 * nobody fills the map.
 */
static __noinline void neighbour_learn(const __u8 *addr, __u32 zone, const __u8 *mac)
{
	struct neighbour *n = neighbour_of(addr, zone);
	__u64 word = 0;

	if (!n || n->flags & NEIGHBOUR_FIXED)
		return;
	__builtin_memcpy(&word, mac, MAC_LEN);
	if (!word || word & 1) /* nobody's, or a group's */
		return;
	if (vlan_mac(n) != word)
		*(volatile __u64 *)n->mac = word;
	__sync_fetch_and_add(&n->answers, 1);
}

/* neighbour_is_ours says whether an address is one that packets to this VLAN come from. Where this node has
 * an address of its own on the link, no other one on it is; else clients keep theirs: containers
 * attached here, and VIPs for processes. A backend's address is the backend's.
 */
static __always_inline bool neighbour_is_ours(const __u8 *addr, __u32 zone)
{
	struct vlan_source *source = vlan_source(addr, zone);
	struct frontend_key key ALIGNED = {};
	struct frontend *f;

	if (source)
		return addr_equal(source->addr, addr);
	if (neighbour_of(addr, zone))
		return false;
	addr_copy(key.vip, addr);
	f = bpf_map_lookup_elem(&frontends, &key);
	return (f && f->kind == FRONTEND_VIP) || flow_attached(addr);
}

static __always_inline int neighbour_arp(struct __sk_buff *skb, const struct vlan *v, __u32 zone)
{
	__u8 addr[ADDR_LEN] ALIGNED;
	struct arp a ALIGNED;

	if (!announce_read_arp(skb, &a))
		return 0;
	announce_arp_address(addr, a.sender);
	neighbour_learn(addr, zone, a.sender_mac);
	if (a.op != bpf_htons(ARP_REQUEST))
		return 0;
	announce_arp_address(addr, a.target);
	return neighbour_is_ours(addr, zone) ? announce_arp_reply(skb, &a, v->mac) : 0;
}

static __always_inline int neighbour_nd(struct __sk_buff *skb, const struct packet *p,
					const struct vlan *v, __u32 zone)
{
	__u8 asker[MAC_LEN];
	struct nd n ALIGNED = {};

	if (!announce_read_nd(skb, p, &n, asker))
		return 0;
	if (n.type == ND_ADVERT)
		neighbour_learn(n.target, zone, asker);
	if (n.type != ND_SOLICIT)
		return 0;
	neighbour_learn(p->tuple.saddr, zone, asker);
	return neighbour_is_ours(n.target, zone) ? announce_advert(skb, p, &n, asker, v->mac) : 0;
}

/* neighbour_answer learns from a packet, and makes a question for an address of ours its answer, to be sent out
 * of the device that it came in by, its tag still beside it. Returns 1 if it did, 0 for any other packet, or
 * -DROP_...
 */
__noinline int neighbour_answer(struct __sk_buff *skb, const struct packet *p)
{
	struct vlan *v;

	if (!p)
		return 0;
	v = vlan_of(p->tuple.zone);
	if (!v)
		return 0;
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return neighbour_arp(skb, v, p->tuple.zone);
	return neighbour_nd(skb, p, v, p->tuple.zone);
}

#endif
