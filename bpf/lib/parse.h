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
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_ROUTING 43
#define PROTO_FRAGMENT 44
#define PROTO_DSTOPTS 60

#define IPV4_FRAGMENT 0x3fff /* more-fragments bit and offset */

/* Extension headers that are walked before a packet counts as none of ours. */
#define IPV6_EXTENSIONS 6

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define TCP_CONTROL (TCP_FIN | TCP_SYN | TCP_RST)

/* What a packet is to us. */
enum parsed {
	PARSED_FLOW = 0,      /* TCP or UDP, the tuple is whole */
	PARSED_ADDRESSES = 1, /* IP, but no ports: other protocol or fragment */
	PARSED_FOREIGN = 2,   /* not IP, tagged, or cut short */
};

struct packet {
	struct tuple tuple;
	__u32 seq; /* TCP, host order */
	__u32 ack;
	__u32 now;	   /* tick */
	__u16 l4_off;	   /* from the start of the frame */
	__u16 payload_off; /* end of the transport header */
	__u8 tcp_flags;	   /* 0 for UDP */
	__u8 fragment;	   /* with PARSED_ADDRESSES: why there are no ports */
	__u16 pad[3];
};

/* parse_l4 reads ports and, for TCP, flags and numbers. */
static __always_inline int parse_l4(void *l4, void *end, struct packet *p)
{
	if (p->tuple.proto == PROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end)
			return PARSED_FOREIGN;
		p->tuple.sport = tcp->source;
		p->tuple.dport = tcp->dest;
		p->seq = bpf_ntohl(tcp->seq);
		p->ack = bpf_ntohl(tcp->ack_seq);
		p->tcp_flags = ((__u8 *)tcp)[13];
		p->payload_off = p->l4_off + tcp->doff * 4;
		return PARSED_FLOW;
	}
	if (p->tuple.proto == PROTO_UDP) {
		struct udphdr *udp = l4;

		if ((void *)(udp + 1) > end)
			return PARSED_FOREIGN;
		p->tuple.sport = udp->source;
		p->tuple.dport = udp->dest;
		p->payload_off = p->l4_off + sizeof(*udp);
		return PARSED_FLOW;
	}
	return PARSED_ADDRESSES;
}

static __always_inline int parse_ipv4(void *data, void *end, struct packet *p)
{
	struct iphdr *ip = data + ETH_HLEN;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return PARSED_FOREIGN;
	addr_from_v4(p->tuple.saddr, ip->saddr);
	addr_from_v4(p->tuple.daddr, ip->daddr);
	p->tuple.proto = ip->protocol;
	p->l4_off = ETH_HLEN + ip->ihl * 4;
	if (ip->frag_off & bpf_htons(IPV4_FRAGMENT)) {
		p->fragment = 1;
		return PARSED_ADDRESSES;
	}
	return parse_l4(data + p->l4_off, end, p);
}

/* parse_extensions walks IPv6 extension headers from `proto` at `off`. It returns
 * offset << 8 | protocol of what follows; a fragment header ends the walk.
 */
static __noinline __u32 parse_extensions(struct __sk_buff *skb, __u32 off, __u32 proto)
{
	__u8 head[2];

	for (int i = 0; i < IPV6_EXTENSIONS; i++) {
		if (proto != PROTO_HOPOPTS && proto != PROTO_ROUTING && proto != PROTO_DSTOPTS)
			break;
		if (bpf_skb_load_bytes(skb, off, head, sizeof(head)))
			break;
		proto = head[0];
		off += (head[1] + 1) * 8;
	}
	return off << 8 | (proto & 0xff);
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = data + ETH_HLEN;
	__u32 off = ETH_HLEN + sizeof(*ip);

	if ((void *)(ip + 1) > end || ip->version != 6)
		return PARSED_FOREIGN;
	__builtin_memcpy(p->tuple.saddr, &ip->saddr, ADDR_LEN);
	__builtin_memcpy(p->tuple.daddr, &ip->daddr, ADDR_LEN);
	p->tuple.proto = ip->nexthdr;
	if (ip->nexthdr != PROTO_TCP && ip->nexthdr != PROTO_UDP) {
		__u32 found = parse_extensions(skb, off, ip->nexthdr);

		off = found >> 8 & 0x3ff;
		p->tuple.proto = found & 0xff;
		p->fragment = p->tuple.proto == PROTO_FRAGMENT;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	p->l4_off = off;
	return parse_l4(data + off, end, p);
}

/* parse_linear brings the headers into the linear part, where they nearly always are. A GSO
 * packet is pulled whole: a partial pull of a UDP fragment list breaks the list (before 6.16).
 */
static __always_inline void parse_linear(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 want = ETH_HLEN + sizeof(struct iphdr) + sizeof(struct tcphdr);

	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		want = ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(struct tcphdr);
	if (data + want <= end)
		return;
	if (skb->gso_segs > 1 || skb->len < want)
		want = skb->len;
	bpf_skb_pull_data(skb, want);
}

/* parse_packet fills p from the frame and returns enum parsed. */
static __always_inline int parse_packet(struct __sk_buff *skb, struct packet *p)
{
	void *data, *end;

	__builtin_memset(p, 0, sizeof(*p));
	if (skb->vlan_present)
		return PARSED_FOREIGN;
	parse_linear(skb);
	p->now = bpf_jiffies64();
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(skb, p);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return parse_ipv4(data, end, p);
	return PARSED_FOREIGN;
}

#endif
