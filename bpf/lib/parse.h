/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From a frame to a tuple. The packet is only read. */
#ifndef TCLB_PARSE_H
#define TCLB_PARSE_H

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

#include "addr.h"

#define PROTO_HOPOPTS 0
#define PROTO_ICMP 1
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_ROUTING 43
#define PROTO_FRAGMENT 44
#define PROTO_ICMPV6 58
#define PROTO_DSTOPTS 60

#define IPV4_FRAGMENT 0x3fff /* more-fragments bit and offset */
#define IPV4_OFFSET 0x1fff
#define IPV6_OFFSET 0xfff8
#define IPV6_MORE 1

/* Extension headers that are walked before a packet counts as none of ours. */
#define IPV6_EXTENSIONS 6
#define L4_OFF_MAX 0x3ff /* a transport header further behind is not looked at */

#define ICMP_HEADER 8

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define TCP_CONTROL (TCP_FIN | TCP_SYN | TCP_RST)

/* What a packet is to us. From PARSED_LATER on it has addresses but no ports. */
enum parsed {
	PARSED_FLOW = 0,      /* TCP or UDP, whole or a first fragment: the tuple is whole */
	PARSED_LATER = 1,     /* a fragment that is not the first, of any protocol */
	PARSED_ICMP = 2,      /* ICMP or ICMPv6 from its header on */
	PARSED_OTHER = 3,     /* another protocol, or source routed */
	PARSED_MALFORMED = 4, /* headers contradict each other or are cut short */
	PARSED_FOREIGN = 5,   /* no addresses: not IP, tagged, or cut in the IP header */
	/* Inside this file: */
	PARSED_SHORT = 6, /* not yet in the linear part */
	PARSED_IP = 7,	  /* the transport header comes next */
};

enum fragment_part {
	FRAGMENT_NONE = 0,
	FRAGMENT_FIRST = 1,
	FRAGMENT_LATER = 2,
	FRAGMENT_CUT = 3, /* inside this file: an extension header is cut short */
};

struct packet {
	struct tuple tuple;
	__u32 seq;     /* TCP, host order */
	__u32 seq_end; /* seq of what follows this segment */
	__u32 ack;
	__u32 now;	   /* tick */
	__u16 l4_off;	   /* from the start of the frame */
	__u16 payload_off; /* end of the transport header */
	__u8 tcp_flags;	   /* 0 for UDP */
	__u8 fragment;	   /* enum fragment_part */
	__u16 pad;
	__u32 fragment_id; /* network order */
	__u32 limit;	   /* where the IP packet ends; the frame may be longer */
};

static __always_inline int parse_tcp(struct tcphdr *tcp, void *end, struct packet *p)
{
	if ((void *)(tcp + 1) > end)
		return PARSED_SHORT;
	p->payload_off = p->l4_off + tcp->doff * 4;
	if (tcp->doff < 5 || p->payload_off > p->limit)
		return PARSED_MALFORMED;
	p->tuple.sport = tcp->source;
	p->tuple.dport = tcp->dest;
	p->seq = bpf_ntohl(tcp->seq);
	p->ack = bpf_ntohl(tcp->ack_seq);
	p->tcp_flags = ((__u8 *)tcp)[13];
	p->seq_end = p->seq + p->limit - p->payload_off + (p->tcp_flags & TCP_FIN);
	return PARSED_FLOW;
}

static __always_inline int parse_udp(struct udphdr *udp, void *end, struct packet *p)
{
	__u32 len;

	if ((void *)(udp + 1) > end)
		return PARSED_SHORT;
	len = bpf_ntohs(udp->len);
	p->payload_off = p->l4_off + sizeof(*udp);
	if (len < sizeof(*udp) || p->payload_off > p->limit ||
	    (!p->fragment && p->l4_off + len > p->limit))
		return PARSED_MALFORMED;
	p->tuple.sport = udp->source;
	p->tuple.dport = udp->dest;
	return PARSED_FLOW;
}

