/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rewriting: a packet leaves with its pair's other tuple turned round.
 *
 * Addresses, ports and the IPv4 checksum are written directly; the transport checksum goes
 * through the helper, which alone knows what a partial checksum needs.
 */
#ifndef TCLB_NAT_H
#define TCLB_NAT_H

#include "conntrack.h"
#include "verdict.h"

#define TCP_CHECK_OFF 16
#define UDP_CHECK_OFF 6

/* What a translated packet carries; copied from the pair before anything is written. */
struct nat_target {
	__u8 saddr[ADDR_LEN];
	__u8 daddr[ADDR_LEN];
	__be16 sport;
	__be16 dport;
	__u32 ifindex;
	__u8 mac[MAC_LEN];
	__u8 deliver;
	__u8 pad;
} ALIGNED;

/* nat_target copies where a hit's packet goes. It fails if the pair ended meanwhile. */
static __always_inline int nat_target(const struct ct_hit *hit, struct nat_target *to)
{
	const struct ct_half *mine = &hit->pair->half[hit->dir & 1];
	const struct tuple *other = &hit->pair->half[!(hit->dir & 1)].tuple;

	addr_copy(to->saddr, other->daddr);
	addr_copy(to->daddr, other->saddr);
	to->sport = other->dport;
	to->dport = other->sport;
	to->ifindex = mine->ifindex;
	__builtin_memcpy(to->mac, mine->mac, MAC_LEN);
	to->deliver = mine->deliver;
	return ct_alive(hit) ? 0 : -DROP_NO_PAIR;
}

/* nat_fold32 brings a one's complement sum to 32 bits; both its zeros become 0. */
static __always_inline __u32 nat_fold32(__u64 sum)
{
	__u32 folded;

	sum = (sum & 0xffffffff) + (sum >> 32);
	folded = (sum & 0xffffffff) + (sum >> 32);
	return folded == 0xffffffff ? 0 : folded;
}

/* nat_negate is what undoes a sum. */
static __always_inline __u32 nat_negate(__u64 sum)
{
	return nat_fold32((__u32)~nat_fold32(sum));
}

static __always_inline __u16 nat_fold16(__u64 sum)
{
	sum = nat_fold32(sum);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* nat_addr_diff is the checksum difference between two addresses of one family. */
static __always_inline __u64 nat_addr_diff(const __u8 *from, const __u8 *to, bool v4)
{
	const __u32 *a = (const __u32 *)from, *b = (const __u32 *)to;
	__u64 sum = (__u64)(__u32)~a[3] + b[3];

	if (v4)
		return sum;
	for (int i = 0; i < 3; i++)
		sum += (__u64)(__u32)~a[i] + b[i];
	return sum;
}

static __always_inline int nat_write_v4(void *data, void *end, const struct nat_target *to,
					__u64 diff)
{
	struct iphdr *ip = data + ETH_HLEN;

	if ((void *)(ip + 1) > end)
		return -DROP_MALFORMED;
	ip->saddr = addr_to_v4(to->saddr);
	ip->daddr = addr_to_v4(to->daddr);
	ip->check = ~nat_fold16((__u64)(__u16)~ip->check + diff);
	return 0;
}

static __always_inline int nat_write_v6(void *data, void *end, const struct nat_target *to)
{
	struct ipv6hdr *ip = data + ETH_HLEN;

	if ((void *)(ip + 1) > end)
		return -DROP_MALFORMED;
	__builtin_memcpy(&ip->saddr, to->saddr, ADDR_LEN);
	__builtin_memcpy(&ip->daddr, to->daddr, ADDR_LEN);
	return 0;
}

/* nat_write_mac addresses the frame to where it is delivered, in two stores. */
static __always_inline int nat_write_mac(void *data, void *end, const struct nat_target *to)
{
	if (to->deliver == DELIVER_STACK)
		return 0;
	if (data + ETH_HLEN > end)
		return -DROP_MALFORMED;
	*(__u32 *)data = *(const __u32 *)to->mac;
	*(__u16 *)(data + 4) = *(const __u16 *)(to->mac + 4);
	return 0;
}

/* nat_check brings the transport checksum up to date. A UDP checksum of zero stays zero. */
static __always_inline int nat_check(struct __sk_buff *skb, const struct packet *p, __u32 addrs,
				     __u32 ports)
{
	bool udp = p->tuple.proto == PROTO_UDP;
	__u32 off = p->l4_off + (udp ? UDP_CHECK_OFF : TCP_CHECK_OFF);
	__u64 flags = udp ? BPF_F_MARK_MANGLED_0 : 0;

	if (addrs && bpf_l4_csum_replace(skb, off, 0, addrs, BPF_F_PSEUDO_HDR | flags))
		return -DROP_REWRITE;
	if (ports && bpf_l4_csum_replace(skb, off, 0, ports, flags))
		return -DROP_REWRITE;
	return 0;
}

/* nat_write_l3 writes MAC and addresses; `diff` is what that does to a checksum over them. */
static __always_inline int nat_write_l3(void *data, void *end, const struct nat_target *to, bool v4,
					__u64 diff)
{
	if (nat_write_mac(data, end, to))
		return -DROP_MALFORMED;
	return v4 ? nat_write_v4(data, end, to, diff) : nat_write_v6(data, end, to);
}

/* nat_diff is the checksum difference that the packet's new addresses make. */
static __always_inline __u64 nat_diff(const struct packet *p, const struct nat_target *to, bool v4)
{
	return nat_addr_diff(p->tuple.saddr, to->saddr, v4) +
	       nat_addr_diff(p->tuple.daddr, to->daddr, v4);
}

/* nat_translate rewrites the packet into `to`. After an error it may be half written: drop it. */
static __always_inline int nat_translate(struct __sk_buff *skb, const struct packet *p,
					 const struct nat_target *to)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	bool v4 = addr_is_v4(p->tuple.saddr);
	__u64 addrs = nat_diff(p, to, v4);
	__u32 from = *(const __u32 *)&p->tuple.sport, into = *(const __u32 *)&to->sport;
	__be32 *ports = data + (p->l4_off & L4_OFF_MAX);
	int err;

	if ((void *)(ports + 1) > end)
		return -DROP_MALFORMED;
	*ports = into;
	err = nat_write_l3(data, end, to, v4, addrs);
	if (err)
		return err;
	return nat_check(skb, p, nat_fold32(addrs), nat_fold32((__u64)(__u32)~from + into));
}

/* nat_translate_l3 rewrites a packet that has addresses but no ports. */
static __always_inline int nat_translate_l3(struct __sk_buff *skb, const struct packet *p,
					    const struct nat_target *to)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	bool v4 = addr_is_v4(p->tuple.saddr);

	return nat_write_l3(data, end, to, v4, nat_diff(p, to, v4));
}

#endif
