/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rooms: how many pairs are in each state, what a pair leaves when it ends, who gives way when a room is
 * full (types.h, enum ct_state).
 *
 * A pair is in use while `life` is odd. Who makes life even by compare-and-swap owns the
 * removal; who changes `state` by compare-and-swap owns the counting of that change. Everything
 * that must happen once per pair hangs on one of the two. Large steps are global functions:
 * the verifier checks each once, and they show by name in a profile.
 */
#ifndef TCLB_ROOMS_H
#define TCLB_ROOMS_H

#include "index.h"

#define CT_HAND 32 /* pairs looked at to find a victim in the full main room */

static __always_inline struct ct_rooms *ct_rooms_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&ct_shared, &zero);
}

/* ct_backend returns the id of the pair's backend, or 0 if the id was given to another one: what
 * is counted for an id is counted for its present generation.
 */
static __always_inline __u32 ct_backend(const struct ct_pair *pair)
{
	__u32 id = pair->backend;
	struct backend *b = bpf_map_lookup_elem(&backends, &id);

	return b && b->gen == pair->backend_gen ? id : 0;
}

/* Rooms whose pairs are a load for their backend. */
static __always_inline bool ct_is_load(__u32 state)
{
	return state == CT_OPENING || state == CT_ESTABLISHED;
}

/* ct_count_load adds to what a backend and its group carry. A function because the programs' call
 * chains share 512 bytes of stack.
 */
static __noinline void ct_count_load(__u32 id, int more)
{
	struct backend_stat *stat = bpf_map_lookup_elem(&backend_stats, &id);
	struct backend *b = bpf_map_lookup_elem(&backends, &id);
	struct group *group;

	if (!stat || !b)
		return;
	__sync_fetch_and_add(&stat->load, more);
	id = b->group;
	group = bpf_map_lookup_elem(&groups, &id);
	if (group)
		__sync_fetch_and_add(&group->load, more);
}

/* ct_count moves a pair between the counts of rooms and of its backend, 0 if it has none. The caller
 * has won the change from one state to the other.
 */
static __always_inline void ct_count(struct ct_rooms *rooms, __u32 backend, __u32 from, __u32 to)
{
	struct backend_stat *stat;

	from &= 3;
	to &= 3;
	if (from)
		__sync_fetch_and_add(&rooms->live[from], -1);
	if (to) {
		__sync_fetch_and_add(&rooms->live[to], 1);
		__sync_fetch_and_add(&rooms->created[to], 1);
	}
	if (!backend)
		return;
	if (ct_is_load(from) != ct_is_load(to))
		ct_count_load(backend, ct_is_load(to) ? 1 : -1);
	if ((from == CT_ESTABLISHED) == (to == CT_ESTABLISHED))
		return;
	stat = bpf_map_lookup_elem(&backend_stats, &backend);
	if (stat)
		__sync_fetch_and_add(&stat->active, to == CT_ESTABLISHED ? 1 : -1);
}

/* ct_remove ends a pair, if it still lives that life. Returns its last state, or 0 if somebody
 * else ended it.
 */
__noinline int ct_remove(__u32 index, __u32 life)
{
	struct ct_pair *pair = bpf_map_lookup_elem(&ct_pairs, &index);
	struct ct_rooms *rooms = ct_rooms_get();
	struct backend_stat *stat;
	__u32 state, backend;

	if (!pair || !rooms || !(life & 1) ||
	    __sync_val_compare_and_swap(&pair->life, life, life + 1) != life)
		return 0;
	state = __sync_lock_test_and_set(&pair->state, CT_FREE);
	backend = ct_backend(pair);
	ct_count(rooms, backend, state, CT_FREE);
	stat = backend ? bpf_map_lookup_elem(&backend_stats, &backend) : NULL;
	if (stat) {
		__sync_fetch_and_add(&stat->packets, pair->half[0].packets + pair->half[1].packets);
		__sync_fetch_and_add(&stat->bytes, pair->half[0].bytes + pair->half[1].bytes);
	}
	ct_index_del(index, DIR_ORIGINAL);
	ct_index_del(index, DIR_REPLY);
	bpf_map_push_elem(&ct_free, &index, BPF_ANY);
	return state;
}

/* ct_ring_enter writes a pair into a small room's ring and evicts who stands there still. */
static __always_inline void ct_ring_enter(struct ct_rooms *rooms, void *ring, __u32 at, __u32 state,
					  __u64 entry)
{
	__u64 *place = bpf_map_lookup_elem(ring, &at);
	struct ct_pair *pair;
	__u32 index;
	__u64 old;

	if (!place)
		return;
	old = __sync_lock_test_and_set(place, entry);
	index = (__u32)old - 1;
	pair = old ? bpf_map_lookup_elem(&ct_pairs, &index) : NULL;
	if (!pair || pair->life != old >> 32 || pair->state != state)
		return;
	if (ct_remove(index, old >> 32))
		__sync_fetch_and_add(&rooms->evicted[state & 3], 1);
}

static __always_inline __u32 ct_idle(const struct ct_pair *pair, __u32 now)
{
	__u32 a = now - pair->half[0].seen, b = now - pair->half[1].seen;

	/* A packet on another CPU may be a tick ahead of us. */
	a = (__s32)a < 0 ? 0 : a;
	b = (__s32)b < 0 ? 0 : b;
	return a < b ? a : b;
}

/* ct_answered says whether a UDP flow was answered: of one whose answers do not come here, that its client
 * goes on is taken for it.
 */
static __always_inline bool ct_answered(const struct ct_pair *pair)
{
	return pair->half[1].packets || (pair->flags & PAIR_DSR && pair->half[0].packets > 1);
}

