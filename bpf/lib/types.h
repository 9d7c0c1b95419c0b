/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The map ABI: every struct and enum that BPF programs and Go share.
 *
 * Go types are generated from here (maps.c), never typed again. Addresses are 16 bytes,
 * IPv4 mapped (::ffff:a.b.c.d), so one code path serves both families. Ports are in network
 * order. Ids are array positions and 0 means "none". A change that an older program would
 * misread raises LAYOUT_VERSION in pkg/datapath.
 */
#ifndef TCLB_TYPES_H
#define TCLB_TYPES_H

#include <stdbool.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/* A tick is a jiffy, the low 32 bits of bpf_jiffies64: the one clock that is read without a call
 * (where a return is guarded against speculation, a call costs as much as a lookup). Ticks wrap
 * after 49 days at 1000 Hz and are compared by signed difference.
 */

#define ADDR_LEN 16
#define MAC_LEN 6

/* ---- flows ---- */

/* The five fields of a packet and the zone they are unique in: 0 is this node, below VLAN_ZONES is the
 * id of the node that the packet came from by tunnel, from there on the VLAN that it came from.
 */
struct tuple {
	__u8 saddr[ADDR_LEN];
	__u8 daddr[ADDR_LEN];
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad;
	__u16 zone;
} __attribute__((aligned(8)));

enum ct_dir {
	DIR_ORIGINAL = 0, /* client to VIP */
	DIR_REPLY = 1,	  /* backend to client */
};

/* Which room a pair is in, and what its idle timeout is. */
enum ct_state {
	CT_FREE = 0,
	CT_OPENING = 1,	    /* TCP, handshake not complete: the opening room */
	CT_ESTABLISHED = 2, /* TCP after the handshake, and all UDP: the main room */
	CT_CLOSING = 3,	    /* both FINs or a RST: the closing room */
	CT_STATES = 4,
};

/* How packets of one direction leave the program that translated them. */
enum deliver {
	DELIVER_STACK = 0,  /* the host's stack routes it */
	DELIVER_PEER = 1,   /* into the container behind the veth `ifindex` */
	DELIVER_HOST = 2,   /* up into this host by the ingress of tclb0 */
	DELIVER_TUNNEL = 3, /* to the node whose id is `ifindex` */
	DELIVER_UPLINK = 4, /* out of the device `ifindex`, to whom routing says */
	DELIVER_VLAN = 5,   /* with a tag, into the VLAN whose zone is `ifindex` */
};

enum ct_half_flag {
	HALF_SYN = 1,
	HALF_FIN = 2,
	HALF_RST = 4,
};

/* One direction of a flow. A packet that matches `tuple` leaves with the *other* half's
 * tuple turned round: that one rule is DNAT, reverse NAT, source translation and hairpin.
 */
struct ct_half {
	struct tuple tuple; /* as packets of this direction arrive */
	__u64 packets;	    /* IP packets, segments of a GSO packet counted each */
	__u64 bytes;	    /* from the IP header on */
	__u32 seen;	    /* tick of the last packet */
	__u32 end;	    /* TCP: the sequence number after the last one sent */
	__u32 ifindex;	    /* as its `deliver` says: the veth's host side, a node's id, ... */
	__u8 mac[MAC_LEN];  /* destination MAC for delivery */
	__u8 deliver;	    /* enum deliver */
	__u8 flags;	    /* enum ct_half_flag seen in this direction */
	__u32 ack;	    /* TCP: the last acknowledgment sent */
};

enum ct_pair_flag {
	PAIR_DIRECT = 1,    /* a flow to a backend's own address: tracked, not balanced */
	PAIR_HAIRPIN = 2,   /* the client is the backend */
	PAIR_REFUSED = 4,   /* its backend refused: the next SYN goes to another one */
	PAIR_SYN_TIMED = 8, /* the answer to its SYN is waited for, with a watch (latency.h) */
	PAIR_ASKS = 16,	    /* measured too: its first request comes next */
	PAIR_ASKED = 32,    /* and then the first response */
	PAIR_RETURN = 64,   /* came by tunnel: kept for its answers to find the way back */
	PAIR_SNAT = 128,    /* its source is this node's: ports come from a range of their own */
	PAIR_REFUSALS = 0xff00, /* how many backends refused the flow before this one */
	PAIR_DSR = 0x10000, /* its backend's node may answer its client: half of it is seen here */
	PAIR_ANSWERS = 0x20000, /* of a return pair: its answers leave here (map dsr_vips) */
};

