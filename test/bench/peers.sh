#!/bin/bash
# Puts one load balancer into a world: peers.sh WORLD direct|nftables|haproxy|nginx|tclb|userspace|far_direct|far_tclb
#
# tcp 80 -> 7001, tcp 81 -> 7002 and udp 7003 of three backends at one VIP, tcp 5201 of the first
# backend at another.
set -euo pipefail
. "$(dirname "$0")/places.sh"
WORLD=$1 NODE=tb-$1-node PEER=tb-$1-peer
B=("$(backend_of "$1" 1)" "$(backend_of "$1" 2)" "$(backend_of "$1" 3)")

backends() { local b; for b in "${B[@]}"; do printf '%s:%s ' "$b" "$1"; done; }

nftables() {
	in_ns "$NODE" sysctl -qw net.bridge.bridge-nf-call-iptables=1 # undoes the translation on the way back
	in_ns "$NODE" sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_time_wait=1 net.netfilter.nf_conntrack_tcp_timeout_close=1
	"$BIN/kit" rules -others "${OTHERS:-0}" \
		"$VIP tcp 80 $(backends 7001)" "$VIP tcp 81 $(backends 7002)" "$VIP udp 7003 $(backends 7003)" "$VIP_STREAM tcp 5201 ${B[0]}:5201" |
		in_ns "$NODE" nft -f -
}

# What carries connections by itself needs the VIPs on the node.
own_vips() {
	mkdir -p "$RUN/$WORLD"
	in_ns "$NODE" ip address add $VIP/32 dev lo
	in_ns "$NODE" ip address add $VIP_STREAM/32 dev lo
}

