/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Direct server return: the node of a backend answers a client outside by itself, as the VIP.
 *
 * The node that chose (A) keeps a whole pair and sends by tunnel, as ever; marked packets say behind their end
 * what the client asked. The backend's node (B) may remember that with its return pair, or not: what it
 * does not know goes back through A. So nothing but the length of the way depends on it. B reports to A what opens
 * and closes a flow, by copies of answers.
 */
#ifndef TCLB_DSR_H
#define TCLB_DSR_H

#include "deliver.h"
#include "icmp.h"

#define DSR_MAGIC 0x74636c62
#define DSR_TELLS 8 /* a flow's first packets that say it, of TCP without its SYN */

/* What stands behind an IP packet. Its sum is zero, so that a checksum over the whole frame, which a device may
 * still have to make, stays what it is: at an odd place too, where the sum has its bytes swapped.
 */
struct dsr_trailer {
	__be32 magic;
	__u8 vip[ADDR_LEN];
	__be16 port;
	__u16 balance;
};

static __always_inline __u16 dsr_sum(struct dsr_trailer *t)
{
	return nat_fold16((__u32)bpf_csum_diff(NULL, 0, (__be32 *)t, sizeof(*t), 0));
}

/* dsr_telling says whether a packet is to tell what its client asked: of TCP its SYN, or the first ones of
 * a flow that came here in its middle; each datagram, since its receiver may have forgotten. It has to fit.
 */
static __always_inline bool dsr_telling(const struct __sk_buff *skb, const struct packet *p,
					const struct ct_half *half)
{
	struct node *n = tunnel_node(half->ifindex);

	if (p->fragment || skb->gso_size || !n ||
	    p->limit + sizeof(struct dsr_trailer) - ETH_HLEN > n->mtu)
		return false;
	return p->tuple.proto != PROTO_TCP || p->tcp_flags & TCP_SYN ||
	       (!(half->flags & HALF_SYN) && half->packets <= DSR_TELLS);
}

/* dsr_tell puts what the client asked behind a translated packet, and whatever stood there away. A packet
 * that cannot have it goes without.
 */
__noinline int dsr_tell(struct __sk_buff *skb, const struct packet *p, __u32 index)
{
	struct ct_pair *pair = bpf_map_lookup_elem(&ct_pairs, &index);
	struct dsr_trailer t ALIGNED = {.magic = bpf_htonl(DSR_MAGIC)};
	__u8 mark = MARK_TELLS;

	if (!p || !pair || !dsr_telling(skb, p, &pair->half[DIR_ORIGINAL]))
		return 0;
	__builtin_memcpy(t.vip, p->tuple.daddr, ADDR_LEN);
	t.port = p->tuple.dport;
	t.balance = ~dsr_sum(&t);
	if (skb->len > p->limit && bpf_skb_change_tail(skb, p->limit, 0))
		return 0;
	if (bpf_skb_change_tail(skb, p->limit + sizeof(t), 0) ||
	    bpf_skb_store_bytes(skb, p->limit, &t, sizeof(t), 0) ||
	    bpf_skb_store_bytes(skb, MARK_KIND, &mark, sizeof(mark), 0))
		return 0;
	return 1;
}

/* dsr_read reads a trailer and cuts it off. Returns whether there was one. */
static __always_inline bool dsr_read(struct __sk_buff *skb, const struct packet *p,
				     struct dsr_trailer *t)
{
	return !p->fragment && skb->len == p->limit + sizeof(*t) &&
	       !bpf_skb_load_bytes(skb, p->limit, t, sizeof(*t)) &&
	       t->magic == bpf_htonl(DSR_MAGIC) && dsr_sum(t) == 0xffff &&
	       !bpf_skb_change_tail(skb, p->limit, 0);
}

/* dsr_route fills in by which uplink a client is reached from the VIP. Returns whether by any. */
static __noinline bool dsr_route(struct __sk_buff *skb, const struct tuple *t,
				 struct dsr_vip *entry)
{
	struct bpf_fib_lookup fib ALIGNED = {.ifindex = 1}; /* lo: as from this host */
	long err = deliver_route(skb, &fib, entry->vip, t->saddr, 0);

	entry->ifindex = fib.ifindex;
	if (err == BPF_FIB_LKUP_RET_SUCCESS)
		__builtin_memcpy(entry->mac, fib.dmac, MAC_LEN);
	return (err == BPF_FIB_LKUP_RET_SUCCESS || err == BPF_FIB_LKUP_RET_NO_NEIGH ||
		err == BPF_FIB_LKUP_RET_FRAG_NEEDED) &&
	       bpf_map_lookup_elem(&uplinks, &entry->ifindex);
}

/* dsr_learn remembers what the client of a return pair asked, if answers can leave from here. Routes are asked
 * once a tick.
 */
