/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets to and from other nodes, in VXLAN: what fits, how it is sent, whom to believe. */
#ifndef TCLB_ENCAP_H
#define TCLB_ENCAP_H

#include "nat.h"
#include "tunnel.h"

#define ENCAP_TTL 64
#define IPV4_DF 0x4000

#define TCP_OPT_END 0
#define TCP_OPT_NOP 1
#define TCP_OPT_MSS 2
#define TCP_OPT_MSS_LEN 4
#define TCP_OPTIONS 37 /* steps over options: the last may be behind 36 bytes of padding */

/* encap_key_size is struct bpf_tunnel_key up to the local address: who is there (all kernels know it). */
#define encap_key_size __builtin_offsetof(struct bpf_tunnel_key, local_ipv4)

static __always_inline struct node_settings *encap_settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

/* encap_size is the largest IP packet that will leave for this one. */
static __always_inline __u32 encap_size(const struct __sk_buff *skb, const struct packet *p)
{
	if (skb->gso_size)
		return skb->gso_size + p->payload_off - ETH_HLEN;
	return (p->limit ? p->limit : skb->len) - ETH_HLEN;
}

/* encap_whole says whether a packet must not be cut into outer fragments: its sender said so, or the
 * underlay is of IPv6, which never does.
 */
static __always_inline int encap_whole(struct __sk_buff *skb, const struct packet *p,
				       const struct node *n)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + ETH_HLEN;

	if (!addr_is_v4(p->tuple.saddr) || !addr_is_v4(n->vtep))
		return true;
	return (void *)(ip + 1) > end || ip->frag_off & bpf_htons(IPV4_DF);
}

/* encap_hops returns how many hops a packet may still go. */
static __always_inline __u32 encap_hops(struct __sk_buff *skb, const struct packet *p)
{
	__u8 hops = 0;

	bpf_skb_load_bytes(skb,
			   ETH_HLEN + (addr_is_v4(p->tuple.saddr)
					       ? __builtin_offsetof(struct iphdr, ttl)
					       : __builtin_offsetof(struct ipv6hdr, hop_limit)),
			   &hops, 1);
	return hops;
}

/* encap_fits says whether a packet can go to a node, or into a VLAN. Returns 0 or -DROP_..., of which
 * DROP_TUNNEL_MTU and DROP_HOP_LIMIT are worth telling the sender.
 */
__noinline int encap_fits(struct __sk_buff *skb, const struct packet *p, __u32 id)
{
	struct node_settings *s = encap_settings();
	struct node *n = tunnel_node(id);

	if (p && vlan_is(id))
		return vlan_fits(id, encap_size(skb, p));
	if (!p || !n || !s || !s->tunnel_ifindex)
		return -DROP_TUNNEL_NODE;
	if (encap_hops(skb, p) <= 1)
		return -DROP_HOP_LIMIT;
	if (encap_size(skb, p) > n->mtu && encap_whole(skb, p, n))
		return -DROP_TUNNEL_MTU;
	return 0;
}

/* encap_mtu returns the largest IP packet that fits to a node, or into a VLAN. */
static __always_inline __u32 encap_mtu(__u32 id)
{
	struct node *n = tunnel_node(id);
	struct vlan *v = vlan_is(id) ? vlan_of(id) : NULL;

	return v ? v->mtu : n ? n->mtu : 0;
}

/* encap_lower lowers the MSS that stands at `off`. Options may stand anywhere: one that begins at an odd
 * place has the bytes of its number in two words of the checksum.
 */
static __noinline int encap_lower(struct __sk_buff *skb, const struct packet *p, __u32 off,
				  __u32 mss)
{
	__be16 now, low = bpf_htons(mss);
	bool odd = (off - p->l4_off) & 1;
	__be16 into = low;

	if (bpf_skb_load_bytes(skb, off, &now, sizeof(now)))
		return -DROP_REWRITE;
	if (bpf_ntohs(now) <= mss)
		return 0;
	if (odd) {
		now = __builtin_bswap16(now);
		into = __builtin_bswap16(low);
	}
	if (bpf_l4_csum_replace(skb, p->l4_off + TCP_CHECK_OFF, now, into, sizeof(into)) ||
	    bpf_skb_store_bytes(skb, off, &low, sizeof(low), 0))
		return -DROP_REWRITE;
	return 0;
}

/* encap_clamp lowers the MSS that a SYN or its answer announces to what fits to a node: neither side
 * ever learns that there is a tunnel.
 */
