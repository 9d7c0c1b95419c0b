/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What SYN, FIN and RST do to a pair. Nothing is believed that its receiver would not believe:
 * a flow begins by the numbers of its handshake and ends by a reset inside what was sent.
 */
#ifndef TCLB_TCP_H
#define TCLB_TCP_H

#include "conntrack.h"
#include "latency.h"

#define TCP_SYN_DATA \
	1460 /* what a SYN carries at most (fast open) and its answer may acknowledge */

/* The backend that refused a flow, and in the upper byte how many did; 0 for a new flow. Each
 * costs the client a retransmission: a second, then two.
 */
#define RETRY_SHIFT 24
#define RETRY_BACKEND(retry) ((retry) & ((1 << RETRY_SHIFT) - 1))
#define RETRY_COUNT(retry) ((retry) >> RETRY_SHIFT)
#define RETRY_MAX 2

/* tcp_first takes the numbers of a packet that begins a pair, a SYN or one in mid-flow. */
static __always_inline void tcp_first(struct ct_pair *pair, const struct packet *p)
{
	struct ct_half *mine = &pair->half[DIR_ORIGINAL], *other = &pair->half[DIR_REPLY];

	if (p->tcp_flags & TCP_SYN) {
		mine->flags = HALF_SYN;
		mine->end = p->seq + 1;
		pair->handshake = mine->end;
	} else {
		mine->end = p->seq_end;
		other->end = p->ack;
	}
	mine->ack = p->ack;
	other->ack = p->tcp_flags & TCP_SYN ? mine->end : p->seq;
}

static __always_inline bool tcp_answers_syn(const struct packet *p, __u32 syn_end)
{
	return p->tcp_flags & TCP_ACK && p->ack - syn_end <= TCP_SYN_DATA;
}

/* tcp_syn handles a client's SYN on a pair that exists. Returns whether the pair goes on. */
static __always_inline bool tcp_syn(const struct ct_hit *hit, const struct packet *p,
				    const struct backend *b)
{
	struct ct_pair *pair = hit->pair;

	if (pair->state == CT_CLOSING || pair->flags & PAIR_REFUSED)
		return false;
	/* Half-open: a retransmission, or a new attempt from the same port; either way the backend
	 * stays while it may take new flows. Established: passed on, its backend answers.
	 */
	if (pair->state == CT_OPENING) {
		if (pair->backend && !(b->flags & BACKEND_NEW))
			return false;
		/* It took so long at least. What is answered from now on says nothing (Karn). */
		if (pair->flags & PAIR_SYN_TIMED)
			latency_end(pair, hit->index, PAIR_SYN_TIMED, 0, p->now);
		if (p->seq + 1 != pair->half[DIR_ORIGINAL].end) {
			tcp_first(pair, p);
			pair->half[DIR_REPLY].flags = 0;
		}
	}
	/* A repeated SYN that is answered already changes nothing: its answer will be the same. */
	if (pair->state != CT_OPENING || !(pair->half[DIR_REPLY].flags & HALF_SYN))
		pair->handshake = p->seq + 1;
	return true;
}

/* tcp_answered counts the first answer to a flow's SYN. */
static __always_inline void tcp_answered(const struct ct_hit *hit, __u32 now)
{
	__u32 id = hit->pair->backend;
	struct backend_stat *stat = bpf_map_lookup_elem(&backend_stats, &id);

	if (stat && id) {
		__sync_fetch_and_add(&stat->answered, 1);
		if (stat->refused)
			stat->refused = 0;
	}
	if (hit->pair->flags & PAIR_SYN_TIMED)
		latency_end(hit->pair, hit->index, PAIR_SYN_TIMED,
			    hit->pair->flags & PAIR_DSR ? 0 : PAIR_ASKS, now);
}

/* tcp_syn_ack handles a backend's answer to a SYN: it opens the pair, or begins it anew if the
 * backend had forgotten the flow.
 */
