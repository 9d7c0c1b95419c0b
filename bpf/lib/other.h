/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets without ports of their own: later fragments, ICMP, and what is malformed. None is on the
 * hot path, so all of it is one call away from it.
 */
#ifndef TCLB_OTHER_H
#define TCLB_OTHER_H

#include "echo.h"
#include "fragment.h"
#include "icmp.h"

/* What other_find says besides -DROP_... */
#define OTHER_FOUND FRAGMENT_FOUND
#define OTHER_FOREIGN FRAGMENT_FOREIGN
#define OTHER_WAITS FRAGMENT_WAITS
#define OTHER_ANSWERED 3 /* the packet is now the answer to its sender */

/* other_find fills hit with the half that the packet belongs to, and q with what an error quotes. */
static __always_inline int other_find(struct __sk_buff *skb, const struct packet *p, int parsed,
				      struct quote *q, struct ct_hit *hit, __u32 side)
{
	int found = OTHER_FOREIGN, echo;

	if (parsed == PARSED_MALFORMED)
		return flow_is_ours(p, side) ? -DROP_MALFORMED : OTHER_FOREIGN;
	if (parsed == PARSED_LATER)
		found = fragment_find(skb, p, hit, side);
	else if (parsed == PARSED_ICMP)
		found = icmp_find(skb, p, q, hit, side);
	if (found != OTHER_FOREIGN || parsed == PARSED_OTHER || side == SIDE_NONE ||
	    side == SIDE_OVERLAY)
		return found;
	echo = echo_answer(skb, p, side);
	if (echo)
		return echo < 0 ? echo : OTHER_ANSWERED;
	return OTHER_FOREIGN;
}

/* other_translate accounts a packet to its half and rewrites it into `to`. An error is not one of its
 * flow's packets.
 */
static __always_inline int other_translate(struct __sk_buff *skb, const struct packet *p,
					   int parsed, const struct quote *q,
					   const struct ct_hit *hit, struct nat_target *to)
{
	if (parsed == PARSED_ICMP)
		return icmp_translate(skb, p, q, to);
	ct_touch(skb, &hit->pair->half[hit->dir & 1], p);
	return nat_translate_l3(skb, p, to);
}

#endif
