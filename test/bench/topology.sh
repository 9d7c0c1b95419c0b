#!/bin/bash
# Worlds out of network namespaces: a node with a bridge, a client and three backends on it. Every
# load balancer gets a world of its own; all stand side by side, so that a run can go round them.
#
#   tb-W-node   bridge tb0 10.244.1.1/24
#   tb-W-client 10.244.1.2
#   tb-W-b1..3  10.244.1.11..13
#
#   topology.sh up W | serve W | down W | down-all
set -euo pipefail
. "$(dirname "$0")/places.sh"

# What every namespace gets alike: no waiting for closed connections, no address family but one.
settle() {
	in_ns "$1" sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
		net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 \
		net.ipv4.ip_local_port_range="1024 65535" net.ipv4.tcp_tw_reuse=1 net.core.somaxconn=8192 \
		net.ipv4.tcp_max_syn_backlog=8192 net.ipv4.tcp_fin_timeout=5 net.ipv4.tcp_max_tw_buckets=16384
	in_ns "$1" ip link set lo up
}

container() { # world, name, address
	local node=tb-$1-node ns=tb-$1-$2
	ip netns add "$ns"
	settle "$ns"
	ip link add eth0 netns "$ns" type veth peer name "v$2" netns "$node"
	in_ns "$ns" ip address add "$3/24" dev eth0
	in_ns "$ns" ip link set eth0 up
	in_ns "$ns" ip route add default via 10.244.1.1
	in_ns "$node" ip link set "v$2" master tb0 up
}

up() {
	local node=tb-$1-node i
	ip netns add "$node"
	settle "$node"
	in_ns "$node" ip link add tb0 type bridge
	in_ns "$node" ip address add 10.244.1.1/24 dev tb0
	in_ns "$node" ip link set tb0 up
	# A bridge in a new namespace hands its frames to netfilter unless told not to.
	in_ns "$node" sysctl -qw net.bridge.bridge-nf-call-iptables=0 2>/dev/null || true
	container "$1" client 10.244.1.2
	for i in 1 2 3; do container "$1" b$i 10.244.1.1$i; done
}

# TCP 7001 and iperf3 5201 on CPU 1, UDP 7003 there too; TCP 7002 on CPU 0, the client's own.
serve() {
	local i
	for i in 1 2 3; do
		start "$1" "tb-$1-b$i" taskset -c 1 "$BIN/load" server 7001 7003 2
		start "$1" "tb-$1-b$i" taskset -c 0 "$BIN/load" server 7002 0 1
		start "$1" "tb-$1-b$i" taskset -c 1 iperf3 -s -p 5201
	done
}

down() {
	local pid ns
	if [ -f "$RUN/$1.pids" ]; then
		while read -r pid; do kill "$pid" 2>/dev/null || true; done <"$RUN/$1.pids"
		rm -f "$RUN/$1.pids"
	fi
	for ns in $(ip netns list | awk '{print $1}' | grep -E "^tb-$1-(node|client|b[0-9]+)$"); do ip netns delete "$ns"; done
	! mountpoint -q "$RUN/$1/bpf" || umount -l "$RUN/$1/bpf"
	rm -rf "${RUN:?}/$1"
}

case ${1:-} in
up | serve | down) "$1" "$2" ;;
down-all) for world in $(ip netns list | awk '{print $1}' | sed -nE 's/^tb-(.*)-node$/\1/p'); do down "$world"; done ;;
*) sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2 ;;
esac
