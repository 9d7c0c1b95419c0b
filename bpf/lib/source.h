/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* As whom a client goes to a backend that is not to see its own address or port. */
#ifndef TCLB_SOURCE_H
#define TCLB_SOURCE_H

#include "access.h"
#include "tunnel.h"

#define FLOW_PORT_MIN 1024

/* flow_other_port draws a source port for a translated flow: of a flow under this node's address from
 * the range that no process here uses. What the client sees is known here alone then.
 */
static __noinline __be16 flow_other_port(struct ct_pair *pair)
{
	__u32 zero = 0, first = FLOW_PORT_MIN, last = 65535;
	struct node_settings *s = bpf_map_lookup_elem(&settings, &zero);

	if (pair->flags & PAIR_DSR)
		tunnel_keep_answers(pair);
	if (s && pair->flags & PAIR_SNAT && s->snat_min && s->snat_min <= s->snat_max) {
		first = s->snat_min;
		last = s->snat_max;
	}
	return bpf_htons(first + bpf_get_prandom_u32() % (last - first + 1));
}

/* flow_reply_to_vlan says as whom a client goes to a backend in a VLAN: as this node, if it has an address on
 * the backend's link, so that the backend need not know a way back. Else as itself, or a process here as
 * the VIP: then it needs one.
 */
static __noinline void flow_reply_to_vlan(struct ct_pair *pair, const struct packet *p,
					  const struct backend *b, __u32 side)
{
	struct tuple *reply = &pair->half[DIR_REPLY].tuple;
	struct vlan_source *source = vlan_source(b->addr, b->zone);

	if (source) {
		pair->flags |= PAIR_SNAT;
		addr_copy(reply->daddr, source->addr);
		reply->dport = flow_other_port(pair);
	} else {
		addr_copy(reply->daddr, side == SIDE_HOST ? p->tuple.daddr : p->tuple.saddr);
	}
}

#endif
