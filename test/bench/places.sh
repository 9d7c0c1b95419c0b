# Sourced by the benchmark's scripts: where things are, and how to run something in a namespace.
# shellcheck shell=bash
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BENCH=$ROOT/test/bench
OUT=${OUT:-$BENCH/out}
BIN=$OUT/bin
RUN=${RUN:-/run/tclb-bench}
VIP=10.96.0.10        # three backends
VIP_STREAM=10.96.0.11 # the first backend alone: iperf3 opens two connections that must meet
mkdir -p "$OUT" "$BIN" "$RUN"

# Unlike `ip netns exec`, it leaves the mounts alone: a bpffs stays where others find it.
in_ns() { nsenter --net="/run/netns/$1" "${@:2}"; }

# backend_of WORLD N is the address of its Nth backend.
backend_of() { if [[ $1 = far-* ]]; then echo "10.244.2.1$2"; else echo "10.244.1.1$2"; fi; }

# start WORLD NAMESPACE COMMAND... runs it until the world goes down.
start() {
	(exec nsenter --net="/run/netns/$2" "${@:3}") >>"$RUN/$1.log" 2>&1 </dev/null &
	echo $! >>"$RUN/$1.pids"
}