/* parse_l4 reads the transport header. */
static __always_inline int parse_l4(struct __sk_buff *skb, struct packet *p)
{
	void *l4 = (void *)(long)skb->data + (p->l4_off & L4_OFF_MAX);
	void *end = (void *)(long)skb->data_end;

	if (p->tuple.proto == PROTO_TCP)
		return parse_tcp(l4, end, p);
	if (p->tuple.proto == PROTO_UDP)
		return parse_udp(l4, end, p);
	if (p->tuple.proto == (addr_is_v4(p->tuple.saddr) ? PROTO_ICMP : PROTO_ICMPV6))
		return p->l4_off + ICMP_HEADER > p->limit ? PARSED_MALFORMED : PARSED_ICMP;
	return PARSED_OTHER;
}

/* parse_limit returns where an IP packet ends that says len bytes from off on. Only a packet too large
 * for the field, not yet segmented, may say 0.
 */
static __always_inline __u32 parse_limit(struct __sk_buff *skb, __u32 off, __u32 len)
{
	return len || skb->len <= 0xffff ? off + len : skb->len;
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	__u32 limit;

	if ((void *)(ip + 1) > end)
		return PARSED_SHORT;
	addr_from_v4(p->tuple.saddr, ip->saddr);
	addr_from_v4(p->tuple.daddr, ip->daddr);
	p->tuple.proto = ip->protocol;
	p->l4_off = ETH_HLEN + ip->ihl * 4;
	limit = parse_limit(skb, ETH_HLEN, bpf_ntohs(ip->tot_len));
	if (ip->version != 4 || ip->ihl < 5 || limit > skb->len || p->l4_off > limit)
		return PARSED_MALFORMED;
	if (ip->frag_off & bpf_htons(IPV4_FRAGMENT)) {
		p->fragment_id = ip->id;
		p->fragment = FRAGMENT_FIRST;
		if (ip->frag_off & bpf_htons(IPV4_OFFSET)) {
			p->fragment = FRAGMENT_LATER;
			return PARSED_LATER;
		}
	}
	p->limit = limit;
	return PARSED_IP;
}

/* What a walk over extension headers found. */
#define EXT(id, part, proto, off) \
	((__u64)(id) << 32 | (part) << 24 | ((proto) & 0xff) << 16 | ((off) & 0xffff))
#define EXT_OFF(found) ((found) & 0xffff)
#define EXT_PROTO(found) ((found) >> 16 & 0xff)
#define EXT_PART(found) ((found) >> 24 & 0xff)
#define EXT_ID(found) ((found) >> 32)

/* parse_part says which part an IPv6 fragment header announces. A packet in one piece may have one
 * too (RFC 6946).
 */
static __always_inline __u32 parse_part(const __u8 *head)
{
	__u32 place = head[2] << 8 | head[3];

	if (place & IPV6_OFFSET)
		return FRAGMENT_LATER;
	return place & IPV6_MORE ? FRAGMENT_FIRST : FRAGMENT_NONE;
}

/* parse_extensions walks IPv6 extension headers from `proto` at `off` on. It ends at a later fragment,
 * whose payload is anything, and at a routing header with nodes still to visit: the packet's
 * destination is not its last. Returns EXT of what follows.
 */