static __always_inline void tcp_syn_ack(struct ct_hit *hit, const struct packet *p)
{
	struct ct_pair *pair = hit->pair;
	struct ct_half *mine = &pair->half[DIR_REPLY], *other = &pair->half[DIR_ORIGINAL];
	__u32 state = pair->state;

	if (hit->dir != DIR_REPLY || state == CT_CLOSING || !tcp_answers_syn(p, pair->handshake))
		return;
	if (state == CT_OPENING && !(mine->flags & HALF_SYN))
		tcp_answered(hit, p->now);
	mine->flags |= HALF_SYN;
	mine->end = p->seq + 1;
	mine->ack = p->ack;
	other->end = p->ack;
	other->ack = p->seq + 1;
	pair->handshake = p->seq + 1;
	if (state == CT_ESTABLISHED)
		ct_move(hit->index, state, CT_OPENING, p->now);
}

/* tcp_span is how much of what one side has sent the other has not acknowledged. */
static __always_inline __u32 tcp_span(const struct ct_half *sender, const struct ct_half *receiver)
{
	__s32 span = sender->end - receiver->ack;

	return span > 0 ? span : 0;
}

/* tcp_reset_counts says whether a reset is one that its receiver would heed (RFC 5961): between what
 * the receiver has acknowledged and what the sender has sent; in answer to a SYN, by its number.
 */
static __always_inline bool tcp_reset_counts(const struct ct_pair *pair, __u32 dir,
					     const struct packet *p)
{
	const struct ct_half *mine = &pair->half[dir & 1], *other = &pair->half[!(dir & 1)];

	if (pair->state == CT_OPENING && dir == DIR_REPLY && !(mine->flags & HALF_SYN))
		return tcp_answers_syn(p, pair->handshake);
	return p->seq - other->ack <= tcp_span(mine, other);
}

/* tcp_fin_counts says the same of a FIN, by its end: it may be a repeated one, or bring new data. */
static __always_inline bool tcp_fin_counts(const struct ct_half *mine, const struct ct_half *other,
					   const struct packet *p)
{
	return p->tcp_flags & TCP_FIN &&
	       p->seq_end - other->ack <= tcp_span(mine, other) + p->seq_end - p->seq;
}

/* tcp_another says whether a flow that its backend refuses can go to one that has refused nobody. */
static __noinline bool tcp_another(const struct ct_pair *pair, __u32 now)
{
	const struct tuple *t = &pair->half[DIR_ORIGINAL].tuple;
	struct frontend_key key ALIGNED = {.port = t->dport, .proto = t->proto};
	struct wish w = {.now = now, .since = latency_caution(now), .avoid = pair->backend};
	struct share share = {};
	struct frontend *f;

	addr_copy(key.vip, t->daddr);
	f = bpf_map_lookup_elem(&frontends, &key);
	return f && f->table_len && select_walk(f, 0, &w, &share);
}

/* tcp_refused gives a flow that its backend refuses another chance: the refusal is not passed on,
 * and when the client repeats its SYN, a second later, another backend gets it. So a connection
 * survives a backend that dies, or has not begun to listen, between two updates of the table.
 * A refusal is remembered, so others do not meet it; when all have refused, it is passed on.
 */
static __always_inline bool tcp_refused(struct ct_hit *hit, const struct packet *p)
{
	struct ct_pair *pair = hit->pair;
	struct backend_stat *stat;
	__u32 id = pair->backend;

	if (!(p->tcp_flags & TCP_RST) || hit->dir != DIR_REPLY || pair->state != CT_OPENING ||
	    pair->half[DIR_REPLY].flags & HALF_SYN || !id || !tcp_reset_counts(pair, DIR_REPLY, p))
		return false;
	stat = bpf_map_lookup_elem(&backend_stats, &id);
	if (stat) {
		stat->refused = p->now ? p->now : 1;
		__sync_fetch_and_add(&stat->rejected, 1);
	}
	if ((pair->flags & PAIR_REFUSALS) >> 8 >= RETRY_MAX || !tcp_another(pair, p->now))
		return false;
	pair->flags |= PAIR_REFUSED;
	return true;
}

/* tcp_retry returns the retry that a pair's refusal is worth, 0 if it was not refused. */
static __always_inline __u32 tcp_retry(const struct ct_pair *pair)
{
	__u32 count = ((pair->flags & PAIR_REFUSALS) >> 8) + 1;

	return pair->flags & PAIR_REFUSED ? pair->backend | count << RETRY_SHIFT : 0;
}

