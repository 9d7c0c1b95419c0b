/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* An answer to who cannot be served: a TCP reset or an ICMP port unreachable, from the address
 * that was asked, so that a client fails at once instead of waiting. The packet itself
 * becomes the answer.
 */
#ifndef TCLB_REJECT_H
#define TCLB_REJECT_H

#include "nat.h"

#define REJECT_TTL 64
#define REJECT_BURST 256  /* answers a CPU may send at once */
#define REJECT_PER_TICK 4 /* and this many more with every tick */

#define ICMP_UNREACHABLE 3
#define ICMP_PORT 3
#define ICMP_FRAG_NEEDED 4
#define ICMP_TIME_EXCEEDED 11
#define ICMPV6_UNREACHABLE 1
#define ICMPV6_PACKET_TOO_BIG 2
#define ICMPV6_TIME_EXCEEDED 3
#define ICMPV6_PORT 4

#define INNER_L4 8 /* bytes of the transport header that an ICMP error quotes at least */

struct icmp_error {
	__u8 type;
	__u8 code;
	__u16 check;
	__u32 unused;
	__u8 quote[sizeof(struct ipv6hdr) + INNER_L4];
};

/* reject_allowed takes an answer from this CPU's bucket. */
static __always_inline bool reject_allowed(__u32 now)
{
	__u32 zero = 0;
	struct reject_bucket *b = bpf_map_lookup_elem(&reject_buckets, &zero);
	__u32 passed;

	if (!b)
		return false;
	passed = now - b->filled;
	if ((__s32)passed > 0) {
		b->filled = now;
		if (passed > REJECT_BURST / REJECT_PER_TICK)
			passed = REJECT_BURST / REJECT_PER_TICK;
		b->tokens += passed * REJECT_PER_TICK;
		if (b->tokens > REJECT_BURST)
			b->tokens = REJECT_BURST;
	}
	if (!b->tokens)
		return false;
	b->tokens--;
	return true;
}

/* reject_unicast says whether an address can have sent the packet and can be answered. */
static __always_inline bool reject_unicast(const __u8 *addr)
{
	__u8 v4_first = ((const __u8 *)addr)[12];

	if (addr_is_v4(addr))
		return v4_first && v4_first < 224;
	return addr[0] != 0xff && (addr_word(addr, 0) || addr_word(addr, 1));
}

/* reject_ip writes the IP header of an answer that carries len bytes. */
static __always_inline int reject_ip(struct __sk_buff *skb, const struct packet *p, __u8 proto,
				     __u16 len)
{
	struct iphdr v4 = {};
	struct ipv6hdr v6 = {};

	if (addr_is_v4(p->tuple.saddr)) {
		v4.version = 4;
		v4.ihl = sizeof(v4) / 4;
		v4.ttl = REJECT_TTL;
		v4.protocol = proto;
		v4.tot_len = bpf_htons(sizeof(v4) + len);
		v4.saddr = addr_to_v4(p->tuple.daddr);
		v4.daddr = addr_to_v4(p->tuple.saddr);
		v4.check = ~nat_fold16(bpf_csum_diff(NULL, 0, (__be32 *)&v4, sizeof(v4), 0));
		return bpf_skb_store_bytes(skb, ETH_HLEN, &v4, sizeof(v4), 0);
	}
	v6.version = 6;
	v6.nexthdr = proto;
	v6.hop_limit = REJECT_TTL;
	v6.payload_len = bpf_htons(len);
	__builtin_memcpy(&v6.saddr, p->tuple.daddr, ADDR_LEN);
	__builtin_memcpy(&v6.daddr, p->tuple.saddr, ADDR_LEN);
	return bpf_skb_store_bytes(skb, ETH_HLEN, &v6, sizeof(v6), 0);
}

/* reject_pseudo sums the pseudo header; the prefixes of mapped addresses add up to zero. */
static __always_inline __u64 reject_pseudo(const struct packet *p, __u8 proto, __u16 len)
{
	return (__u32)bpf_csum_diff(NULL, 0, (__be32 *)&p->tuple, 2 * ADDR_LEN, 0) +
	       bpf_htons(proto) + (__u64)bpf_htons(len);
}

