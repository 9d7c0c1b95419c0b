#!/bin/bash
# Two nodes that share a service: containers of both behind one virtual address, then one node dies.
#
# As root, after `make build` (`make demo NODES=2` does both and installs what is missing). Each node is a
# network namespace with a proxy and a podman of its own; a third one is the network between them, with
# etcd. Both nodes have the same container subnet, as podman gives it to every host. All of it is gone
# afterwards, whatever happens.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly NAME=tclb-demo
readonly WORK=/var/lib/$NAME
readonly VIP=10.96.0.10
readonly REQUESTS=${REQUESTS:-1000}
readonly ETCD=192.0.2.100
. test/demo/lib.sh

# The network between the nodes: a switch, and etcd on it.
make_network() {
	use net
	ip netns add $SPACE
	on_node ip link set lo up
	on_node ip link add lan type bridge
	on_node ip link set lan up
	on_node ip address add $ETCD/24 dev lan
	mkdir -p $WORK/etcd
	(exec nsenter --net=/run/netns/$SPACE etcd --data-dir $WORK/etcd --listen-peer-urls http://127.0.0.1:2380 \
		--listen-client-urls http://$ETCD:2379 --advertise-client-urls http://$ETCD:2379) >$WORK/etcd.log 2>&1 </dev/null 8>&- 9>&- &
	echo $! >$WORK/etcd.pid
}

# join NODE ADDRESS makes a node and plugs it into the network.
join() {
	use "$1"
	make_node "$2" "etcd: {endpoints: [http://$ETCD:2379]}"
	ip link add eth0 netns $SPACE type veth peer name "port-$NODE" netns $NAME-net
	on_node ip address add "$2/24" dev eth0
	on_node ip link set eth0 up
	nsenter --net=/run/netns/$NAME-net ip link set "port-$NODE" master lan up
}

# die takes a node away as a power cut would: from one moment to the next nobody hears of it.
die() {
	nsenter --net=/run/netns/$NAME-net ip link set "port-$1" down
	(use "$1" && end_process $DIR/proxy.pid KILL)
	for _ in $(seq 50); do
		! tclb node list | grep "$1" | grep -qw no || return 0
		sleep 0.1
	done
	fail "$NODE does not notice that $1 is gone"
}

lose_node() {
	local file=$WORK/die.txt failed
	under_load $file die node-b
	spread $file
	failed=$(failures $file)
	[ "$failed" -le 1 ] || fail "$failed requests failed"
	check $file.after web1 web2
	! grep -q 'web[34]' $file.after || fail "node-b answered after its death"
	echo "  $(wc -l <$file) requests, $failed failed (one can be in flight to node-b); the last $(wc -l <$file.after) were answered by node-a"
}

main() {
	begin
	make_network
	join node-a 192.0.2.1
	join node-b 192.0.2.2

	say "Two nodes, each with podman; the same subnet on both, etcd between them"
	start_proxy
	for i in 3 4; do start_web web$i; done
	use node-a
	start_proxy
	for i in 1 2; do start_web web$i; done
	start_client
	echo "tclb service apply -f web.yaml   (on node-a; every node has it)"
	tclb service apply -f - <<-E
		services:
		- name: web
		  vips: [$VIP]
		  ports: [{name: http, protocol: tcp, port: 80, targetPort: 8080}]
		  members: true
	E
	await_backends 4
	say "tclb node list"
	tclb node list
	tclb node ping node-b -c 2
	say "tclb service get web"
	tclb service get web

	say "$REQUESTS requests from a container on node-a to http://$VIP/, no retries"
	local began=$SECONDS
	in_client "i=0; while [ \$i -lt $REQUESTS ]; do wget -q -O- http://$VIP/ || echo FAILED; i=\$((i+1)); done" >$WORK/spread.txt
	spread $WORK/spread.txt
	check $WORK/spread.txt web1 web2 web3 web4
	echo "  $(wc -l <$WORK/spread.txt) of $REQUESTS answered, 0 failed, $((SECONDS - began)) s"

	say "Requests without end, while: node-b loses its power"
	lose_node
	say "tclb node list"
	tclb node list
	say "tclb service get web"
	tclb service get web
}

main "$@"
