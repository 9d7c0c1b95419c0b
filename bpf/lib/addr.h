/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* 16-byte addresses: copying, comparing, hashing. */
#ifndef TCLB_ADDR_H
#define TCLB_ADDR_H

#include "types.h"

#define TUPLE_WORDS 5

/* For keys on the stack: addresses are copied by words, and the stack is strict. */
#define ALIGNED __attribute__((aligned(8)))

/* The upper part of an IPv4-mapped address, as the second little-endian word holds it. */
#define V4_MAPPED 0xffff0000ULL

static __always_inline __u64 addr_word(const __u8 *addr, int i)
{
	return ((const __u64 *)addr)[i];
}

static __always_inline void addr_copy(__u8 *to, const __u8 *from)
{
	((__u64 *)to)[0] = addr_word(from, 0);
	((__u64 *)to)[1] = addr_word(from, 1);
}

static __always_inline bool addr_equal(const __u8 *a, const __u8 *b)
{
	return addr_word(a, 0) == addr_word(b, 0) && addr_word(a, 1) == addr_word(b, 1);
}

static __always_inline void addr_from_v4(__u8 *to, __be32 v4)
{
	((__u64 *)to)[0] = 0;
	((__u64 *)to)[1] = (__u64)v4 << 32 | V4_MAPPED;
}

static __always_inline bool addr_is_v4(const __u8 *a)
{
	return !addr_word(a, 0) && (__u32)addr_word(a, 1) == V4_MAPPED;
}

/* addr_to_v4 returns the IPv4 address in a mapped one. */
static __always_inline __be32 addr_to_v4(const __u8 *a)
{
	return ((const __u32 *)a)[3];
}

static __always_inline __u64 tuple_word(const struct tuple *t, int i)
{
	return ((const __u64 *)t)[i];
}

static __always_inline bool tuple_equal(const struct tuple *a, const struct tuple *b)
{
	return !((tuple_word(a, 0) ^ tuple_word(b, 0)) | (tuple_word(a, 1) ^ tuple_word(b, 1)) |
		 (tuple_word(a, 2) ^ tuple_word(b, 2)) | (tuple_word(a, 3) ^ tuple_word(b, 3)) |
		 (tuple_word(a, 4) ^ tuple_word(b, 4)));
}

#endif