/* Both directions of a flow: one record, one life. Readers check `life` before and after. */
struct ct_pair {
	struct ct_half half[2]; /* by enum ct_dir */
	__u32 life;		/* odd: in use; even: free; rises by one at each change */
	__u32 service;		/* service id; 0 for direct flows */
	__u32 backend;		/* backend id; 0 for direct flows */
	__u32 backend_gen;	/* dies when the backend's generation moves on */
	__u32 created;		/* tick */
	__u32 state;		/* enum ct_state; who changes it by compare-and-swap counts it */
	__u32 flags;		/* enum ct_pair_flag */
	/* TCP: what the answer to the last SYN acknowledges; opening, after that answer, the least
	 * that the handshake's last packet acknowledges.
	 */
	__u32 handshake;
};

/* One cache line of the index tuple -> half. A slot is tag << 32 | pair << 1 | dir, 0 if
 * free; tags are odd. A key's first bucket decides about it: who adds one claims a slot, then
 * raises `version` from what it was before looking for the key; if another writer came between,
 * the slot is given back and the search begins again. So a key stands in the index once.
 * `spilled` counts the keys of this bucket that stand in their second one.
 */
#define BUCKET_SLOTS 7
struct ct_bucket {
	__u32 version;
	__u32 spilled;
	__u64 slot[BUCKET_SLOTS];
};

/* Everything the rooms share. All counters are changed atomically. */
struct ct_rooms {
	__u32 high_water; /* pairs below it have been used at least once */
	__u32 clock;	  /* where the search for a victim goes on */
	__u32 opening;	  /* next position in ct_opening */
	__u32 closing;	  /* next position in ct_closing */
	__s64 live[CT_STATES];
	__u64 created[CT_STATES]; /* entered the room */
	__u64 evicted[CT_STATES]; /* gave way to another flow */
	__u64 expired[CT_STATES]; /* removed by the sweep */
};

/* What ct_sweep is asked, and answers. */
struct sweep {
	__u32 from;    /* first pair to look at */
	__u32 count;   /* how many */
	__u32 service; /* flush: only this service's; 0 = all */
	__u32 flush;   /* end them however young */
	__u32 removed; /* out: pairs ended */
	__u32 now;     /* out: tick of the call */
};

/* ---- fragments ---- */

/* What the fragments of one datagram have in common, as they arrive. */
struct fragment_key {
	__u8 saddr[ADDR_LEN];
	__u8 daddr[ADDR_LEN];
	__u32 id; /* network order; of IPv4 in the lower half */
	__u8 proto;
	__u8 pad;
	__u16 zone;
};

enum fragment_fate {
	FRAGMENT_PAIR = 0, /* translated like the first one */
	FRAGMENT_PASS = 1, /* the first one was none of ours, or these are translated already */
};

/* What the first fragment, which alone has the ports, says about the others. */
struct fragment {
	__u32 pair; /* FRAGMENT_PAIR: number, life and direction */
	__u32 life;
	__u32 seen; /* tick */
	__u8 dir;
	__u8 fate; /* enum fragment_fate */
	__u16 pad;
};

enum held_state {
	HELD_FREE = 0,
	HELD_BUSY = 1, /* being written or read by the CPU that made it so */
	HELD_READY = 2,
};

/* A fragment that came before its datagram's first one: from the IP header on. */
#define HELD_FRAGMENTS 256
#define HELD_BYTES 9216
struct held_fragment {
	struct fragment_key key;
	__u32 state; /* enum held_state, changed by compare-and-swap */
	__u32 seen;  /* tick */
	__u32 len;
	__u32 pad;
	__u8 packet[HELD_BYTES];
};

/* What the client of a return pair asked, for answers that leave from here. By pair. */
struct dsr_vip {
	__u8 vip[ADDR_LEN];
	__u32 life;	   /* of the pair; any other: nothing is known */
	__u32 ifindex;	   /* the uplink that routing names for the client */
	__u8 mac[MAC_LEN]; /* who is next there, if it was known */
	__be16 port;
};

/* Changed atomically. */
struct held_cursor {
	__u32 next;	/* place of the next fragment to be held */
	__u32 waiting;	/* places that are HELD_READY */
	__u64 held;	/* since the maps were made */
	__u64 released; /* of these: sent on */
};

/* ---- services ---- */

struct frontend_key {
	__u8 vip[ADDR_LEN];
	__be16 port; /* 0: the address as such; without that entry none of its ports counts */
	__u8 proto;  /* 0 with port 0 */
	__u8 pad;
};

enum frontend_kind {
	FRONTEND_SERVICE = 0,
	FRONTEND_VIP = 1,     /* key with port 0: a VIP; ports that are not listed are refused */
	FRONTEND_BACKEND = 2, /* a backend's own address: direct flows to it are tracked */
};

