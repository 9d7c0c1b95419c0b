//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc egress of an uplink: what the host's stack sends to clients outside. */
#include <linux/bpf.h>
#include "lib/answers.h"

SEC("tc")
int to_uplink(struct __sk_buff *skb)
{
	return answers_translate(skb);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