__noinline __u64 parse_extensions(struct __sk_buff *skb, __u32 off, __u32 proto, __u32 limit)
{
	__u32 part = FRAGMENT_NONE, id = 0, len;
	__u8 head[8] ALIGNED;

	for (int i = 0; i < IPV6_EXTENSIONS && part != FRAGMENT_LATER; i++) {
		if (proto != PROTO_HOPOPTS && proto != PROTO_ROUTING && proto != PROTO_DSTOPTS &&
		    proto != PROTO_FRAGMENT)
			break;
		if (off + sizeof(head) > limit || bpf_skb_load_bytes(skb, off, head, sizeof(head)))
			return EXT(0, FRAGMENT_CUT, proto, off);
		if (proto == PROTO_ROUTING && head[3])
			break;
		len = (head[1] + 1) * 8;
		if (proto == PROTO_FRAGMENT) {
			part = parse_part(head);
			id = *(__u32 *)(head + 4);
			len = sizeof(head);
		}
		proto = head[0];
		off += len;
	}
	return EXT(id, part, proto, off);
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = data + ETH_HLEN;
	__u32 off = ETH_HLEN + sizeof(*ip), limit;

	if ((void *)(ip + 1) > end)
		return PARSED_SHORT;
	__builtin_memcpy(p->tuple.saddr, &ip->saddr, ADDR_LEN);
	__builtin_memcpy(p->tuple.daddr, &ip->daddr, ADDR_LEN);
	/* Mapped addresses are none on the wire (RFC 4291), and would be taken for IPv4's. */
	if (addr_is_v4(p->tuple.saddr) || addr_is_v4(p->tuple.daddr))
		return PARSED_FOREIGN;
	p->tuple.proto = ip->nexthdr;
	limit = parse_limit(skb, off, bpf_ntohs(ip->payload_len));
	if (ip->version != 6 || limit > skb->len)
		return PARSED_MALFORMED;
	if (ip->nexthdr != PROTO_TCP && ip->nexthdr != PROTO_UDP) {
		__u64 found = parse_extensions(skb, off, ip->nexthdr, limit);

		if (EXT_PART(found) == FRAGMENT_CUT)
			return PARSED_MALFORMED;
		off = EXT_OFF(found);
		p->tuple.proto = EXT_PROTO(found);
		p->fragment = EXT_PART(found);
		p->fragment_id = EXT_ID(found);
		if (p->fragment == FRAGMENT_LATER)
			return PARSED_LATER;
		if (off > L4_OFF_MAX)
			return PARSED_OTHER;
	}
	p->l4_off = off;
	p->limit = limit;
	return PARSED_IP;
}

/* parse_ip parses the IP header of either family, then what is behind it. */
static __always_inline int parse_ip(struct __sk_buff *skb, struct packet *p)
{
	int parsed = PARSED_FOREIGN;

	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		parsed = parse_ipv6(skb, p);
	else if (skb->protocol == bpf_htons(ETH_P_IP))
		parsed = parse_ipv4(skb, p);
	return parsed == PARSED_IP ? parse_l4(skb, p) : parsed;
}

/* parse_again brings the headers into the linear part, where they nearly always are, and parses
 * anew. What is short even then is cut. A GSO packet is pulled whole: a partial pull of a UDP
 * fragment list breaks the list (before 6.16).
 */
__noinline int parse_again(struct __sk_buff *skb, struct packet *p)
{
	__u32 want = L4_OFF_MAX + sizeof(struct tcphdr);
	int parsed;

	if (!p)
		return PARSED_FOREIGN;
	if (skb->gso_segs > 1 || skb->len < want)
		want = skb->len;
	bpf_skb_pull_data(skb, want);
	parsed = parse_ip(skb, p);
	if (parsed != PARSED_SHORT)
		return parsed;
	return p->tuple.proto || p->l4_off ? PARSED_MALFORMED : PARSED_FOREIGN;
}

/* parse_frame fills the rest of p, which is zero, whatever tag is beside the frame. */
static __always_inline int parse_frame(struct __sk_buff *skb, struct packet *p)
{
	int parsed;

	p->now = bpf_jiffies64();
	parsed = parse_ip(skb, p);
	return parsed == PARSED_SHORT ? parse_again(skb, p) : parsed;
}

/* parse_packet fills p from the frame and returns enum parsed. */
static __always_inline int parse_packet(struct __sk_buff *skb, struct packet *p)
{
	__builtin_memset(p, 0, sizeof(*p));
	if (skb->vlan_present)
		return PARSED_FOREIGN;
	return parse_frame(skb, p);
}

#endif