enum frontend_flag {
	FRONTEND_ALLOW = 1,    /* only sources in `allow` */
	FRONTEND_AFFINITY = 2, /* client address binds */
	FRONTEND_LISTED = 4,   /* the table is a list, walked in order; else one of 2^n slots */
	FRONTEND_OWN = 8, /* of a VIP: it is an address of this node too, whose processes use it */
	FRONTEND_ANNOUNCE = 16, /* of a VIP: this node answers ARP and ND for it on its uplinks */
	FRONTEND_DSR = 32,	/* backends' nodes may answer clients outside by themselves */
};

/* Swapped whole: a packet sees the old tables or the new ones, never a mix. The kernel gives an old
 * record's memory to the next one at once, though a program may still read there: `check` tells.
 */
struct frontend {
	__u32 service;	   /* service id */
	__u32 table;	   /* arena position where the slots begin */
	__u32 table_len;   /* slots; 0: no backends */
	__u32 members;	   /* arena position of: seat -> backend id */
	__u32 members_len; /* seats */
	__u32 epoch;	   /* rises with each build */
	__u32 group;	   /* group id; 0: none, flows are not counted together */
	__u32 weight;	   /* sum over the backends in the table */
	__u32 head;	   /* least-conn: slots in front that list who serves; then a sequence */
	__u8 kind;	   /* enum frontend_kind */
	__u8 scheduler;	   /* lb.Scheduler */
	__u8 flags;	   /* enum frontend_flag */
	__u8 narrow;	   /* an arena position holds 1 << narrow slots: 1, 2 or 4 */
	__u32 check;	   /* of the key and all above: frontend_is in choose.h */
};

enum scheduler {
	SCHED_MAGLEV = 0,
	SCHED_RANDOM = 1,
	SCHED_ROUND_ROBIN = 2,
	SCHED_LEAST_CONN = 3,
	SCHED_BOUNDED_LOAD = 4,
	SCHED_LATENCY = 5,
};

enum timeout {
	TIMEOUT_TCP_SYN = 0,
	TIMEOUT_TCP_ESTABLISHED = 1,
	TIMEOUT_TCP_FIN = 2,
	TIMEOUT_UDP = 3,
	TIMEOUT_UDP_STREAM = 4,
	TIMEOUTS = 5,
};

#define LOAD_FACTOR_SHIFT 10

/* By service id; id 0 holds the node-wide timeouts, for flows without a service. */
struct service {
	__u32 gen;
	__u32 timeouts[TIMEOUTS]; /* ticks */
	__u32 affinity;		  /* ticks since the client's last new flow */
	__u32 load_factor;	  /* bounded-load, in 1 / (1 << LOAD_FACTOR_SHIFT) */
	__u32 base_gen;		  /* rises when seats change meaning: affinity entries die */
	__u32 pad[3];
};

/* What the backends that one table spreads over have in common. By group id; changed atomically. */
struct group {
	__u64 cursor; /* turns taken: round-robin, and who is first among equals */
	__s64 load;   /* pairs that are opening or established */
};

enum backend_flag {
	BACKEND_LIVE = 1, /* the record is valid: flows may go on */
	BACKEND_NEW = 2,  /* may take new flows */
	BACKEND_SERVES = BACKEND_LIVE | BACKEND_NEW,
	BACKEND_LOCAL = 4, /* a container attached on this node: deliver by ifindex and mac */
	BACKEND_TRIAL = 8, /* back from ejection: a new flow only while no other one is opening */
};

struct backend {
	__u8 addr[ADDR_LEN];
	__be16 port;
	__u16 zone; /* 0: reached from here as it is; a node's id: by tunnel; a VLAN's: with its tag */
	__u32 gen;
	__u32 service;
	__u32 ifindex;
	__u8 mac[MAC_LEN];
	__u8 flags; /* enum backend_flag */
	__u8 proto;
	__u32 weight;
	__u32 owner; /* with BACKEND_LOCAL: the container, as in struct endpoint */
	__u32 group; /* group id */
	__u32 pad[3];
};

/* A time that is measured again and again: it rises at once and falls slowly. */
struct latency {
	__u32 ns;   /* 0: never measured */
	__u32 tick; /* of the measurement */
};

