/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which backend takes a new flow: the schedulers' rules, each a few lines over a table that Go built.
 *
 * Each fills `share` and returns 1, or returns 0 if nobody may take the flow. docs/scheduling.md
 * says when to use which.
 */
#ifndef TCLB_SCHEDULE_H
#define TCLB_SCHEDULE_H

#include "affinity.h"
#include "latency.h"

#define SCHEDULE_EXACT 32  /* backends of which least-conn looks at each: sched.MaxExact */
#define SCHEDULE_SAMPLES 8 /* slots that it looks at where there are more */
#define SCHEDULE_DRAWS 4   /* draws of the latency scheduler for two different backends */
#define SCHEDULE_WALK 64   /* slots that bounded-load looks at for room below the cap */

static __always_inline __u32 schedule_hash(const struct frontend *f, const struct tuple *t)
{
	__u32 h = f->flags & FRONTEND_AFFINITY ? select_client_hash(t) : select_tuple_hash(t);

	return (__u64)h * f->table_len >> 32;
}

static __always_inline __u32 schedule_random(const struct frontend *f)
{
	return (__u64)bpf_get_prandom_u32() * f->table_len >> 32;
}

/* schedule_turn returns the group's next turn; it grows by one with each flow. */
static __always_inline __u64 schedule_turn(const struct frontend *f)
{
	__u32 id = f->group;
	struct group *group = bpf_map_lookup_elem(&groups, &id);

	return group ? __sync_fetch_and_add(&group->cursor, 1) : 0;
}

/* schedule_lighter says whether a carries less for its weight than b. */
static __always_inline bool schedule_lighter(const struct share *a, const struct share *b)
{
	return (__u64)a->load * b->weight < (__u64)b->load * a->weight;
}

/* schedule_least compares everybody who serves. Among equals it takes who is next in the sequence. */
__noinline int schedule_least(const struct frontend *f, const struct wish *w, struct share *best)
{
	struct share next = {};
	__u32 head, found;
	__u64 turn;

	if (!f || !w || !best)
		return 0;
	head = f->head;
	turn = schedule_turn(f);
	found = select_slot(f, head + turn % (f->table_len - head), w, best);
	for (__u32 i = 0; i < SCHEDULE_EXACT && i < head; i++) {
		if (!select_slot(f, (turn + i) % head, w, &next) ||
		    (found && !schedule_lighter(&next, best)))
			continue;
		*best = next;
		found = 1;
	}
	return found;
}

/* schedule_sampled compares a few that are drawn by weight. */
__noinline int schedule_sampled(const struct frontend *f, const struct wish *w, struct share *best)
{
	struct share next = {};
	int found = 0;

	if (!f || !w || !best)
		return 0;
	for (int i = 0; i < SCHEDULE_SAMPLES; i++) {
		if (!select_slot(f, schedule_random(f), w, &next) ||
		    (found && !schedule_lighter(&next, best)))
			continue;
		*best = next;
		found = 1;
	}
	return found;
}

/* schedule_has_room says whether a backend stays within factor x its weighted fair share of the group's
 * load, rounded up, with one flow more: load + 1 <= ceil(factor * (total + 1) * weight / sum).
 */
__noinline int schedule_has_room(const struct frontend *f, const struct share *share)
{
	struct service *svc;
	struct group *group;
	__u32 id, service;
	__s64 total;

	if (!f || !share)
		return 0;
	id = f->group;
	group = bpf_map_lookup_elem(&groups, &id);
	service = f->service;
	svc = bpf_map_lookup_elem(&services, &service);
	if (!group || !svc || !id)
		return 1;
	total = group->load > 0 ? group->load : 0;
	return ((__u64)share->load << LOAD_FACTOR_SHIFT) * f->weight <
	       (__u64)svc->load_factor * (total + 1) * share->weight;
}

/* schedule_bounded walks on from a slot to somebody with room, or else to the lightest on the way. */
__noinline int schedule_bounded(const struct frontend *f, __u32 slot, const struct wish *w,
				struct share *best)
{
	struct share next = {};
	int found = 0;

	if (!f || !w || !best)
		return 0;
	for (__u32 i = 0; i < SCHEDULE_WALK + SELECT_SEATS; i++) {
		int willing = i < SCHEDULE_WALK ? select_slot(f, select_next(f, slot, i), w, &next)
						: select_seat(f, i - SCHEDULE_WALK, w, &next);

		if (willing && schedule_has_room(f, &next)) {
			*best = next;
			return 1;
		}
		if (w->home)
			return 0;
		if (!willing || (found && !schedule_lighter(&next, best)))
			continue;
		*best = next;
		found = 1;
	}
	return found;
}

