//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Puts the next packet of the load into the buffer and calls the program under test.
 *
 * A test run with `repeat` gives a program its own output again, already translated. So this
 * program comes first each time: it writes fresh headers and goes on by a tail call, which is how
 * the kernel would enter the other program too. What it costs itself is measured with an empty
 * program in the other's place, and taken off.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define OTHERHOST 3 /* what a frame to a bridge's MAC is at the veth */
#define REDIRECT 7
#define SCATTER 2654435761u /* odd: flows are visited in a far from linear order */
#define CLIENT_PORTS 14	    /* bits; the rest of a flow's number is the client's address */
#define FIRST_PORT 1024
#define FLAGS_SYN 0x02
#define FLAGS_ACK 0x10
#define CLIENT_SEQ 1000
#define BACKEND_SEQ 7000

struct headers {
	struct ethhdr eth;
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed));

/* Set by the benchmark before each run. */
volatile __u32 cursor;	  /* packets so far */
volatile __u32 flow_mask; /* established: flows - 1 */
volatile __u32 flow_base; /* first flow's number */
volatile __u32 handshake; /* 1: three packets a flow, SYN, SYN-ACK, ACK; 0: one ACK a packet */
volatile __u32 vip;	  /* network order */
volatile __u32 clients;	  /* first client's address, host order */

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} under_test SEC(".maps");

static __always_inline void restore(struct headers *h, __u32 flow, __u32 step)
{
	__be32 client = bpf_htonl(clients + (flow >> CLIENT_PORTS));
	__be16 port = bpf_htons(FIRST_PORT + (flow & ((1 << CLIENT_PORTS) - 1)));
	__u8 *flags = (__u8 *)&h->tcp + 13;

	if (step == 1) { /* the answer of whom the SYN before was sent to: the buffer still says */
		h->ip.saddr = h->ip.daddr;
		h->tcp.source = h->tcp.dest;
		h->ip.daddr = client;
		h->tcp.dest = port;
		h->tcp.seq = bpf_htonl(BACKEND_SEQ);
		h->tcp.ack_seq = bpf_htonl(CLIENT_SEQ + 1);
		*flags = FLAGS_SYN | FLAGS_ACK;
	} else {
		h->ip.saddr = client;
		h->ip.daddr = vip;
		h->tcp.source = port;
		h->tcp.dest = bpf_htons(80);
		h->tcp.seq = bpf_htonl(step ? CLIENT_SEQ + 1 : CLIENT_SEQ);
		h->tcp.ack_seq = step ? bpf_htonl(BACKEND_SEQ + 1) : 0;
		*flags = step ? FLAGS_ACK : FLAGS_SYN;
	}
	*(__u32 *)h->eth.h_dest = 0x02;
	*(__u16 *)(h->eth.h_dest + 4) = 0x01;
	h->tcp.check = 0x1234;
	h->ip.check = 0x5678;
}

SEC("tc")
int next_packet(struct __sk_buff *skb)
{
	struct headers *h = (void *)(long)skb->data;
	__u32 n = cursor, flow = flow_base, step = 2;

	if ((void *)(h + 1) > (void *)(long)skb->data_end)
		return -1;
	cursor = n + 1;
	if (handshake) {
		flow += n / 3;
		step = n % 3;
	} else {
		flow += n * SCATTER & flow_mask;
	}
	restore(h, flow, step);
	bpf_skb_change_type(skb, OTHERHOST);
	bpf_tail_call(skb, &under_test, 0);
	return -1;
}

/* Stands for the program under test when next_packet itself is measured. */
SEC("tc")
int nothing(struct __sk_buff *skb)
{
	return REDIRECT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
