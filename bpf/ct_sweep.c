//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Run by the proxy's clock: ends the pairs that are idle for too long, a stretch of the
 * array a call. It re-reads a pair's times right before it ends it, and ends it by the same
 * compare-and-swap as everybody else: a flow that revives meanwhile loses nothing it needs.
 */
#include <linux/bpf.h>
#include "lib/conntrack.h"

static int sweep_pair(__u32 i, struct sweep *s)
{
	__u32 index = s->from + i, life;
	struct ct_pair *pair = bpf_map_lookup_elem(&ct_pairs, &index);
	struct ct_rooms *rooms;
	__u32 state;

	if (!pair)
		return 1;
	life = pair->life;
	if (!(life & 1) || !pair->state)
		return 0;
	if (s->flush ? s->service && pair->service != s->service
		     : ct_idle(pair, s->now) <= ct_timeout(pair))
		return 0;
	state = ct_remove(index, life);
	if (!state)
		return 0;
	s->removed++;
	rooms = ct_rooms_get();
	if (rooms && !s->flush)
		__sync_fetch_and_add(&rooms->expired[state & 3], 1);
	return 0;
}

SEC("syscall")
int ct_sweep(struct sweep *ctx)
{
	struct sweep s = *ctx;

	s.now = bpf_jiffies64();
	s.removed = 0;
	bpf_loop(s.count, sweep_pair, &s, 0);
	ctx->removed = s.removed;
	ctx->now = s.now;
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