/* schedule_latency draws two by weight and takes who is likely to answer first. */
__noinline int schedule_latency(const struct frontend *f, const struct wish *w, struct share *best)
{
	struct share next = {};
	int found = 0;

	if (!f || !w || !best)
		return 0;
	for (int i = 0; i < SCHEDULE_DRAWS; i++) {
		if (!select_slot(f, schedule_random(f), w, &next) || (found && next.id == best->id))
			continue;
		if (!found || latency_cost(&next, w->now) * best->weight <
				      latency_cost(best, w->now) * next.weight)
			*best = next;
		if (found++)
			break;
	}
	return !!found;
}

/* schedule_apply applies the service's scheduler. */
static __always_inline int schedule_apply(const struct frontend *f, const struct tuple *t,
					  const struct wish *w, struct share *share)
{
	switch (f->scheduler) {
	case SCHED_RANDOM:
		return select_walk(f, schedule_random(f), w, share);
	case SCHED_ROUND_ROBIN:
		return select_walk(f, schedule_turn(f) % f->table_len, w, share);
	case SCHED_LEAST_CONN:
		return f->head ? schedule_least(f, w, share) : schedule_sampled(f, w, share);
	case SCHED_BOUNDED_LOAD:
		return schedule_bounded(f, schedule_hash(f, t), w, share);
	case SCHED_LATENCY:
		return schedule_latency(f, w, share);
	}
	return select_walk(f, schedule_hash(f, t), w, share);
}

/* Whether a new flow's client is bound to a backend. */
enum bound {
	BOUND_NOT = 0,
	BOUND_FULL = 1, /* it is, but bounded-load sends this flow past it */
	BOUND_HERE = 2,
};

/* schedule_bound fills share with the backend that the client is bound to, if that may take the flow. */
__noinline int schedule_bound(const struct frontend *f, const struct tuple *t, const struct wish *w,
			      struct share *share)
{
	int seat;

	if (!f || !t || !w || !share)
		return BOUND_NOT;
	seat = affinity_find(f, t, w->now);
	if (seat < 0 || !select_seat(f, seat, w, share))
		return BOUND_NOT;
	if (f->scheduler == SCHED_BOUNDED_LOAD && !schedule_has_room(f, share))
		return BOUND_FULL;
	return BOUND_HERE;
}

/* schedule_backend picks the backend of a new flow. Passed over are one that went since the table was
 * built, the one to avoid, which refused this flow (0: none), and, while there are others, whoever
 * refused any flow within REFUSAL_SECONDS and answered none since. A flow that was refused goes to
 * somebody who has answered before, if there is one: where containers start one after the other it
 * would else meet a new one each time. Returns the backend's id, -DROP_NO_BACKEND, or -DROP_NO_PAIR
 * for a flow in its middle that may have been anywhere.
 */
__noinline int schedule_backend(const struct frontend *f, const struct packet *p, __u32 avoid)
{
	struct share share = {};
	struct wish w = {.avoid = avoid};

	if (!f || !p || !f->table_len)
		return -DROP_NO_BACKEND;
	w.now = p->now;
	w.since = latency_caution(p->now);
	w.home = f->scheduler == SCHED_BOUNDED_LOAD && p->tuple.proto == PROTO_TCP &&
		 !(p->tcp_flags & TCP_SYN);
	for (int i = avoid ? 0 : 1; i < 3; i++) {
		int bound = BOUND_NOT;

		w.proven = i == 0;
		w.any = i == 2;
		if (f->flags & FRONTEND_AFFINITY)
			bound = schedule_bound(f, &p->tuple, &w, &share);
		if (bound == BOUND_HERE)
			return share.id;
		/* What was drawn, or listed, may have gone just now: then look at everybody. */
		if (schedule_apply(f, &p->tuple, &w, &share) ||
		    (!w.home && select_walk(f, 0, &w, &share))) {
			if (bound == BOUND_NOT && f->flags & FRONTEND_AFFINITY)
				affinity_bind(f, &p->tuple, share.seat, w.now);
			return share.id;
		}
	}
	return w.home ? -DROP_NO_PAIR : -DROP_NO_BACKEND;
}

#endif
