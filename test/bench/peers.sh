#!/bin/bash
# Puts one load balancer into a world: peers.sh WORLD direct|nftables|haproxy|tclb
#
# tcp 80 -> 7001, tcp 81 -> 7002 and udp 7003 of three backends at one VIP, tcp 5201 of the first
# backend at another.
set -euo pipefail
. "$(dirname "$0")/places.sh"
WORLD=$1 NODE=tb-$1-node
B=(10.244.1.11 10.244.1.12 10.244.1.13)

backends() { local b; for b in "${B[@]}"; do printf '%s:%s ' "$b" "$1"; done; }

nftables() {
	in_ns "$NODE" sysctl -qw net.bridge.bridge-nf-call-iptables=1 # undoes the translation on the way back
	in_ns "$NODE" sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_time_wait=1 net.netfilter.nf_conntrack_tcp_timeout_close=1
	"$BIN/kit" rules -others "${OTHERS:-0}" \
		"$VIP tcp 80 $(backends 7001)" "$VIP tcp 81 $(backends 7002)" "$VIP udp 7003 $(backends 7003)" "$VIP_STREAM tcp 5201 ${B[0]}:5201" |
		in_ns "$NODE" nft -f -
}

haproxy() {
	local port target vip b i
	mkdir -p "$RUN/$WORLD"
	in_ns "$NODE" ip address add $VIP/32 dev lo
	in_ns "$NODE" ip address add $VIP_STREAM/32 dev lo
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

# The real thing: the proxy as a process, and an ADD of the plugin for every container.
tclb() {
	local dir=$RUN/$WORLD address
	mkdir -p "$dir"/{bpf,services.d}
	mount -t bpf bpf "$dir/bpf"
	printf 'node: {name: bench, address: 10.244.1.1}\nservicesDir: %s/services.d\nlisten: ""\n' "$dir" >"$dir/tclb.yaml"
	{
		printf 'services:\n- name: load\n  vips: [%s]\n  ports:\n' $VIP
		printf '  - {name: %s, protocol: %s, port: %s, targetPort: %s}\n' http tcp 80 7001 same-core tcp 81 7002 datagrams udp 7003 7003
		printf '  backends:\n'
		printf '  - {address: %s}\n' "${B[@]}"
		printf -- '- name: stream\n  vips: [%s]\n  ports: [{protocol: tcp, port: 5201}]\n  backends: [{address: %s}]\n' $VIP_STREAM "${B[0]}"
	} >"$dir/services.d/bench.yaml"
	start "$WORLD" "$NODE" "$ROOT/bin/tclb" proxy --run-dir "$dir/run" --bpffs "$dir/bpf" --config "$dir/tclb.yaml"
	wait_for "$ROOT/bin/tclb" status --run-dir "$dir/run"
	attach client 10.244.1.2
	for address in "${B[@]}"; do attach "b${address#10.244.1.1}" "$address"; done
	wait_for all_local "$dir"
}

# attach runs the plugin as a runtime would, behind a bridge plugin that has just made the veth.
attach() {
	local dir=$RUN/$WORLD ns=/run/netns/tb-$WORLD-$1
	in_ns "$NODE" env CNI_COMMAND=ADD CNI_CONTAINERID="bench-$WORLD-$1" CNI_NETNS="$ns" CNI_IFNAME=eth0 CNI_PATH="$ROOT/bin" \
		"$ROOT/bin/tclb-cni" >"$dir/$1.result" <<-E || { cat "$dir/$1.result" >&2; exit 1; }
		{"cniVersion": "1.0.0", "name": "bench", "type": "tclb-cni", "bpffs": "$dir/bpf", "runDir": "$dir/run",
		 "prevResult": {"cniVersion": "1.0.0",
		  "interfaces": [{"name": "tb0"}, {"name": "v$1"}, {"name": "eth0", "sandbox": "$ns"}],
		  "ips": [{"address": "$2/24", "gateway": "10.244.1.1", "interface": 2}]}}
	E
}

# Every backend is delivered to its veth, none over the bridge.
all_local() {
	local rows
	rows=$(in_ns "$NODE" "$ROOT/bin/tclb" backend list --run-dir "$1/run" -o json)
	[ "$(grep -c '"local": true' <<<"$rows")" = 10 ]
}

wait_for() {
	local _
	for _ in $(seq 150); do
		! in_world "$@" >/dev/null 2>&1 || return 0
		sleep 0.1
	done
	echo "world $WORLD: not ready within 15 s: $*" >&2
	tail -n 5 "$RUN/$WORLD.log" >&2
	exit 1
}
in_world() { if [ "$(type -t "$1")" = function ]; then "$@"; else in_ns "$NODE" "$@"; fi; }

case ${2:-} in
direct) ;;
nftables | haproxy | tclb) "$2" ;;
*) sed -n '2,6{/^#/p}' "$0" >&2; exit 2 ;;
esac
