/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What becomes of a packet: the only place that returns verdicts and counts refusals.
 *
 * Functions elsewhere return 0 or a positive result, or -DROP_...; a program turns that into
 * a verdict here. "Not ours" is TCX_NEXT (-1, also TC_ACT_UNSPEC): programs and filters behind
 * us see the packet. TCX_PASS would hide them.
 */
#ifndef TCLB_VERDICT_H
#define TCLB_VERDICT_H

#include "maps.h"

#define VERDICT_NEXT -1
#define VERDICT_DROP 2

static __always_inline int verdict_next(void)
{
	return VERDICT_NEXT;
}

/* verdict_count counts a refusal; takes -DROP_... */
static __always_inline void verdict_count(int error)
{
	__u32 reason = -error;
	__u64 *count = bpf_map_lookup_elem(&drops, &reason);

	if (count)
		(*count)++;
}

/* verdict_unanswered drops a refused packet, counted already, that got no answer; takes what
 * reject_answer said.
 */
static __always_inline int verdict_unanswered(int error)
{
	if (error < 0)
		verdict_count(error);
	return VERDICT_DROP;
}

/* verdict_drop counts a refusal and drops the packet. */
static __always_inline int verdict_drop(int error)
{
	verdict_count(error);
	return VERDICT_DROP;
}

#endif
