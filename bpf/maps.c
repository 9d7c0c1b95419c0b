//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The map ABI and nothing else: from this object Go gets the maps and the types. The program
 * objects have the same maps by name and are given these when they are loaded.
 */
#include <linux/bpf.h>
#include "lib/maps.h"

/* What no map holds as such does not reach the type information by itself. */
const struct sweep *export_sweep;
#define EXPORT(name) const enum name *export_##name
EXPORT(ct_dir);
EXPORT(ct_state);
EXPORT(deliver);
EXPORT(ct_half_flag);
EXPORT(ct_pair_flag);
EXPORT(fragment_fate);
EXPORT(held_state);
EXPORT(frontend_kind);
EXPORT(frontend_flag);
EXPORT(scheduler);
EXPORT(timeout);
EXPORT(backend_flag);
EXPORT(setting_flag);
EXPORT(node_flag);
EXPORT(neighbour_flag);
EXPORT(drop_reason);
