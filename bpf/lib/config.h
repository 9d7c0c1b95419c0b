/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is decided when a program is loaded. The loader takes the sizes from the pinned maps, so
 * all programs on one set of maps agree; dead branches go before the verifier sees them.
 */
#ifndef TCLB_CONFIG_H
#define TCLB_CONFIG_H

#include "types.h"

struct load_config {
	__u32 pairs;	   /* length of ct_pairs: the three rooms and a little more */
	__u32 established; /* capacity of the main room */
	__u32 opening;	   /* length of ct_opening */
	__u32 closing;	   /* length of ct_closing */
	__u32 bucket_mask; /* length of ct_index - 1, a power of two - 1 */
};

const volatile struct load_config config;

#endif
