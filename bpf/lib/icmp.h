/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors about our flows.
 *
 * An error travels against the packet that it quotes. So the quoted tuple turned round is that of
 * a half, and the error is one of its packets: its sender and receiver are translated like that
 * half's, and the quote becomes what the other side had sent, which is the other half's tuple.
 * Redirects are never touched: the host sends them about translated packets that go back where
 * they came from.
 */
#ifndef TCLB_ICMP_H
#define TCLB_ICMP_H

#include "flow.h"
#include "nat.h"
#include "reject.h"

#define ICMP_PARAMETER 12
#define ICMPV6_LAST_ERROR 4 /* 1 to 4 */

/* What a path has to carry (RFC 791, RFC 8200): who says less would make us send dust. A router
 * before RFC 1191 says 0: it does not know.
 */
#define MTU_MIN_V4 68
#define MTU_MIN_V6 1280

/* An error's quote, read. */
struct quote {
	struct tuple tuple; /* turned round: of the half that the error belongs to */
	__u32 limit;	    /* where the message ends */
	__u16 l3_off;
	__u16 l4_off;
	__u8 illegal;	  /* the MTU */
	__u8 unreachable; /* it says that the packet could not be delivered, whatever its size */
	__u8 pad[6];
};

struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 check;
	__be16 upper; /* of the rest */
	__be16 lower;
};

static __always_inline bool icmp_is_error(const struct icmp_header *h, bool v4)
{
	if (v4)
		return h->type == ICMP_UNREACHABLE || h->type == ICMP_TIME_EXCEEDED ||
		       h->type == ICMP_PARAMETER;
	return h->type >= ICMPV6_UNREACHABLE && h->type <= ICMPV6_LAST_ERROR;
}

static __always_inline bool icmp_mtu_illegal(const struct icmp_header *h, bool v4)
{
	__u32 mtu = bpf_ntohs(h->lower);

	if (v4)
		return h->type == ICMP_UNREACHABLE && h->code == ICMP_FRAG_NEEDED && mtu &&
		       mtu < MTU_MIN_V4;
	return h->type == ICMPV6_PACKET_TOO_BIG && !h->upper && mtu < MTU_MIN_V6;
}

/* icmp_quoted_v4 reads a quoted IPv4 header into t, as it stands. Returns the offset behind it, or 0. */
static __always_inline __u32 icmp_quoted_v4(struct __sk_buff *skb, struct tuple *t, __u32 off)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5 ||
	    ip.frag_off & bpf_htons(IPV4_OFFSET))
		return 0;
	addr_from_v4(t->saddr, ip.saddr);
	addr_from_v4(t->daddr, ip.daddr);
	t->proto = ip.protocol;
	return off + ip.ihl * 4;
}

static __always_inline __u32 icmp_quoted_v6(struct __sk_buff *skb, struct tuple *t, __u32 off,
					    __u32 limit)
{
	struct ipv6hdr ip ALIGNED;
	__u64 found;

	if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) || ip.version != 6)
		return 0;
	__builtin_memcpy(t->saddr, &ip.saddr, ADDR_LEN);
	__builtin_memcpy(t->daddr, &ip.daddr, ADDR_LEN);
	if (addr_is_v4(t->saddr) || addr_is_v4(t->daddr))
		return 0;
	found = parse_extensions(skb, off + sizeof(ip), ip.nexthdr, limit);
	t->proto = EXT_PROTO(found);
	return EXT_PART(found) >= FRAGMENT_LATER ? 0 : EXT_OFF(found);
}

/* icmp_turn_tuple swaps the two ends of a tuple. */
static __always_inline void icmp_turn_tuple(struct tuple *t)
{
	__u64 high = addr_word(t->saddr, 0), low = addr_word(t->saddr, 1);
	__be16 port = t->sport;

	addr_copy(t->saddr, t->daddr);
	((__u64 *)t->daddr)[0] = high;
	((__u64 *)t->daddr)[1] = low;
	t->sport = t->dport;
	t->dport = port;
}

/* icmp_quote reads what an ICMP message quotes. Returns ICMP_QUOTE, ICMP_ILLEGIBLE for an error that
 * quotes neither TCP nor UDP or too little of it, or 0 if it is no error.
 */