/* Written by BPF, by backend id; reset when the id is given anew. */
struct backend_stat {
	__u32 active;  /* pairs in CT_ESTABLISHED */
	__u32 load;    /* pairs in CT_OPENING or CT_ESTABLISHED */
	__u64 total;   /* flows begun */
	__u64 packets; /* of flows that ended; live ones are in their pairs */
	__u64 bytes;
	struct latency syn;   /* SYN to SYN-ACK */
	struct latency first; /* first request to first response */
	__u32 refused;	      /* tick of the last RST in answer to a SYN; 0: none since an answer */
	__u32 syns;	      /* TCP flows begun by a SYN */
	__u32 answered;	      /* of these: by a SYN-ACK */
	__u32 rejected;	      /* by a RST, or for any flow an ICMP unreachable */
};

/* A client's choice, kept for all ports and VIPs of a service. */
struct affinity_key {
	__u8 client[ADDR_LEN];
	__u32 service;
};

struct affinity {
	__u32 seat;
	__u32 base_gen;
	__u32 seen; /* tick of the last new flow */
	__u32 pad;
};

struct allow_key {
	__u32 prefix_len; /* 32 bits of service + the prefix, IPv4 ones + 96 */
	__u32 service;
	__u8 addr[ADDR_LEN];
};

/* ---- this node ---- */

/* An address of a container attached here, on the host side of its veth. All zeros: the veth as such;
 * ifindex 0: the address as such, wherever it is (of two containers with one address, the latest).
 */
struct endpoint_key {
	__u8 addr[ADDR_LEN];
	__u32 ifindex;
};

struct endpoint {
	__u32 up_ifindex;     /* the bridge the veth is a port of; 0: routed */
	__u8 up_mac[MAC_LEN]; /* where a frame for the host's stack is sent */
	__u16 pad;
	__u32 owner;   /* a number for the container, the same at all its interfaces; positive */
	__u32 ifindex; /* the veth's host side */
	__u8 mac[MAC_LEN]; /* the container's */
	__u16 pad2;
};

/* A device on which VIPs answer clients outside. */
struct uplink {
	__u8 mac[MAC_LEN];
	__u16 pad;
};

#define NODES 4096

enum node_flag {
	NODE_KNOWN = 1,	       /* the record is valid */
	NODE_SNAT = 2,	       /* flows to it have this node's address as source */
	NODE_SNAT_CHECK = 4,   /* those whose client's address may be there too (map subnets) */
	NODE_DSR = 8,	       /* it runs our programs: it may be told what a client asked */
	NODE_SNAT_INSIDE = 16, /* as NODE_SNAT, but not those of clients outside */
};

/* A node that packets go to by tunnel. By node id, which is the zone of what comes from there. */
struct node {
	__u8 vtep[ADDR_LEN]; /* its underlay address */
	__u8 mac[MAC_LEN];   /* of its tunnel device */
	__u16 flags;	     /* enum node_flag */
	__u32 mtu;	     /* largest IP packet that fits into one of the underlay */
	__u32 pad;
};

struct vtep_key {
	__u8 addr[ADDR_LEN];
};

/* A prefix that containers of a node have their addresses in. */
struct subnet_key {
	__u32 prefix_len; /* 32 bits of node id + the prefix, IPv4 ones + 96 */
	__u32 node;
	__u8 addr[ADDR_LEN];
};

#define VLAN_ZONES 4096 /* zones from this one on are VLANs', those below it nodes' */
#define VLANS 4096

/* A VLAN that backends are in. By zone - VLAN_ZONES. */
struct vlan {
	__u32 ifindex;	   /* the device that carries it; 0: none does */
	__u32 mtu;	   /* largest IP packet that it takes */
	__u16 id;	   /* of the tag */
	__u8 mac[MAC_LEN]; /* of the device */
};

struct vlan_key {
	__u32 ifindex;
	__u32 id;
};

/* This node's own address in a VLAN, as whom clients go to backends in its prefix. */
struct vlan_source {
	__u8 addr[ADDR_LEN];
};

struct neighbour_key {
	__u8 addr[ADDR_LEN];
	__u32 zone;
};

enum neighbour_flag {
	NEIGHBOUR_FIXED = 1, /* its MAC address is configured, and not learned */
};

/* A backend's address in a VLAN, and its MAC address there, which changes in one store. */
struct neighbour {
	__u8 mac[MAC_LEN]; /* zero: it has not answered yet */
	__u16 flags;	   /* enum neighbour_flag */
	__u32 answers;	   /* how often it said who it is */
	__u32 pad;
} __attribute__((aligned(8)));

enum setting_flag {
	SETTING_HOST_STACK = 1, /* new flows stay on the host's routing and firewall path */
	SETTING_ANTI_SPOOF = 2, /* containers send from their own addresses only */
};

