#!/bin/bash
# Worlds out of network namespaces: a node with a bridge, a client and three backends on it. Every
# load balancer gets a world of its own; all stand side by side, so that a run can go round them.
#
#   tb-W-node   bridge tb0 10.244.1.1/24
#   tb-W-client 10.244.1.2
#   tb-W-b1..3  10.244.1.11..13
#
# A world whose name begins with far- has its backends on a second node, behind a wire:
#
#   tb-W-node   wire 192.0.2.1     tb-W-peer   wire 192.0.2.2, bridge tb0 10.244.2.1/24
#   tb-W-b1..3  10.244.2.11..13
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

container() { # node's namespace, container's, address
	local node=$1 ns=$2 veth=v${2##*-}
	ip netns add "$ns"
	settle "$ns"
	ip link add eth0 netns "$ns" type veth peer name "$veth" netns "$node"
	in_ns "$ns" ip address add "$3/24" dev eth0
	in_ns "$ns" ip link set eth0 up
	in_ns "$ns" ip route add default via "${3%.*}.1"
	in_ns "$node" ip link set "$veth" master tb0 up
}

node() { # namespace, bridge's address
	ip netns add "$1"
	settle "$1"
	in_ns "$1" ip link add tb0 type bridge
	in_ns "$1" ip address add "$2/24" dev tb0
	in_ns "$1" ip link set tb0 up
	# A bridge in a new namespace hands its frames to netfilter unless told not to.
	in_ns "$1" sysctl -qw net.bridge.bridge-nf-call-iptables=0 2>/dev/null || true
}

up() {
	local home=tb-$1-node i
	node "$home" 10.244.1.1
	container "$home" "tb-$1-client" 10.244.1.2
	if [[ $1 = far-* ]]; then
		home=tb-$1-peer
		node "$home" 10.244.2.1
		wire "tb-$1-node" "$home"
	fi
	for i in 1 2 3; do container "$home" "tb-$1-b$i" "$(backend_of "$1" $i)"; done
}

wire() {
	ip link add wire netns "$1" type veth peer name wire netns "$2"
	in_ns "$1" ip address add 192.0.2.1/24 dev wire
	in_ns "$2" ip address add 192.0.2.2/24 dev wire
	in_ns "$1" ip link set wire up
	in_ns "$2" ip link set wire up
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
	for ns in $(ip netns list | awk '{print $1}' | grep -E "^tb-$1-(node|peer|client|b[0-9]+)$"); do ip netns delete "$ns"; done
	for ns in node peer; do ! mountpoint -q "$RUN/$1/$ns/bpf" || umount -l "$RUN/$1/$ns/bpf"; done
	rm -rf "${RUN:?}/$1"
}

case ${1:-} in
up | serve | down) "$1" "$2" ;;
down-all) for world in $(ip netns list | awk '{print $1}' | sed -nE 's/^tb-(.*)-node$/\1/p'); do down "$world"; done ;;
*) sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2 ;;
esac