/* ct_half_closed says whether a flow ends whose other FIN may never be seen here. */
static __always_inline bool ct_half_closed(const struct ct_pair *pair)
{
	return pair->flags & PAIR_DSR && pair->half[0].flags & HALF_FIN;
}

/* ct_timeout returns the idle time in ticks that ends a pair in its present state. */
static __always_inline __u32 ct_timeout(const struct ct_pair *pair)
{
	__u32 id = pair->service, which = TIMEOUT_TCP_ESTABLISHED;
	struct service *svc = bpf_map_lookup_elem(&services, &id);

	if (!svc)
		return 0;
	if (pair->half[0].tuple.proto == PROTO_UDP)
		which = ct_answered(pair) ? TIMEOUT_UDP_STREAM : TIMEOUT_UDP;
	else if (pair->state == CT_OPENING)
		which = TIMEOUT_TCP_SYN;
	else if (pair->state == CT_CLOSING || ct_half_closed(pair))
		which = TIMEOUT_TCP_FIN;
	return svc->timeouts[which];
}

/* ct_candidate weighs a pair for eviction from a room: life << 32 | how much it is to be preferred,
 * which is more for one idle longer and most for an expired one; 0 for no candidate. A global function, so
 * that the verifier need not follow its branches through the loop that calls it.
 */
__noinline __u64 ct_candidate(__u32 index, __u32 room, __u32 now)
{
	struct ct_pair *pair = bpf_map_lookup_elem(&ct_pairs, &index);
	__u32 life, idle;

	if (!pair || pair->state != room)
		return 0;
	life = pair->life;
	if (!(life & 1))
		return 0;
	idle = ct_idle(pair, now);
	if (idle > ct_timeout(pair))
		idle |= 1U << 31;
	return (__u64)life << 32 | (idle + 1);
}

/* ct_evict makes room in the main room: an expired pair, else the one idle longest of the next ones
 * from the hand on. The hand goes on behind the victim: among flows that are idle alike it then
 * takes one after the other, so that new flows lie side by side in memory.
 */
__noinline int ct_evict(__u32 now)
{
	struct ct_rooms *rooms = ct_rooms_get();
	__u32 victim = 0, hand, used;
	__u64 best = 0;

	if (!rooms)
		return 0;
	used = rooms->high_water < config.pairs ? rooms->high_water : config.pairs;
	hand = rooms->clock;
	for (int i = 0; i < CT_HAND && used; i++) {
		__u32 index = (hand + i) % used;
		__u64 candidate = ct_candidate(index, CT_ESTABLISHED, now);

		if ((__u32)candidate <= (__u32)best)
			continue;
		victim = index;
		best = candidate;
	}
	rooms->clock = best ? victim + 1 : hand + CT_HAND;
	if (!best || !ct_remove(victim, best >> 32))
		return 0;
	__sync_fetch_and_add(&rooms->evicted[CT_ESTABLISHED], 1);
	return 1;
}

/* ct_uncrowd makes room in the index for a half that found none: both its buckets are full. Of the pairs in
 * them, the one idle longest of the room that the half's pair is to enter goes, so that floods push out their
 * own kind only. Returns 1 if one went.
 */
__noinline int ct_uncrowd(__u32 index, __u32 dir, __u32 room, __u32 now)
{
	struct ct_pair *pair = bpf_map_lookup_elem(&ct_pairs, &index);
	struct ct_rooms *rooms = ct_rooms_get();
	__u32 victim = 0;
	__u64 best = 0, hash;

	if (!pair || !rooms)
		return 0;
	hash = ct_hash(&pair->half[dir & 1].tuple);
	for (int i = 0; i < 2 * BUCKET_SLOTS; i++) {
		__u32 at = i < BUCKET_SLOTS ? ct_bucket_first(hash) : ct_bucket_second(hash);
		struct ct_bucket *b = bpf_map_lookup_elem(&ct_index, &at);
		__u64 slot = b ? b->slot[i % BUCKET_SLOTS] : 0, candidate;
		__u32 other = (__u32)slot >> 1;

		candidate = slot && other != index ? ct_candidate(other, room, now) : 0;
		if ((__u32)candidate > (__u32)best) {
			victim = other;
			best = candidate;
		}
	}
	if (!best || !ct_remove(victim, best >> 32))
		return 0;
	__sync_fetch_and_add(&rooms->evicted[room & 3], 1);
	return 1;
}

/* ct_move changes the room of a pair and makes the room it enters hold its bound.
 * Returns 0 if another CPU changed the state first.
 */
__noinline int ct_move(__u32 index, __u32 from, __u32 to, __u32 now)
{
	struct ct_pair *pair = bpf_map_lookup_elem(&ct_pairs, &index);
	struct ct_rooms *rooms = ct_rooms_get();
	__u64 entry;

	if (!pair || !rooms || !config.opening || !config.closing)
		return 0;
	entry = (__u64)pair->life << 32 | (index + 1);
	if (__sync_val_compare_and_swap(&pair->state, from, to) != from)
		return 0;
	ct_count(rooms, ct_backend(pair), from, to);
	if (to == CT_OPENING)
		ct_ring_enter(rooms, &ct_opening,
			      __sync_fetch_and_add(&rooms->opening, 1) % config.opening, to, entry);
	else if (to == CT_CLOSING)
		ct_ring_enter(rooms, &ct_closing,
			      __sync_fetch_and_add(&rooms->closing, 1) % config.closing, to, entry);
	for (int i = 0; i < CT_TRIES && rooms->live[CT_ESTABLISHED] > config.established; i++)
		ct_evict(now);
	return 1;
}

#endif
