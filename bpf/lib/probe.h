/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Probes: datagrams by which a proxy sees that another node is there, how far, and what fits through.
 *
 * The proxy sends one to the hairpin address, which leads to tclb0; it names the node. That node's
 * from_overlay turns it round, without its proxy.
 */
#ifndef TCLB_PROBE_H
#define TCLB_PROBE_H

#include "access.h"
#include "tunnel.h"

#define PROBE_PORT 7 /* echo */
#define PROBE_MAGIC 0x74636c62

/* What a probe begins with; both in network order. */
struct probe {
	__be32 magic;
	__be32 node;
};

static __always_inline bool probe_asks(const struct packet *p)
{
	return p->tuple.dport == bpf_htons(PROBE_PORT);
}

/* probe_between says whether the ends are those of a probe or of its answer: that one end alone is the echo
 * port of the hairpin address keeps probes from being turned round for ever, and services theirs.
 */
static __always_inline bool probe_between(const struct packet *p)
{
	const __u8 *echo = probe_asks(p) ? p->tuple.daddr : p->tuple.saddr;
	__u32 zero = 0;
	struct node_settings *s = bpf_map_lookup_elem(&settings, &zero);

	return s && p->tuple.sport != p->tuple.dport &&
	       (probe_asks(p) || p->tuple.sport == bpf_htons(PROBE_PORT)) &&
	       addr_equal(echo, addr_is_v4(echo) ? s->hairpin4 : s->hairpin6);
}

/* probe_read fills what a datagram has behind its UDP header. Returns whether it is a probe. */
static __always_inline bool probe_read(struct __sk_buff *skb, const struct packet *p,
				       struct probe *probe)
{
	return p->tuple.proto == PROTO_UDP && !p->fragment && probe_between(p) &&
	       p->payload_off + sizeof(*probe) <= p->limit &&
	       !bpf_skb_load_bytes(skb, p->payload_off, probe, sizeof(*probe)) &&
	       probe->magic == bpf_htonl(PROBE_MAGIC);
}

static __always_inline bool probe_is(struct __sk_buff *skb, const struct packet *p)
{
	struct probe probe;

	return probe_read(skb, p, &probe);
}

/* probe_node returns the id of the node that a probe of this host's proxy is for, or 0. */
static __always_inline __u32 probe_node(struct __sk_buff *skb, const struct packet *p)
{
	struct probe probe;

	return probe_asks(p) && probe_read(skb, p, &probe) ? bpf_ntohl(probe.node) : 0;
}

/* probe_turn makes of a probe its answer: ends swapped, which leaves checksums as they are. */
static __always_inline int probe_turn(struct __sk_buff *skb, const struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	bool v4 = addr_is_v4(p->tuple.saddr);
	__be16 *ports = data + (p->l4_off & L4_OFF_MAX);
	struct ipv6hdr *v6 = data + ETH_HLEN;
	struct iphdr *ip = data + ETH_HLEN;

	if ((void *)(ports + 2) > end)
		return -DROP_REWRITE;
	ports[0] = p->tuple.dport;
	ports[1] = p->tuple.sport;
	if (v4) {
		if ((void *)(ip + 1) > end)
			return -DROP_REWRITE;
		ip->saddr = addr_to_v4(p->tuple.daddr);
		ip->daddr = addr_to_v4(p->tuple.saddr);
		return 0;
	}
	if ((void *)(v6 + 1) > end)
		return -DROP_REWRITE;
	__builtin_memcpy(&v6->saddr, p->tuple.daddr, ADDR_LEN);
	__builtin_memcpy(&v6->daddr, p->tuple.saddr, ADDR_LEN);
	return 0;
}

#endif