#define ICMP_QUOTE 1
#define ICMP_ILLEGIBLE 2
__noinline int icmp_quote(struct __sk_buff *skb, const struct packet *p, struct quote *q)
{
	struct icmp_header h;
	__u32 off;
	bool v4;

	if (!p || !q)
		return 0;
	v4 = addr_is_v4(p->tuple.saddr);
	if (bpf_skb_load_bytes(skb, p->l4_off, &h, sizeof(h)) || !icmp_is_error(&h, v4))
		return 0;
	__builtin_memset(q, 0, sizeof(*q));
	q->illegal = icmp_mtu_illegal(&h, v4);
	q->unreachable = v4 ? h.type == ICMP_UNREACHABLE && h.code != ICMP_FRAG_NEEDED
			    : h.type == ICMPV6_UNREACHABLE;
	q->limit = p->limit;
	q->l3_off = p->l4_off + ICMP_HEADER;
	off = v4 ? icmp_quoted_v4(skb, &q->tuple, q->l3_off)
		 : icmp_quoted_v6(skb, &q->tuple, q->l3_off, q->limit);
	if (!off || off + 2 * sizeof(__be16) > q->limit ||
	    (q->tuple.proto != PROTO_TCP && q->tuple.proto != PROTO_UDP) ||
	    bpf_skb_load_bytes(skb, off, &q->tuple.sport, 2 * sizeof(__be16)))
		return ICMP_ILLEGIBLE;
	q->l4_off = off;
	q->tuple.zone = p->tuple.zone;
	icmp_turn_tuple(&q->tuple);
	return ICMP_QUOTE;
}

/* icmp_credible says whether a container may send this error: under its own address, and about a packet
 * that went straight into a container only if it is that container.
 */
static __always_inline bool icmp_credible(const struct packet *p, const struct ct_hit *hit,
					  __u32 ifindex)
{
	const struct ct_half *mine = &hit->pair->half[hit->dir & 1];
	const struct ct_half *other = &hit->pair->half[!(hit->dir & 1)];
	__u32 zero = 0;
	struct node_settings *s = bpf_map_lookup_elem(&settings, &zero);

	if (!s || !(s->flags & SETTING_ANTI_SPOOF))
		return true;
	if (other->deliver == DELIVER_PEER && !(hit->pair->flags & PAIR_DIRECT) &&
	    !addr_equal(p->tuple.saddr, mine->tuple.saddr))
		return false;
	return flow_owner(p, ifindex) >= 0;
}

/* icmp_rejected counts an error that says that a flow's backend was not reached. */
static __always_inline void icmp_rejected(const struct ct_hit *hit, const struct quote *q)
{
	__u32 id = hit->pair->backend;
	struct backend_stat *stat;

	if (!q->unreachable || !id || hit->dir != DIR_REPLY ||
	    (q->tuple.proto == PROTO_TCP && hit->pair->state != CT_OPENING))
		return;
	stat = bpf_map_lookup_elem(&backend_stats, &id);
	if (stat)
		__sync_fetch_and_add(&stat->rejected, 1);
}

/* icmp_find finds the half that an ICMP error belongs to. Returns 0 and fills q and hit, 1 for what is
 * not ours, or -DROP_...
 */
static __always_inline int icmp_find(struct __sk_buff *skb, const struct packet *p, struct quote *q,
				     struct ct_hit *hit, __u32 side)
{
	int quoted = icmp_quote(skb, p, q);

	if (!quoted)
		return 1;
	if (quoted != ICMP_QUOTE || !addr_equal(q->tuple.daddr, p->tuple.daddr) ||
	    !ct_lookup(&q->tuple, hit))
		return flow_is_ours(p, side) ? -DROP_BAD_ICMP : 1;
	if (q->illegal)
		return -DROP_BAD_ICMP;
	if (!flow_backend(hit->pair))
		return -DROP_BACKEND_GONE;
	if (side == SIDE_CONTAINER && !icmp_credible(p, hit, skb->ifindex))
		return -DROP_SPOOFED;
	icmp_rejected(hit, q);
	return 0;
}

/* icmp_quoted_check brings the quoted transport checksum up to date, if it is there and in use.
 * Returns 1 if it did, or 0.
 */
