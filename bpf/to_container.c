//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc egress of a container's veth: what the host's stack sends to the container.
 *
 * Only answers are translated here, those of backends that are not attached and, in host
 * stack mode, all. What our programs deliver themselves does not pass, or matches no reply half.
 */
#include <linux/bpf.h>
#include "lib/flow.h"
#include "lib/nat.h"

SEC("tc")
int to_container(struct __sk_buff *skb)
{
	struct nat_target to;
	struct packet p;
	struct ct_hit hit = {};
	int err;

	if (parse_packet(skb, &p) != PARSED_FLOW || !ct_lookup(&p.tuple, &hit) ||
	    hit.dir != DIR_REPLY)
		return verdict_next();
	if (!flow_hot(&hit, &p)) {
		int flow = flow_packet(&p, hit.index << 1 | DIR_REPLY, hit.life);

		if (flow <= 0)
			return flow < 0 ? verdict_drop(flow) : verdict_next();
	}
	ct_touch(skb, &hit.pair->half[DIR_REPLY], &p);
	if (flow_untouched(hit.pair))
		return verdict_next();
	err = nat_target(&hit, &to);
	to.deliver = DELIVER_STACK;
	if (!err)
		err = nat_translate(skb, &p, &to);
	return err ? verdict_drop(err) : verdict_next();
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
