/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A VIP that is an address of this node too: what its processes use is theirs. */
#ifndef TCLB_OWN_H
#define TCLB_OWN_H

#include "access.h"

#define TCP_STATE_LISTEN 10

/* own_bound says whether a socket has the packet's destination as its own address, by name: one that is
 * bound to all addresses leaves a service its VIP.
 */
static __always_inline bool own_bound(const struct bpf_sock *sk, const struct packet *p)
{
	if (addr_is_v4(p->tuple.daddr))
		return sk->src_ip4 == addr_to_v4(p->tuple.daddr);
	return sk->src_ip6[0] | sk->src_ip6[1] | sk->src_ip6[2] | sk->src_ip6[3];
}

static __always_inline __u32 own_tuple(struct bpf_sock_tuple *t, const struct packet *p)
{
	if (addr_is_v4(p->tuple.daddr)) {
		t->ipv4.saddr = addr_to_v4(p->tuple.saddr);
		t->ipv4.daddr = addr_to_v4(p->tuple.daddr);
		t->ipv4.sport = p->tuple.sport;
		t->ipv4.dport = p->tuple.dport;
		return sizeof(t->ipv4);
	}
	__builtin_memcpy(t->ipv6.saddr, p->tuple.saddr, ADDR_LEN);
	__builtin_memcpy(t->ipv6.daddr, p->tuple.daddr, ADDR_LEN);
	t->ipv6.sport = p->tuple.sport;
	t->ipv6.dport = p->tuple.dport;
	return sizeof(t->ipv6);
}

/* own_socket says whether a packet is for a socket of this node: of a connection that it has, or one
 * that waits at this very address.
 */
__noinline int own_socket(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock_tuple t ALIGNED = {};
	struct bpf_sock *sk;
	__u32 size;
	int own;

	if (!p)
		return 0;
	size = own_tuple(&t, p);
	if (p->tuple.proto == PROTO_TCP)
		sk = size == sizeof(t.ipv4)
			     ? bpf_sk_lookup_tcp(skb, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0)
			     : bpf_sk_lookup_tcp(skb, &t, sizeof(t.ipv6), BPF_F_CURRENT_NETNS, 0);
	else
		sk = size == sizeof(t.ipv4)
			     ? bpf_sk_lookup_udp(skb, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0)
			     : bpf_sk_lookup_udp(skb, &t, sizeof(t.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	own = (p->tuple.proto == PROTO_TCP && sk->state != TCP_STATE_LISTEN) || own_bound(sk, p);
	bpf_sk_release(sk);
	return own;
}

#endif
