/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Answers on their way out of the host's stack: of backends that have no program of ours in front of
 * them and, in host stack mode, of all. They are translated here; everything else passes.
 */
#ifndef TCLB_ANSWERS_H
#define TCLB_ANSWERS_H

#include "flow.h"
#include "nat.h"
#include "other.h"
#include "release.h"

/* answers_other handles what has no ports of its own. */
static __noinline int answers_other(struct __sk_buff *skb, const struct packet *p, int parsed)
{
	struct nat_target to;
	struct ct_hit hit = {};
	struct quote q;
	int found;

	if (parsed >= PARSED_OTHER)
		return verdict_next();
	found = other_find(skb, p, parsed, &q, &hit, SIDE_NONE);
	if (found == OTHER_WAITS)
		return VERDICT_DROP;
	if (found > 0 || (!found && (hit.dir != DIR_REPLY || flow_untouched(hit.pair))))
		return verdict_next();
	if (!found)
		found = nat_target(&hit, &to);
	to.deliver = DELIVER_STACK;
	if (!found)
		found = other_translate(skb, p, parsed, &q, &hit, &to);
	return found ? verdict_drop(found) : verdict_next();
}

/* answers_pass lets a first fragment go on as it is, and those that waited for it. */
static __always_inline int answers_pass(struct __sk_buff *skb, const struct packet *p)
{
	if (p->fragment)
		fragment_pass(skb, p, FIRST_EGRESS);
	return verdict_next();
}

/* answers_translate is a whole program: it translates replies in place and lets them go on. */
static __always_inline int answers_translate(struct __sk_buff *skb)
{
	struct nat_target to;
	struct packet p;
	struct ct_hit hit = {};
	int err, parsed;

	parsed = parse_packet(skb, &p);
	if (parsed != PARSED_FLOW)
		return answers_other(skb, &p, parsed);
	if (!ct_lookup(&p.tuple, &hit) || hit.dir != DIR_REPLY)
		return answers_pass(skb, &p);
	if (!flow_hot(&hit, &p)) {
		int flow = flow_packet(&p, hit.index << 1 | DIR_REPLY, hit.life);

		if (flow <= 0)
			return flow < 0 ? verdict_drop(flow) : verdict_next();
	}
	ct_touch(skb, &hit.pair->half[DIR_REPLY], &p);
	if (flow_untouched(hit.pair))
		return answers_pass(skb, &p);
	err = nat_target(&hit, &to);
	to.deliver = DELIVER_STACK;
	if (!err)
		err = nat_translate(skb, &p, &to);
	if (!err && p.fragment)
		err = fragment_first(skb, &p, &to, fragment_place_of(&hit),
				     FIRST_TRANSLATED | FIRST_EGRESS);
	return err ? verdict_drop(err) : verdict_next();
}

#endif