/* tcp_revive takes back the reset of an established flow that was not its sender's: who has sent a
 * reset sends nothing more. What arrives within the same tick may have been sent before it.
 */
static __always_inline void tcp_revive(struct ct_hit *hit, const struct packet *p)
{
	struct ct_half *mine = &hit->pair->half[hit->dir & 1];

	if (!(mine->flags & HALF_RST) || mine->seen == p->now)
		return;
	mine->flags &= ~HALF_RST;
	ct_move(hit->index, CT_CLOSING, CT_ESTABLISHED, p->now);
}

/* What a backend may have sent or got that this node, which sees half of its flow, does not know of. Before
 * the client's first acknowledgment, which comes by here, that is one window of the beginning.
 */
#define TCP_UNSEEN_FIRST (1 << 17)
#define TCP_UNSEEN (1 << 23)

/* tcp_one_sided brings what a backend has acknowledged, unseen, near to what its client has sent. */
static __always_inline void tcp_one_sided(struct ct_pair *pair)
{
	struct ct_half *client = &pair->half[DIR_ORIGINAL], *other = &pair->half[DIR_REPLY];

	if (pair->flags & PAIR_DSR && client->end - other->ack > TCP_UNSEEN)
		other->ack = client->end - TCP_UNSEEN;
}

/* tcp_unanswered judges a client's packet before the answer to its SYN was seen, which it may never be:
 * it is the handshake's last if its number is the next one.
 */
static __always_inline bool tcp_unanswered(struct ct_hit *hit, const struct packet *p)
{
	struct ct_pair *pair = hit->pair;
	struct ct_half *other = &pair->half[DIR_REPLY];

	if (!(pair->flags & PAIR_DSR) || p->seq - pair->handshake > TCP_UNSEEN_FIRST)
		return false;
	__sync_fetch_and_and(&pair->flags, ~PAIR_SYN_TIMED); /* by whose watch, nobody knows */
	tcp_answered(hit, p->now);
	other->flags |= HALF_SYN;
	other->end = p->ack;
	pair->handshake = p->ack;
	return true;
}

/* tcp_completes says whether a client's acknowledgment ends the handshake. */
static __always_inline bool tcp_completes(struct ct_hit *hit, const struct packet *p)
{
	const struct ct_pair *pair = hit->pair;
	const struct ct_half *other = &pair->half[DIR_REPLY];
	__u32 unseen = pair->flags & PAIR_DSR ? TCP_UNSEEN_FIRST : 0;

	if (!(other->flags & HALF_SYN))
		return tcp_unanswered(hit, p);
	return p->ack - pair->handshake <= other->end - pair->handshake + unseen;
}

/* tcp_control follows the state machine for a packet of a pair that goes on. */
static __always_inline void tcp_control(struct ct_hit *hit, const struct packet *p)
{
	struct ct_pair *pair = hit->pair;
	struct ct_half *mine = &pair->half[hit->dir & 1], *other = &pair->half[!(hit->dir & 1)];
	__u32 state = pair->state;

	tcp_one_sided(pair);
	if (p->tcp_flags & TCP_RST) {
		if (!tcp_reset_counts(pair, hit->dir, p))
			return;
		if (state != CT_CLOSING && ct_move(hit->index, state, CT_CLOSING, p->now) &&
		    state == CT_ESTABLISHED)
			mine->flags |= HALF_RST;
		return;
	}
	if (p->tcp_flags & TCP_SYN) {
		tcp_syn_ack(hit, p);
		return;
	}
	if (state == CT_CLOSING) {
		tcp_revive(hit, p);
		return;
	}
	if (tcp_fin_counts(mine, other, p))
		mine->flags |= HALF_FIN;
	if (state == CT_OPENING && hit->dir == DIR_ORIGINAL && p->tcp_flags & TCP_ACK &&
	    tcp_completes(hit, p)) {
		ct_move(hit->index, state, CT_ESTABLISHED, p->now);
		state = CT_ESTABLISHED;
	}
	if (state == CT_ESTABLISHED && mine->flags & HALF_FIN && other->flags & HALF_FIN)
		ct_move(hit->index, state, CT_CLOSING, p->now);
}

#endif
