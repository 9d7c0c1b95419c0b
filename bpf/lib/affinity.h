/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Affinity client-ip: a client's flows to a service, over all ports, protocols and VIPs, go to one
 * seat until it has begun none for the service's timeout. Looked up for new flows only.
 */
#ifndef TCLB_AFFINITY_H
#define TCLB_AFFINITY_H

#include "select.h"

/* affinity_find returns the seat that a client is bound to, and binds it for longer; or -1. */
static __noinline int affinity_find(const struct frontend *f, const struct tuple *t, __u32 now)
{
	struct affinity_key key ALIGNED = {.service = f->service};
	struct affinity *bound;
	struct service *svc;

	addr_copy(key.client, t->saddr);
	bound = bpf_map_lookup_elem(&affinities, &key);
	svc = bpf_map_lookup_elem(&services, &key.service);
	if (!bound || !svc || bound->base_gen != svc->base_gen ||
	    (__s32)(now - bound->seen) > (__s32)svc->affinity)
		return -1;
	bound->seen = now;
	return bound->seat;
}

static __noinline int affinity_bind(const struct frontend *f, const struct tuple *t, __u32 seat,
				    __u32 now)
{
	struct affinity_key key ALIGNED = {.service = f->service};
	struct affinity bound = {.seat = seat, .seen = now};
	struct service *svc = bpf_map_lookup_elem(&services, &key.service);

	if (!svc)
		return 0;
	addr_copy(key.client, t->saddr);
	bound.base_gen = svc->base_gen;
	return !bpf_map_update_elem(&affinities, &key, &bound, BPF_ANY);
}

#endif