static __always_inline int icmp_quoted_check(struct __sk_buff *skb, const struct quote *q,
					     __u64 diff)
{
	bool udp = q->tuple.proto == PROTO_UDP;
	__u32 off = q->l4_off + (udp ? UDP_CHECK_OFF : TCP_CHECK_OFF);
	__u16 check;

	if (off + sizeof(check) > q->limit || bpf_skb_load_bytes(skb, off, &check, sizeof(check)) ||
	    (udp && !check))
		return 0;
	check = ~nat_fold16((__u64)(__u16)~check + diff);
	if (udp && !check)
		check = 0xffff;
	return !bpf_skb_store_bytes(skb, off, &check, sizeof(check), 0);
}

/* icmp_rewrite_quote turns the quote, so that its receiver knows it. Returns through `diff` what that
 * does to the checksum of the message: an IPv4 header's own checksum makes up for its addresses, a
 * transport checksum that is there for ports and addresses.
 */
__noinline int icmp_rewrite_quote(struct __sk_buff *skb, const struct quote *q,
				  const struct nat_target *to, __u32 *diff)
{
	__u64 addrs, ports;
	__be16 into[2];
	__u16 check;
	bool v4;
	int checked;

	if (!q || !to || !diff)
		return -DROP_REWRITE;
	v4 = addr_is_v4(q->tuple.saddr);
	into[0] = to->dport;
	into[1] = to->sport;
	addrs = nat_addr_diff(q->tuple.daddr, to->daddr, v4) +
		nat_addr_diff(q->tuple.saddr, to->saddr, v4);
	ports = (__u64)(__u16)~q->tuple.dport + into[0] + (__u16)~q->tuple.sport + into[1];
	if (v4) {
		__u32 pair[2] = {addr_to_v4(to->daddr), addr_to_v4(to->saddr)};

		if (bpf_skb_load_bytes(skb, q->l3_off + 10, &check, sizeof(check)))
			return -DROP_REWRITE;
		check = ~nat_fold16((__u64)(__u16)~check + addrs);
		if (bpf_skb_store_bytes(skb, q->l3_off + 10, &check, sizeof(check), 0) ||
		    bpf_skb_store_bytes(skb, q->l3_off + 12, pair, sizeof(pair), 0))
			return -DROP_REWRITE;
	} else if (bpf_skb_store_bytes(skb, q->l3_off + 8, to->daddr, ADDR_LEN, 0) ||
		   bpf_skb_store_bytes(skb, q->l3_off + 24, to->saddr, ADDR_LEN, 0)) {
		return -DROP_REWRITE;
	}
	if (bpf_skb_store_bytes(skb, q->l4_off, into, sizeof(into), 0))
		return -DROP_REWRITE;
	checked = icmp_quoted_check(skb, q, addrs + ports);
	if (v4)
		*diff = checked ? nat_negate(addrs) : nat_fold32(ports);
	else
		*diff = checked ? 0 : nat_fold32(addrs + ports);
	return 0;
}

/* icmp_translate rewrites an error into `to`, the target of its half's packets. */
static __always_inline int icmp_translate(struct __sk_buff *skb, const struct packet *p,
					  const struct quote *q, struct nat_target *to)
{
	__u32 off = p->l4_off + __builtin_offsetof(struct icmp_header, check), inner = 0, outer;
	bool v4 = addr_is_v4(p->tuple.saddr);
	int err = icmp_rewrite_quote(skb, q, to, &inner);

	if (err)
		return err;
	/* A router in between keeps its address, but not on the way up through tclb0: from there the
	 * stack takes only what comes from a VIP (rp_filter), and nothing from its own addresses.
	 */
	if (!addr_equal(p->tuple.saddr, q->tuple.saddr) && to->deliver != DELIVER_HOST)
		addr_copy(to->saddr, p->tuple.saddr);
	outer = v4 ? 0 : nat_fold32(nat_diff(p, to, v4));
	err = nat_translate_l3(skb, p, to);
	if (err)
		return err;
	if ((inner && bpf_l4_csum_replace(skb, off, 0, inner, 0)) ||
	    (outer && bpf_l4_csum_replace(skb, off, 0, outer, BPF_F_PSEUDO_HDR)))
		return -DROP_REWRITE;
	return 0;
}

#endif
