/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How fast backends answer, as their clients see it: the answer to the SYN, and the first response to
 * the first request. While a flow is measured its packets take the long way (flow_hot), so most
 * flows are not: all where the scheduler asks for it, else one of LATENCY_SHARE.
 */
#ifndef TCLB_LATENCY_H
#define TCLB_LATENCY_H

#include "parse.h"
#include "select.h"

#define LATENCY_SHARE 8
#define LATENCY_MAX 0xffffffffULL
#define LATENCY_STEP 32 /* smaller parts of the half-life than this one count as none */
#define PAIR_MEASURED (PAIR_SYN_TIMED | PAIR_ASKS | PAIR_ASKED)

/* latency_fade returns what is left of ns after some ticks: half of it each second. */
static __always_inline __u64 latency_fade(__u64 ns, __u32 ticks, __u32 second)
{
	__u32 halves = ticks / second;

	if (halves > 31)
		return 0;
	ns >>= halves;
	return ns - ns * (ticks % second) / (2 * second);
}

static __always_inline __u32 latency_second(void)
{
	__u32 zero = 0;
	struct node_settings *s = bpf_map_lookup_elem(&settings, &zero);

	return s && s->second ? s->second : 1;
}

/* latency_caution is the tick after which a refusal still counts against its backend. */
static __always_inline __u32 latency_caution(__u32 now)
{
	return now - REFUSAL_SECONDS * latency_second();
}

static __always_inline __u64 latency_now(const struct latency *l, __u32 now, __u32 second)
{
	return latency_fade(l->ns, now - l->tick, second);
}

/* latency_learn takes in a measurement: a longer one counts at once, shorter ones by and by. */
static __noinline int latency_learn(struct latency *l, __u64 ns, __u32 now)
{
	__u32 second = latency_second(), age = now - l->tick;

	ns = ns < 1 ? 1 : ns > LATENCY_MAX ? LATENCY_MAX : ns;
	if (ns < l->ns) {
		if (age < second / LATENCY_STEP)
			return 0;
		ns += latency_fade(l->ns - ns, age, second);
	}
	l->ns = ns;
	l->tick = now;
	return 0;
}

/* latency_cost is what one flow more may expect: the estimate for each flow that is there. Nobody
 * knows about a backend that was never measured: it gets one flow, to find out.
 */
__noinline __u64 latency_cost(const struct share *share, __u32 now)
{
	__u32 id, second = latency_second();
	struct backend_stat *stat;
	__u64 ns;

	if (!share)
		return 0;
	id = share->id;
	stat = bpf_map_lookup_elem(&backend_stats, &id);
	if (!stat)
		return 0;
	ns = latency_now(&stat->syn, now, second) + latency_now(&stat->first, now, second);
	if (!ns && !stat->syn.ns && !stat->first.ns)
		ns = share->load ? LATENCY_MAX : 0;
	else if (!ns)
		ns = 1;
	return ns * (share->load + 1);
}

/* latency_wanted says whether a new flow is one to be measured. */
static __always_inline bool latency_wanted(const struct frontend *f, const struct packet *p)
{
	if (p->tuple.proto == PROTO_TCP && !(p->tcp_flags & TCP_SYN))
		return false;
	return f->scheduler == SCHED_LATENCY ||
	       !((p->seq ^ bpf_ntohs(p->tuple.sport)) % LATENCY_SHARE);
}

/* latency_begin starts the watch of a new flow. Returns the pair's flag. */
static __noinline __u32 latency_begin(const struct packet *p, __u32 index)
{
	__u64 *began = bpf_map_lookup_elem(&ct_times, &index);

	if (!began)
		return 0;
	*began = bpf_ktime_get_ns();
	return p->tuple.proto == PROTO_TCP ? PAIR_SYN_TIMED : PAIR_ASKED;
}

/* latency_end stops the watch for one flag, sets the next one, and lets the backend's record learn. */
static __noinline int latency_end(struct ct_pair *pair, __u32 index, __u32 flag, __u32 next,
				  __u32 now)
{
	__u64 *began = bpf_map_lookup_elem(&ct_times, &index);
	__u32 id = pair->backend;
	struct backend_stat *stat = bpf_map_lookup_elem(&backend_stats, &id);

	pair->flags = (pair->flags & ~flag) | next;
	if (!began || !stat || !id)
		return 0;
	return latency_learn(flag == PAIR_SYN_TIMED ? &stat->syn : &stat->first,
			     bpf_ktime_get_ns() - *began, now);
}

/* latency_data follows an established flow that is measured: the client's first data starts the watch,
 * the backend's stops it. Nothing is learnt where the backend speaks first.
 */
static __always_inline void latency_data(struct ct_pair *pair, __u32 index, __u32 dir,
					 const struct packet *p)
{
	bool udp = p->tuple.proto == PROTO_UDP, data = udp || p->seq_end != p->seq;
	__u64 *began = bpf_map_lookup_elem(&ct_times, &index);

	if (p->tcp_flags & TCP_CONTROL || (udp && dir == DIR_ORIGINAL)) {
		pair->flags &= ~PAIR_MEASURED;
	} else if (!data) {
		return;
	} else if (dir == DIR_REPLY && pair->flags & PAIR_ASKED) {
		latency_end(pair, index, PAIR_ASKED, 0, p->now);
	} else if (dir == DIR_REPLY) {
		pair->flags &= ~PAIR_MEASURED;
	} else if (pair->flags & PAIR_ASKS && began) {
		*began = bpf_ktime_get_ns();
		pair->flags = (pair->flags & ~PAIR_ASKS) | PAIR_ASKED;
	}
}

#endif
