//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc egress of a container's veth: what the host's stack sends to the container. What our programs
 * deliver themselves does not pass, or matches no reply half.
 */
#include <linux/bpf.h>
#include "lib/answers.h"

SEC("tc")
int to_container(struct __sk_buff *skb)
{
	return answers_translate(skb);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
