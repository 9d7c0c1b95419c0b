/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Backends behind an 802.1Q tag: which VLAN, under whose address, to which neighbour.
 *
 * A VLAN is a zone, as another node is: two of them may have the same addresses. The tag is beside the
 * frame, where devices put it and take it off, so headers stand where they always do.
 */
#ifndef TCLB_VLAN_H
#define TCLB_VLAN_H

#include "parse.h"

#define ETH_P_8021Q 0x8100

static __always_inline bool vlan_is(__u32 zone)
{
	return zone >= VLAN_ZONES;
}

/* vlan_of returns the VLAN of a zone, or NULL if no device carries it. */
static __always_inline struct vlan *vlan_of(__u32 zone)
{
	__u32 at = zone - VLAN_ZONES;
	struct vlan *v = bpf_map_lookup_elem(&vlans, &at);

	return v && v->ifindex ? v : NULL;
}

/* vlan_source returns this node's own address in the prefix of an address of a VLAN, or NULL. A function because the
 * programs' call chains share 512 bytes of stack.
 */
static __noinline struct vlan_source *vlan_source(const __u8 *addr, __u32 zone)
{
	struct subnet_key key ALIGNED = {.prefix_len = 32 + 8 * ADDR_LEN, .node = zone};

	addr_copy(key.addr, addr);
	return bpf_map_lookup_elem(&vlan_sources, &key);
}

static __always_inline __u64 vlan_mac(const struct neighbour *n)
{
	return *(const volatile __u64 *)n->mac; /* whole: with the flags behind it */
}

static __always_inline bool vlan_known(__u64 mac)
{
	return mac << 16;
}

/* vlan_destination reads the address that a packet goes to by now. */
static __always_inline int vlan_destination(struct __sk_buff *skb, __u8 *addr)
{
	__be32 v4;

	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return bpf_skb_load_bytes(skb, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, daddr),
					  addr, ADDR_LEN);
	if (bpf_skb_load_bytes(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, daddr), &v4,
			       sizeof(v4)))
		return -1;
	addr_from_v4(addr, v4);
	return 0;
}

/* vlan_wrap gives a translated packet the MAC addresses and the tag that it leaves with. The neighbour is asked
 * for each time, for it may change while flows live. Returns the device, or -DROP_...
 */
__noinline int vlan_wrap(struct __sk_buff *skb, __u32 zone)
{
	struct vlan *v = vlan_of(zone);
	struct neighbour_key to ALIGNED = {.zone = zone};
	__u8 macs[2 * MAC_LEN];
	struct neighbour *n;
	__u64 mac;

	if (!v || vlan_destination(skb, to.addr))
		return -DROP_VLAN;
	n = bpf_map_lookup_elem(&neighbours, &to); /* no call: the stack is deep here */
	mac = n ? vlan_mac(n) : 0;
	if (!vlan_known(mac))
		return -DROP_VLAN;
	__builtin_memcpy(macs, &mac, MAC_LEN);
	__builtin_memcpy(macs + MAC_LEN, v->mac, MAC_LEN);
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0) ||
	    bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), v->id))
		return -DROP_REWRITE;
	return v->ifindex;
}

/* vlan_fits says whether an IP packet of that size can go to a VLAN. Returns 0 or -DROP_... */
static __always_inline int vlan_fits(__u32 zone, __u32 size)
{
	struct vlan *v = vlan_of(zone);

	if (!v)
		return -DROP_VLAN;
	return size > v->mtu ? -DROP_TUNNEL_MTU : 0;
}

#endif