/* The one record that the proxy writes for all programs. */
struct node_settings {
	__u64 keys[5];	    /* of the flow index; made once with the maps, never changed */
	__u32 flags;	    /* enum setting_flag */
	__u32 host_ifindex; /* tclb0; 0: no host path */
	__u8 host_mac[MAC_LEN];
	__u16 pad;
	__u32 second;	      /* in ticks; written with the keys */
	__u32 tunnel_ifindex; /* the VXLAN device; 0: no overlay */
	__u8 hairpin4[ADDR_LEN];
	__u8 hairpin6[ADDR_LEN];
	__u32 vni;
	__u16 snat_min; /* source ports of flows under this node's address, first and last */
	__u16 snat_max;
	__u8 vtep4[ADDR_LEN]; /* this node's underlay addresses: outer source by family */
	__u8 vtep6[ADDR_LEN];
	__u8 snat4[ADDR_LEN]; /* and its source address inside the tunnel */
	__u8 snat6[ADDR_LEN];
};

/* How many answers a CPU may still send to who is refused. */
struct reject_bucket {
	__u32 filled; /* tick */
	__u32 tokens;
};

/* Why a packet was refused: counters in `drops`, the label of tclb_drops_total. */
enum drop_reason {
	DROP_NONE = 0,
	DROP_MALFORMED = 1,	 /* headers cut short or contradicting each other */
	DROP_NO_FRONTEND = 2,	 /* a VIP's port that no service listens on */
	DROP_NO_BACKEND = 3,	 /* a service without a backend to send to */
	DROP_NOT_ALLOWED = 4,	 /* source outside `allow` */
	DROP_SPOOFED = 5,	 /* source is not the container's own address */
	DROP_NO_PORT = 6,	 /* no free source port for a translated flow */
	DROP_NO_PAIR = 7,	 /* mid-flow packet of a flow that nobody knows */
	DROP_BACKEND_GONE = 8,	 /* the flow's backend was removed */
	DROP_FRAGMENT = 9,	 /* fragment whose datagram's first one did not come in time */
	DROP_CT_FULL = 10,	 /* no room for a new pair */
	DROP_REWRITE = 11,	 /* the kernel refused to change the packet */
	DROP_UNROUTABLE = 12,	 /* to a VIP, by a protocol that is not balanced */
	DROP_HOP_LIMIT = 13,	 /* TTL or hop limit used up */
	DROP_BAD_ICMP = 14,	 /* ICMP error that quotes no flow or an illegal MTU */
	DROP_TUNNEL_SOURCE = 15, /* encapsulated by a stranger */
	DROP_TUNNEL_MTU = 16,	 /* too big for the tunnel and not to be fragmented */
	DROP_RATE_LIMITED = 17,	 /* an answer that was not sent */
	DROP_SECOND_CHANCE = 18, /* a backend's refusal: the client's next SYN goes elsewhere */
	DROP_TUNNEL_NODE = 19,	 /* to a node that is not known, or before there is a tunnel */
	DROP_TUNNEL_CARGO = 20,	 /* encapsulated, but nothing that we would have sent */
	DROP_VLAN = 21,		 /* to a VLAN that no device carries, or a backend unknown there */
	DROP_REASONS = 22,
};

_Static_assert(sizeof(struct tuple) == 40, "tuple");
_Static_assert(sizeof(struct ct_half) == 80, "ct_half");
_Static_assert(sizeof(struct ct_pair) == 192, "ct_pair is three cache lines");
_Static_assert(sizeof(struct ct_bucket) == 64, "ct_bucket is one cache line");
_Static_assert(sizeof(struct fragment_key) == 40, "fragment_key");
_Static_assert(sizeof(struct fragment) == 16, "fragment");
_Static_assert(sizeof(struct dsr_vip) == 32, "dsr_vip");
_Static_assert(sizeof(struct frontend_key) == 20, "frontend_key");
_Static_assert(sizeof(struct frontend) == 44, "frontend");
_Static_assert(sizeof(struct service) == 48, "service");
_Static_assert(sizeof(struct backend) == 64, "backend is one cache line");
_Static_assert(sizeof(struct backend_stat) == 64, "backend_stat is one cache line");
_Static_assert(sizeof(struct endpoint_key) == 20, "endpoint_key");
_Static_assert(sizeof(struct endpoint) == 28, "endpoint");
_Static_assert(sizeof(struct node) == 32, "node");
_Static_assert(sizeof(struct node_settings) == 168, "node_settings");
_Static_assert(sizeof(struct vlan) == 16, "vlan");
_Static_assert(sizeof(struct neighbour) == 16, "neighbour");

#endif
