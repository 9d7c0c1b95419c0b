#!/bin/bash
# The benchmark (`make bench`, as root): what a packet costs, lookup tables, worlds side by side, CNI, control plane.
# Tables go to the terminal and to test/bench/out, with plots. `run.sh quick` takes about two minutes.
#
# A sample during which other work used more than FOREIGN percent of the CPUs does not count.
# Choose parts by PARTS="packets tables worlds nodes proxies cni control"; ROUNDS, D (seconds a sample), TESTS, WORLDS,
# FAR_WORLDS, PROXY_WORLDS.
set -euo pipefail
. "$(dirname "$0")/places.sh"
case ${1:-full} in
full) : "${FOREIGN:=12}" "${ROUNDS:=7}" "${D:=2}" "${PACKET_ROUNDS:=9}" "${CHURN:=1000000}" "${CONTAINERS:=50}" "${CHANGES:=40}" ;;
quick) : "${FOREIGN:=100}" "${ROUNDS:=1}" "${D:=1}" "${PACKET_ROUNDS:=3}" "${CHURN:=1000000}" "${CONTAINERS:=10}" "${CHANGES:=10}" ;;
*) echo "usage: run.sh [full|quick]" >&2; exit 2 ;;
esac
: "${PARTS:=packets tables worlds nodes proxies cni control}" "${TESTS:=rrsame crrsame udp streamsame}" "${WORLDS:=direct nftables haproxy tclb}"
: "${FAR_WORLDS:=far-direct far-tclb}" "${PROXY_WORLDS:=haproxy nginx userspace}"
NODE=tb-alone
export D

cleanup() {
	local status=$?
	trap '' INT TERM HUP
	"$BENCH/topology.sh" down-all || true
	ip netns delete $NODE 2>/dev/null || true
	rm -rf "$RUN"
	exit $status
}

# A namespace for the parts that need a node and no world.
alone() {
	ip netns add $NODE
	in_ns $NODE ip link set lo up
	in_ns $NODE ip address add 192.0.2.1/32 dev lo
	"$@"
	ip netns delete $NODE
}

part_packets() { alone in_ns $NODE "$BIN/packetcost" -rounds "$PACKET_ROUNDS" -churn "$CHURN"; }
part_tables() { "$BIN/tables" -plot "$OUT/tables.svg"; }
part_cni() { alone in_ns $NODE "$BIN/cniadd" -plugin-dir "$ROOT/bin" -n "$CONTAINERS"; }
part_control() { alone in_ns $NODE "$BIN/control" -proxy "$ROOT/bin/tclb" -changes "$CHANGES"; }
part_worlds() { side_by_side worlds direct "$WORLDS" "Side by side"; }
part_nodes() { side_by_side nodes far-direct "$FAR_WORLDS" "Backends on another node"; }

part_proxies() { side_by_side proxies haproxy "$PROXY_WORLDS" "In user space"; }

# side_by_side FILE BASE "WORLDS" TITLE goes round these worlds and compares them with one of them.
side_by_side() {
	local world
	for world in $3; do
		"$BENCH/topology.sh" up "$world"
		"$BENCH/topology.sh" serve "$world"
	done
	for world in $3; do "$BENCH/peers.sh" "$world" "${world/far-/far_}"; done
	sleep 1
	rm -f "$OUT/$1.tsv"
	"$BENCH/rounds.sh" "$OUT/$1.tsv" "$ROUNDS" "$TESTS" "$3" >&2
	"$BIN/kit" plot -base "$2" -foreign "$FOREIGN" "$OUT/$1.tsv" >"$OUT/$1.svg"
	printf '\n# %s: %d rounds of %s s, ' "$4" "$ROUNDS" "$D"
	"$BIN/kit" table -base "$2" -foreign "$FOREIGN" "$OUT/$1.tsv"
	for world in $3; do "$BENCH/topology.sh" down "$world"; done
}

[ "$(id -u)" = 0 ] || { echo "the benchmark needs root" >&2; exit 1; }
for tool in kit packetcost tables cniadd control; do (cd "$ROOT" && go build -buildvcs=false -o "$BIN/$tool" "./test/bench/$tool"); done
gcc -O2 -Wall -Wextra -pthread -o "$BIN/load" "$BENCH/load/load.c"
trap cleanup EXIT
trap 'exit 130' INT TERM HUP
"$BENCH/topology.sh" down-all
{
	printf '# tclb benchmark, %s, kernel %s, %s CPUs\n' "$(date -u +%F)" "$(uname -r)" "$(nproc)"
	for part in $PARTS; do "part_$part"; done
} | tee "$OUT/results.md"
printf '\nresults: %s\n' "${OUT#"$PWD"/}/results.md"