/* reject_reset turns the packet into a RST for the segment that it was (RFC 9293, 3.10.7.1). */
static __always_inline int reject_reset(struct __sk_buff *skb, const struct packet *p, __u32 l4)
{
	struct tcphdr tcp = {.source = p->tuple.dport,
			     .dest = p->tuple.sport,
			     .doff = sizeof(tcp) / 4,
			     .rst = 1};
	__u64 sum;

	if (p->tcp_flags & TCP_ACK) {
		tcp.seq = bpf_htonl(p->ack);
	} else {
		tcp.ack = 1;
		tcp.ack_seq = bpf_htonl(p->seq_end + !!(p->tcp_flags & TCP_SYN));
	}
	sum = (__u32)bpf_csum_diff(NULL, 0, (__be32 *)&tcp, sizeof(tcp), 0);
	/* What a partial checksum holds, which the device completes: then the helper leaves it alone. Any
	 * other becomes the whole.
	 */
	tcp.check = nat_fold16(reject_pseudo(p, PROTO_TCP, sizeof(tcp)));
	sum += 2 * (__u64)tcp.check;
	if (bpf_skb_change_tail(skb, l4 + sizeof(tcp), 0) ||
	    reject_ip(skb, p, PROTO_TCP, sizeof(tcp)) ||
	    bpf_skb_store_bytes(skb, l4, &tcp, sizeof(tcp), 0) ||
	    bpf_l4_csum_replace(skb, l4 + TCP_CHECK_OFF, 0, nat_fold32(sum), 0))
		return -DROP_REWRITE;
	return 0;
}

/* reject_unreachable turns the packet into an ICMP port unreachable that quotes it. */
static __always_inline int reject_unreachable(struct __sk_buff *skb, const struct packet *p,
					      __u32 l4)
{
	bool v4 = addr_is_v4(p->tuple.saddr);
	__u32 quoted = (v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) + INNER_L4;
	__u32 len = 8 + quoted;
	struct icmp_error icmp = {};
	__u64 sum = 0;

	if (v4) {
		icmp.type = ICMP_UNREACHABLE;
		icmp.code = ICMP_PORT;
		if (bpf_skb_load_bytes(skb, ETH_HLEN, icmp.quote, sizeof(struct iphdr) + INNER_L4))
			return -DROP_REWRITE;
	} else {
		icmp.type = ICMPV6_UNREACHABLE;
		icmp.code = ICMPV6_PORT;
		if (bpf_skb_load_bytes(skb, ETH_HLEN, icmp.quote,
				       sizeof(struct ipv6hdr) + INNER_L4))
			return -DROP_REWRITE;
		sum = reject_pseudo(p, PROTO_ICMPV6, len);
	}
	/* What is not quoted is zero, and does not change the sum. */
	sum += (__u32)bpf_csum_diff(NULL, 0, (__be32 *)&icmp, sizeof(icmp), 0);
	icmp.check = ~nat_fold16(sum);
	if (bpf_skb_change_tail(skb, l4 + len, 0) ||
	    reject_ip(skb, p, v4 ? PROTO_ICMP : PROTO_ICMPV6, len))
		return -DROP_REWRITE;
	if (v4)
		return bpf_skb_store_bytes(skb, l4, &icmp, 8 + sizeof(struct iphdr) + INNER_L4, 0)
			       ? -DROP_REWRITE
			       : 0;
	return bpf_skb_store_bytes(skb, l4, &icmp, sizeof(icmp), 0) ? -DROP_REWRITE : 0;
}

/* reject_answer makes the packet an answer to its sender, addressed by swapping the MACs. Returns 0;
 * REJECT_SILENT where there is no answering: a reset, a fragment, a packet with IP options, a source
 * that is no host's; or -DROP_...
 */
