#!/bin/bash
# The main job, for real: three podman containers behind one virtual address, a fourth asks it.
#
# As root, after `make build` (`make demo` does both and installs podman). Everything lives in a network
# namespace and a directory of its own, with storage, configuration and locks apart from the
# machine's podman, and is gone afterwards, whatever happens.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly NAME=tclb-demo
readonly WORK=/var/lib/$NAME
readonly VIP=10.96.0.10
readonly REQUESTS=${REQUESTS:-1000}
. test/demo/lib.sh

drain_and_stop() {
	tclb backend drain web $NAME-web2 --wait=20s
	podman stop $NAME-web2 >/dev/null
	await_backends 2
}

kill_unannounced() {
	podman kill $NAME-web3 >/dev/null
	await_backends 1
}

stop_one() {
	local file=$WORK/stop.txt
	under_load $file drain_and_stop
	spread $file
	check $file web1 web2 web3
	check $file.after web1 web3
	! grep -qx web2 $file.after || fail "web2 answered after it was stopped"
	echo "  $(wc -l <$file) requests, 0 failed; the last $(wc -l <$file.after) went to the two that are left"
}

# The client has one request on its way at a time, so one may be in the hands of who is killed.
kill_one() {
	local file=$WORK/kill.txt failed
	under_load $file kill_unannounced
	spread $file
	failed=$(failures $file)
	[ "$failed" -le 1 ] || fail "$failed requests failed"
	check $file.after web1
	echo "  $(wc -l <$file) requests, $failed failed (one can be in flight); the last $(wc -l <$file.after) went to the one that is left"
}

main() {
	begin
	use demo
	make_node 192.0.2.77
	cat >$DIR/services.d/web.yaml <<-E
		services:
		- name: web
		  vips: [$VIP]
		  ports: [{name: http, protocol: tcp, port: 80, targetPort: 8080}]
		  members: true
	E

	say "A node: tclb proxy, and podman with a CNI network that chains tclb-cni"
	start_proxy
	for i in 1 2 3; do start_web web$i; done
	start_client
	await_backends 3
	say "tclb service get web"
	tclb service get web

	say "$REQUESTS requests from the client container to http://$VIP/, no retries"
	local began=$SECONDS
	in_client "i=0; while [ \$i -lt $REQUESTS ]; do wget -q -O- http://$VIP/ || echo FAILED; i=\$((i+1)); done" >$WORK/spread.txt
	spread $WORK/spread.txt
	check $WORK/spread.txt web1 web2 web3
	echo "  $(wc -l <$WORK/spread.txt) of $REQUESTS answered, 0 failed, $((SECONDS - began)) s"
	echo "  from the node itself: $(on_node busybox wget -q -O- http://$VIP/)"

	say "Requests without end, while: tclb backend drain web $NAME-web2 --wait && podman stop $NAME-web2"
	stop_one
	say "Requests without end, while: podman kill $NAME-web3"
	kill_one
	say "tclb service get web"
	tclb service get web
}

main "$@"