__noinline int encap_clamp(struct __sk_buff *skb, const struct packet *p, __u32 id)
{
	__u32 off, end, mss = encap_mtu(id);
	__u8 opt[4];

	if (!p || !mss)
		return 0;
	mss -= sizeof(struct tcphdr) +
	       (addr_is_v4(p->tuple.saddr) ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	off = p->l4_off + sizeof(struct tcphdr);
	end = p->payload_off;
	for (int i = 0; i < TCP_OPTIONS && off + sizeof(opt) <= end; i++) {
		if (bpf_skb_load_bytes(skb, off, opt, sizeof(opt)) || opt[0] == TCP_OPT_END)
			return 0;
		if (opt[0] == TCP_OPT_NOP) {
			off++;
			continue;
		}
		if (opt[0] != TCP_OPT_MSS) {
			if (opt[1] < 2)
				return 0;
			off += opt[1];
			continue;
		}
		return opt[1] == TCP_OPT_MSS_LEN ? encap_lower(skb, p, off + 2, mss) : 0;
	}
	return 0;
}

/* encap_hop takes one hop off a packet's life, which must not end by it. */
static __always_inline int encap_hop(struct __sk_buff *skb, bool v4)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr *v6 = data + ETH_HLEN;
	struct iphdr *ip = data + ETH_HLEN;

	if (v4) {
		if ((void *)(ip + 1) > end)
			return -DROP_REWRITE;
		if (ip->ttl <= 1)
			return -DROP_HOP_LIMIT;
		ip->check = ~nat_fold16((__u64)(__u16)~ip->check + (__u16)~bpf_htons(0x0100));
		ip->ttl--;
		return 0;
	}
	if ((void *)(v6 + 1) > end)
		return -DROP_REWRITE;
	if (v6->hop_limit <= 1)
		return -DROP_HOP_LIMIT;
	v6->hop_limit--;
	return 0;
}

/* encap_address writes the outer ends. The source is always said: a peer drops what comes from another
 * address than the one that it knows. Without a checksum in IPv4, where the receiver need not have one.
 */
static __always_inline __u64 encap_address(struct bpf_tunnel_key *key, const struct node *n,
					   const struct node_settings *s)
{
	if (addr_is_v4(n->vtep)) {
		key->remote_ipv4 = bpf_ntohl(addr_to_v4(n->vtep));
		key->local_ipv4 = bpf_ntohl(addr_to_v4(s->vtep4));
		return BPF_F_ZERO_CSUM_TX;
	}
	__builtin_memcpy(key->remote_ipv6, n->vtep, ADDR_LEN);
	__builtin_memcpy(key->local_ipv6, s->vtep6, ADDR_LEN);
	return BPF_F_TUNINFO_IPV6;
}

/* encap_wrap says where the packet goes once it is sent by the tunnel device: to a node. Returns the
 * device, or -DROP_...
 */
__noinline int encap_wrap(struct __sk_buff *skb, __u32 id)
{
	struct bpf_tunnel_key key = {.tunnel_ttl = ENCAP_TTL};
	struct node_settings *s = encap_settings();
	struct node *n = tunnel_node(id);
	__u64 flags;

	if (!s || !n || !s->tunnel_ifindex)
		return -DROP_TUNNEL_NODE;
	key.tunnel_id = s->vni;
	flags = encap_address(&key, n, s);
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags))
		return -DROP_REWRITE;
	return s->tunnel_ifindex;
}

/* encap_send sends a translated packet to a node, or into a VLAN. Returns a verdict, or -DROP_... */
__noinline int encap_send(struct __sk_buff *skb, const struct packet *p, __u32 id)
{
	int device;

	if (!p)
		return -DROP_REWRITE;
	device = vlan_is(id) ? vlan_wrap(skb, id) : encap_hop(skb, addr_is_v4(p->tuple.saddr));
	if (!device)
		device = encap_wrap(skb, id);
	return device < 0 ? device : bpf_redirect(device, 0);
}

/* encap_source returns the id of the node that a decapsulated packet came from, or -DROP_TUNNEL_SOURCE:
 * only nodes that are known are believed, in this cluster's network.
 */
__noinline int encap_source(struct __sk_buff *skb)
{
	struct node_settings *s = encap_settings();
	struct bpf_tunnel_key key = {};
	struct vtep_key from ALIGNED = {};
	__u32 *id;

	if (!s)
		return -DROP_TUNNEL_SOURCE;
	if (!bpf_skb_get_tunnel_key(skb, &key, encap_key_size, 0))
		addr_from_v4(from.addr, bpf_htonl(key.remote_ipv4));
	else if (!bpf_skb_get_tunnel_key(skb, &key, encap_key_size, BPF_F_TUNINFO_IPV6))
		__builtin_memcpy(from.addr, key.remote_ipv6, ADDR_LEN);
	else
		return -DROP_TUNNEL_SOURCE;
	id = bpf_map_lookup_elem(&vteps, &from);
	return id && *id && *id < NODES && key.tunnel_id == s->vni ? (int)*id : -DROP_TUNNEL_SOURCE;
}

#endif