haproxy() {
	local port target vip b i
	own_vips
	{
		printf '%s\n' global ' nbthread 2' ' maxconn 4000' defaults ' mode tcp' ' option splice-auto' \
			' timeout connect 5s' ' timeout client 60s' ' timeout server 60s'
		for port in 80:7001 81:7002 5201:5201; do
			target=${port#*:} port=${port%:*} i=0 vip=$VIP
			[ "$port" != 5201 ] || vip=$VIP_STREAM
			printf 'frontend f%s\n bind %s:%s\n default_backend b%s\nbackend b%s\n balance roundrobin\n' "$port" "$vip" "$port" "$port" "$port"
			for b in "${B[@]}"; do
				i=$((i + 1))
				[ "$port" = 5201 ] && [ $i -gt 1 ] || printf ' server s%d %s:%s\n' $i "$b" "$target"
			done
		done
	} >"$RUN/$WORLD/haproxy.cfg"
	start "$WORLD" "$NODE" haproxy -db -f "$RUN/$WORLD/haproxy.cfg"
}

nginx() {
	own_vips
	{
		printf '%s\n' 'load_module /usr/lib/nginx/modules/ngx_stream_module.so;' "daemon off; pid $RUN/$WORLD/pid; error_log /dev/null;" \
			'worker_processes 2; events { worker_connections 8000; multi_accept on; }' 'stream { access_log off;'
		upstream u80 "$VIP:80 reuseport" 7001 "${B[@]}"
		upstream u81 "$VIP:81 reuseport" 7002 "${B[@]}"
		upstream u7003 "$VIP:7003 udp reuseport" 7003 "${B[@]}"
		upstream u5201 "$VIP_STREAM:5201 reuseport" 5201 "${B[0]}"
		echo '}'
	} >"$RUN/$WORLD/nginx.conf"
	start "$WORLD" "$NODE" /usr/sbin/nginx -c "$RUN/$WORLD/nginx.conf"
}

upstream() { # name, where to listen, backends' port, backends...
	local name=$1 at=$2 port=$3 more=
	shift 3
	printf 'upstream %s {' "$name"
	printf ' server %s;' "${@/%/:$port}"
	[[ $at != *udp* ]] || more='proxy_responses 0; proxy_timeout 5s;'
	printf ' } server { listen %s; tcp_nodelay on; %s proxy_pass %s; }\n' "$at" "$more" "$name"
}

# The same without BPF: the proxy makes the VIPs the node's own.
userspace() { proxy "$NODE" 10.244.1.1 'datapath: {mode: userspace}'; }

# The real thing: a proxy as a process on each node, and an ADD of the plugin for every container.
tclb() {
	local i
	proxy "$NODE" 10.244.1.1
	attach "$NODE" client 10.244.1.2
	for i in 1 2 3; do attach "$NODE" b$i "$(backend_of "$WORLD" $i)"; done
	wait_for all_local
}

# Backends on the other node: plain routes through a VXLAN device of the kernel's.
far_direct() {
	plain_tunnel "$NODE" 1 2
	plain_tunnel "$PEER" 2 1
}

plain_tunnel() { # namespace, this node's number, the other's
	in_ns "$1" ip link add plain type vxlan id 9 dstport 4790 local "192.0.2.$2" remote "192.0.2.$3" dev wire
	in_ns "$1" ip address add "10.245.0.$2/24" dev plain
	in_ns "$1" ip link set plain up
	in_ns "$1" ip route add "10.244.$3.0/24" via "10.245.0.$3"
}

far_tclb() {
	local i
	proxy "$PEER" 192.0.2.2 "nodes: [{name: node, address: 192.0.2.1, subnets: [10.244.1.0/24]}]"
	for i in 1 2 3; do attach "$PEER" b$i "${B[i - 1]}"; done
	proxy "$NODE" 192.0.2.1 "nodes: [{name: peer, address: 192.0.2.2, subnets: [10.244.2.0/24]}]"
	attach "$NODE" client 10.244.1.2
}

# proxy NAMESPACE ADDRESS [LINES...] starts one; the lines are added to its tclb.yaml.
proxy() {
	local name=${1##*-} address=$2 dir=$RUN/$WORLD/${1##*-} on=
	shift 2
	mkdir -p "$dir"/{bpf,services.d}
	mount -t bpf bpf "$dir/bpf"
	printf '%s\n' "node: {name: $name, address: $address}" "servicesDir: $dir/services.d" 'listen: ""' "$@" >"$dir/tclb.yaml"
	[[ $WORLD != far-* ]] || on=", node: peer"
	{
		printf 'services:\n- name: load\n  vips: [%s]\n  ports:\n' $VIP
		printf '  - {name: %s, protocol: %s, port: %s, targetPort: %s}\n' http tcp 80 7001 same-core tcp 81 7002 datagrams udp 7003 7003
		printf '  backends:\n'
		printf "  - {address: %s$on}\n" "${B[@]}"
		printf -- "- name: stream\n  vips: [%s]\n  ports: [{protocol: tcp, port: 5201}]\n  backends: [{address: %s$on}]\n" $VIP_STREAM "${B[0]}"
	} >"$dir/services.d/bench.yaml"
	start "$WORLD" "tb-$WORLD-$name" "$ROOT/bin/tclb" proxy --run-dir "$dir/run" --bpffs "$dir/bpf" --config "$dir/tclb.yaml"
	wait_for in_ns "tb-$WORLD-$name" "$ROOT/bin/tclb" status --run-dir "$dir/run"
}

# attach runs the plugin as a runtime would, behind a bridge plugin that has just made the veth.
attach() { # node's namespace, container, address
	local dir=$RUN/$WORLD/${1##*-} ns=/run/netns/tb-$WORLD-$2
	in_ns "$1" env CNI_COMMAND=ADD CNI_CONTAINERID="bench-$WORLD-$2" CNI_NETNS="$ns" CNI_IFNAME=eth0 CNI_PATH="$ROOT/bin" \
		"$ROOT/bin/tclb-cni" >"$dir/$2.result" <<-E || { cat "$dir/$2.result" >&2; exit 1; }
		{"cniVersion": "1.0.0", "name": "bench", "type": "tclb-cni", "bpffs": "$dir/bpf", "runDir": "$dir/run",
		 "prevResult": {"cniVersion": "1.0.0",
		  "interfaces": [{"name": "tb0"}, {"name": "v$2"}, {"name": "eth0", "sandbox": "$ns"}],
		  "ips": [{"address": "$3/24", "gateway": "${3%.*}.1", "interface": 2}]}}
	E
}

# Every backend is delivered to its veth, none over the bridge.
all_local() {
	local rows
	rows=$(in_ns "$NODE" "$ROOT/bin/tclb" backend list --run-dir "$RUN/$WORLD/node/run" -o json)
	[ "$(grep -c '"local": true' <<<"$rows")" = 10 ]
}

wait_for() {
	local _
	for _ in $(seq 150); do
		! "$@" >/dev/null 2>&1 || return 0
		sleep 0.1
	done
	echo "world $WORLD: not ready within 15 s: $*" >&2
	tail -n 5 "$RUN/$WORLD.log" >&2
	exit 1
}

case ${2:-} in
direct) ;;
nftables | haproxy | nginx | tclb | userspace | far_direct | far_tclb) "$2" ;;
*) sed -n '2,6{/^#/p}' "$0" >&2; exit 2 ;;
esac