static __noinline bool dsr_learn(struct __sk_buff *skb, const struct dsr_trailer *t, __u32 index,
				 __u32 life, __u32 now)
{
	struct ct_pair *pair = bpf_map_lookup_elem(&ct_pairs, &index);
	struct dsr_vip *entry = bpf_map_lookup_elem(&dsr_vips, &index), fresh ALIGNED = {};

	if (!pair || !entry || !(pair->flags & PAIR_RETURN))
		return false;
	__builtin_memcpy(fresh.vip, t->vip, ADDR_LEN);
	fresh.port = t->port;
	if (pair->flags & PAIR_ANSWERS && pair->half[DIR_ORIGINAL].seen == now &&
	    entry->life == life && entry->port == fresh.port && addr_equal(entry->vip, fresh.vip))
		return true;
	if (addr_is_v4(fresh.vip) != addr_is_v4(pair->half[DIR_ORIGINAL].tuple.saddr) ||
	    !dsr_route(skb, &pair->half[DIR_ORIGINAL].tuple, &fresh))
		return false;
	__sync_lock_test_and_set(&entry->life, 0);
	*entry = fresh;
	__sync_lock_test_and_set(&entry->life, life);
	return true;
}

/* dsr_heard takes from a packet that came by tunnel what its mark says about its flow: what the client asked, that
 * what it asked before is still right, or, without one, that who chose knows nothing of all this.
 */
__noinline int dsr_heard(struct __sk_buff *skb, const struct packet *p, __u32 place, __u32 life)
{
	__u32 index = place >> 1, mark = tunnel_marked(skb);
	struct ct_pair *pair = bpf_map_lookup_elem(&ct_pairs, &index);
	struct dsr_trailer t ALIGNED;
	bool answers;

	if (!p || !pair || (place & 1) != DIR_ORIGINAL || mark == MARK_DSR)
		return 0;
	answers = mark == MARK_TELLS && dsr_read(skb, p, &t) &&
		  dsr_learn(skb, &t, index, life, p->now);
	if (answers && !(pair->flags & PAIR_ANSWERS))
		__sync_fetch_and_or(&pair->flags, PAIR_ANSWERS);
	if (!answers && pair->flags & PAIR_ANSWERS)
		__sync_fetch_and_and(&pair->flags, ~PAIR_ANSWERS);
	return answers;
}

/* dsr_answer makes the target of a return pair's answer the client itself, from what it asked. Before a SYN
 * is answered it stays the node that chose, which may give a refused flow another backend.
 */
__noinline int dsr_answer(__u32 place, __u32 life, struct nat_target *to)
{
	__u32 index = place >> 1;
	struct ct_pair *pair = bpf_map_lookup_elem(&ct_pairs, &index);
	struct dsr_vip *entry = bpf_map_lookup_elem(&dsr_vips, &index), whole ALIGNED;

	if (!pair || !entry || !to || (place & 1) != DIR_REPLY)
		return 0;
	whole = *entry;
	if (whole.life != life || *(volatile __u32 *)&entry->life != life)
		return 0;
	if (pair->half[DIR_ORIGINAL].flags & HALF_SYN && !(pair->half[DIR_REPLY].flags & HALF_SYN))
		return 0;
	addr_copy(to->saddr, whole.vip);
	to->sport = whole.port;
	to->ifindex = whole.ifindex;
	__builtin_memcpy(to->mac, whole.mac, MAC_LEN);
	to->deliver = DELIVER_UPLINK;
	return 1;
}

/* dsr_report fits the answer to a handshake to the tunnel that the client's packets come by, and sends a copy of
 * what opens or closes its flow to the node that chose. Whether that arrives does not matter.
 */
__noinline int dsr_report(struct __sk_buff *skb, const struct packet *p, __u32 index, __u32 deliver)
{
	struct ct_pair *pair = bpf_map_lookup_elem(&ct_pairs, &index);
	__u8 mac[MAC_LEN + 2] ALIGNED;
	int device, err = 0;
	__u32 node;

	if (!p || !pair || deliver != DELIVER_UPLINK || !(p->tcp_flags & TCP_CONTROL))
		return 0;
	node = pair->half[DIR_REPLY].ifindex;
	if (p->tcp_flags & TCP_SYN)
		err = encap_clamp(skb, p, node);
	if (err)
		return err;
	tunnel_mark(mac, MARK_COPY);
	device = encap_wrap(skb, node);
	if (device > 0 && !bpf_skb_store_bytes(skb, 0, mac, MAC_LEN, 0))
		bpf_clone_redirect(skb, device, 0);
	return 0;
}

/* dsr_copy lets the copy of an answer act on its pair: it ends here. It is what the client sees, so it turned
 * round is what the client sends. What lies before it in the stream has left unseen.
 */
__noinline int dsr_copy(struct packet *p, int parsed)
{
	struct ct_half *half;
	struct ct_hit hit = {};
	__u32 zone;

	if (!p || parsed != PARSED_FLOW || p->tuple.proto != PROTO_TCP)
		return VERDICT_DROP;
	zone = p->tuple.zone;
	icmp_turn_tuple(&p->tuple);
	p->tuple.zone = 0;
	if (!ct_lookup(&p->tuple, &hit) || hit.dir != DIR_ORIGINAL ||
	    !(hit.pair->flags & PAIR_DSR) || hit.pair->half[DIR_REPLY].tuple.zone != zone)
		return VERDICT_DROP;
	half = &hit.pair->half[DIR_REPLY];
	half->seen = p->now;
	if (!(p->tcp_flags & TCP_SYN) && (__s32)(p->seq - half->end) > 0)
		half->end = p->seq;
	flow_packet(p, hit.index << 1 | DIR_REPLY, hit.life);
	ct_track(half, p);
	return VERDICT_DROP;
}

#endif