#define REJECT_SILENT 1
__noinline int reject_answer(struct __sk_buff *skb, const struct packet *p)
{
	__u32 l4;
	int err;

	if (!p)
		return -DROP_REWRITE;
	l4 = ETH_HLEN +
	     (addr_is_v4(p->tuple.saddr) ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	if (p->l4_off != l4 || p->fragment || p->tcp_flags & TCP_RST ||
	    !reject_unicast(p->tuple.saddr))
		return REJECT_SILENT;
	if (!reject_allowed(p->now))
		return -DROP_RATE_LIMITED;
	err = p->tuple.proto == PROTO_TCP ? reject_reset(skb, p, l4)
					  : reject_unreachable(skb, p, l4);
	if (err)
		return err;
	return 0;
}

/* reject_path makes the packet an ICMP error to its sender, who is to send less at once, `mtu`, or with 0
 * has sent something whose hops are used up. Returns as reject_answer does.
 */
#define REJECT_QUOTE 64
struct path_error {
	__u8 type;
	__u8 code;
	__u16 check;
	__be32 info;
	__u8 quote[REJECT_QUOTE];
};
__noinline int reject_path(struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	struct path_error icmp = {};
	__u32 l4, quoted, len;
	__u64 sum = 0;
	bool v4;

	if (!p || p->fragment == FRAGMENT_LATER || !reject_unicast(p->tuple.saddr) ||
	    skb->len < ETH_HLEN + sizeof(struct iphdr) + INNER_L4)
		return REJECT_SILENT;
	if (!reject_allowed(p->now))
		return -DROP_RATE_LIMITED;
	v4 = addr_is_v4(p->tuple.saddr);
	l4 = ETH_HLEN + (v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	quoted = skb->len - ETH_HLEN;
	if (quoted > REJECT_QUOTE)
		quoted = REJECT_QUOTE;
	if (quoted < 1 || bpf_skb_load_bytes(skb, ETH_HLEN, icmp.quote, quoted))
		return -DROP_REWRITE;
	len = ICMP_HEADER + quoted;
	icmp.info = bpf_htonl(mtu);
	if (v4) {
		icmp.type = mtu ? ICMP_UNREACHABLE : ICMP_TIME_EXCEEDED;
		icmp.code = mtu ? ICMP_FRAG_NEEDED : 0;
	} else {
		icmp.type = mtu ? ICMPV6_PACKET_TOO_BIG : ICMPV6_TIME_EXCEEDED;
		sum = reject_pseudo(p, PROTO_ICMPV6, len);
	}
	/* What is not quoted is zero, and does not change the sum. */
	sum += (__u32)bpf_csum_diff(NULL, 0, (__be32 *)&icmp, sizeof(icmp), 0);
	icmp.check = ~nat_fold16(sum);
	if (bpf_skb_change_tail(skb, l4 + len, 0) ||
	    reject_ip(skb, p, v4 ? PROTO_ICMP : PROTO_ICMPV6, len) ||
	    bpf_skb_store_bytes(skb, l4, &icmp, ICMP_HEADER, 0) ||
	    bpf_skb_store_bytes(skb, l4 + ICMP_HEADER, icmp.quote, quoted, 0))
		return -DROP_REWRITE;
	return 0;
}

/* reject_wanted says which refusals a client is told of. Who is not allowed is told nothing. */
static __always_inline bool reject_wanted(int error)
{
	return error == -DROP_NO_BACKEND || error == -DROP_NO_FRONTEND ||
	       error == -DROP_BACKEND_GONE || error == -DROP_NO_PAIR;
}

/* reject_swap_macs sends the frame back where it came from. */
static __always_inline int reject_swap_macs(struct __sk_buff *skb)
{
	struct ethhdr eth;
	__u8 mac[MAC_LEN];

	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return -DROP_REWRITE;
	__builtin_memcpy(mac, eth.h_dest, MAC_LEN);
	__builtin_memcpy(eth.h_dest, eth.h_source, MAC_LEN);
	__builtin_memcpy(eth.h_source, mac, MAC_LEN);
	return bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0) ? -DROP_REWRITE : 0;
}

#endif
