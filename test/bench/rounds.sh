#!/bin/bash
# Interleaved measurement: in every round, for every test, go round all worlds.
#
#   rounds.sh OUT.tsv ROUNDS "TESTS" "WORLDS"       seconds a sample: D=2
#
# rrsame      request and answer on one connection, client and server on CPU 0
# crrsame     connect, request, answer, close; both on CPU 0
# udp         64-byte packets delivered: client on CPU 0, servers on CPU 1
# streamsame  iperf3 with cubic, client and server on CPU 1
#
# On one core no wake-up crosses to another, so the cost of the path shows. Worlds named `direct` are asked at a
# backend's own address, all others at the VIP. Rows: world, metric, value, CPU use of the
# machine in percent, the part of it that is not ours, round.
set -uo pipefail
. "$(dirname "$0")/places.sh"
TABLE=$1 ROUNDS=$2 TESTS=$3 WORLDS=$4 D=${D:-2}

field() { sed -nE "s/.*\b$1=([0-9.e+]+).*/\1/p" <<<"$2"; }
row() { printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" "$5" "$6" >>"$TABLE"; }

# UDP packets that arrived at a world's backends, those that found a full buffer included.
arrived() {
	local sum=0 i n
	for i in 1 2 3; do
		n=$(in_ns "tb-$1-b$i" awk '/^Udp:/ {if (head) print $2 + $6; head = 1}' /proc/net/snmp)
		sum=$((sum + n))
	done
	echo $sum
}

sample() { # round test world
	local world=$3 test=$2 same=$VIP:81 datagrams=$VIP:7003 stream=$VIP_STREAM out cpu before after use other
	if [[ $world = *direct ]]; then
		stream=$(backend_of "$world" 1)
		same=$stream:7002 datagrams=$stream:7003
	fi
	cpu=$(mktemp)
	"$BIN/kit" cpu -for "${D}s" -ours tb- >"$cpu" &
	local sampler=$!
	case $test in
	rrsame) out=$(in_ns "tb-$world-client" timeout 30 taskset -c 0 "$BIN/load" rr "$same" "$D" 1) ;;
	crrsame) out=$(in_ns "tb-$world-client" timeout 30 taskset -c 0 "$BIN/load" crr "$same" "$D" 1) ;;
	udp)
		before=$(arrived "$world")
		out=$(in_ns "tb-$world-client" timeout 30 taskset -c 0 "$BIN/load" udp "$datagrams" "$D" 18 1)
		sleep 0.1
		after=$(arrived "$world")
		;;
	streamsame) out=$(in_ns "tb-$world-client" timeout 30 taskset -c 1 iperf3 -C cubic -c "$stream" -p 5201 -t "$D" -J --connect-timeout 3000 | "$BIN/kit" iperf3) ;;
	*) echo "unknown test $test" >&2; exit 2 ;;
	esac
	wait $sampler
	use=$(field busy "$(cat "$cpu")") other=$(field foreign "$(cat "$cpu")")
	rm -f "$cpu"
	case $test in
	streamsame) row "$world" "stream, Gbit/s" "$(field gbits "$out")" "$use" "$other" "$1" ;;
	udp) row "$world" "UDP 64 B, packets/s" "$(awk "BEGIN {print ($after - $before) / $(field sec "$out")}")" "$use" "$other" "$1" ;;
	*)
		local name=request/response
		[ "$test" = rrsame ] || name=connect-request-close
		row "$world" "$name, per s" "$(field rate "$out")" "$use" "$other" "$1"
		row "$world" "$name, p50 us" "$(field p50us "$out")" "$use" "$other" "$1"
		row "$world" "$name, p99 us" "$(field p99us "$out")" "$use" "$other" "$1"
		[ "$(field fails "$out")" = 0 ] || echo "world $world, $test: $(field fails "$out") requests failed" >&2
		;;
	esac
}

for ((round = 1; round <= ROUNDS; round++)); do
	for test in $TESTS; do
		for world in $WORLDS; do
			[ "$world:$test" = haproxy:udp ] || sample "$round" "$test" "$world" # HAProxy does no UDP
		done
	done
done
