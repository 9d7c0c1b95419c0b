/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Choosing: from what a client connects to, by one record of it that is whole, to a backend. */
#ifndef TCLB_CHOOSE_H
#define TCLB_CHOOSE_H

#include "access.h"
#include "schedule.h"

#define FRONTEND_WORDS (sizeof(struct frontend) / sizeof(__u32) - 1)
#define FRONTEND_KEY_WORDS (sizeof(struct frontend_key) / sizeof(__u32))
#define CHOOSE_TRIES 4 /* records that may change under a new flow before it gives up */

/* frontend_is says whether a record is whole and that of the key: datapath.frontendCheck. */
static __always_inline bool frontend_is(const struct frontend *f, const struct frontend_key *key)
{
	const __u32 *k = (const __u32 *)key;
	const volatile __u32 *v = (const volatile __u32 *)f;
	__u64 sum = 0;

	for (__u32 i = 0; i < FRONTEND_KEY_WORDS; i++)
		sum += k[i] * (HASH_SEED * (2 * i + 1));
	for (__u32 i = 0; i < FRONTEND_WORDS; i++)
		sum += v[i] * (HASH_PRIME * (2 * i + 1));
	return v[FRONTEND_WORDS] == (__u32)(sum >> 32);
}

/* choose_admits says whether a service takes a packet that no pair knows: from that source, and to
 * begin a flow with or, in a flow's middle, where the choice is a function of the tuple. Returns 0
 * or -DROP_...
 */
static __always_inline int choose_admits(const struct frontend *f, const struct packet *p)
{
	__u8 control = p->tcp_flags & TCP_CONTROL;

	if (f->flags & FRONTEND_ALLOW && flow_allowed(p, f->service))
		return -DROP_NOT_ALLOWED;
	if (p->tuple.proto != PROTO_TCP)
		return 0;
	if (control == TCP_SYN)
		return p->tcp_flags & TCP_ACK ? -DROP_NO_PAIR : 0;
	if (control & (TCP_SYN | TCP_RST) || !(p->tcp_flags & TCP_ACK))
		return -DROP_NO_PAIR;
	return f->scheduler == SCHED_MAGLEV || f->scheduler == SCHED_BOUNDED_LOAD ? 0
										  : -DROP_NO_PAIR;
}

/* choose_backend returns the id of the backend that takes a new flow to the key, or -DROP_... A record
 * that was replaced meanwhile may have become another one's, and what it points to: then all is
 * read again. That its epoch is the same says that it was not its own again by then.
 */
__noinline int choose_backend(const struct frontend_key *key, const struct packet *p, __u32 avoid)
{
	if (!key || !p)
		return -DROP_NO_FRONTEND;
	for (int i = 0; i < CHOOSE_TRIES; i++) {
		const struct frontend *f = bpf_map_lookup_elem(&frontends, key);
		__u32 epoch;
		int chosen;

		if (!f)
			return -DROP_NO_FRONTEND;
		epoch = *(const volatile __u32 *)&f->epoch;
		if (!frontend_is(f, key))
			continue;
		chosen = f->kind == FRONTEND_SERVICE ? choose_admits(f, p) : -DROP_NO_FRONTEND;
		if (!chosen)
			chosen = schedule_backend(f, p, avoid);
		if (frontend_is(f, key) && *(const volatile __u32 *)&f->epoch == epoch)
			return chosen;
	}
	return -DROP_NO_BACKEND;
}

#endif
