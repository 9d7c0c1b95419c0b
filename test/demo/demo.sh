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
readonly IMAGE=localhost/$NAME:latest

say() { if [ -t 1 ]; then printf '\n\e[1m%s\e[0m\n' "$*"; else printf '\n%s\n' "$*"; fi; }
fail() {
	echo "demo: $*" >&2
	exit 1
}

# The demo's node: a process is on it by being in its network namespace. What stays running must
# hold neither the lock nor the terminal.
on_node() { nsenter --net=/run/netns/$NAME "$@" 8>&- 9>&-; }
tclb() { on_node bin/tclb "$@" --run-dir $WORK/run --bpffs $WORK/bpf --config $WORK/tclb.yaml; }
# No storage driver that needs help from the file system below; four copies of busybox are small.
podman() {
	on_node env HOME=$WORK TMPDIR=$WORK/tmp CONTAINERS_CONF=$WORK/containers.conf \
		CONTAINERS_STORAGE_CONF=$WORK/storage.conf podman --tmpdir $WORK/libpod "$@"
}

stop_proxy() {
	local pid
	[ -f $WORK/proxy.pid ] || return 0
	pid=$(cat $WORK/proxy.pid)
	# After a crash the number may be somebody else's by now.
	[ "$(readlink "/proc/$pid/exe" 2>/dev/null)" = "$PWD/bin/tclb" ] || return 0
	kill "$pid"
	for _ in $(seq 50); do
		[ -e "/proc/$pid/exe" ] || return 0
		sleep 0.1
	done
	kill -KILL "$pid"
}

remove_all() {
	local mounted
	if [ -e /run/netns/$NAME ] && [ -d $WORK ]; then
		[ ! -f $WORK/containers.conf ] || podman rm --all --force --time 0 >/dev/null 2>&1 || true
		stop_proxy
		[ ! -f $WORK/tclb.yaml ] || tclb uninstall >/dev/null 2>&1 || true
	fi
	awk -v below="$WORK/" 'index($2, below) == 1 {print $2}' /proc/mounts | sort -r | while read -r mounted; do
		umount -l "$mounted" || true
	done
	[ ! -e /run/netns/$NAME ] || ip netns delete $NAME
	find /sys/fs/cgroup -depth -type d -path "*/$NAME*" -exec rmdir {} + 2>/dev/null || true
	rm -f /var/lib/cni/results/$NAME-*
	rm -rf --one-file-system $WORK
}

# What remove_all should have removed and did not.
leftovers() {
	local path
	for path in /run/netns/$NAME $WORK $(find /sys/fs/cgroup -maxdepth 2 -name "$NAME*") /var/lib/cni/results/$NAME-*; do
		[ ! -e "$path" ] || echo "left over: $path"
	done
	grep " $WORK" /proc/mounts || true
	pgrep -af "$WORK/" || true
}

cleanup() {
	local status=$?
	trap '' INT TERM HUP
	trap - EXIT
	exec >&8 # an interrupted command may have had its output elsewhere
	if [ $status != 0 ] && [ -s $WORK/proxy.log ]; then
		echo "--- the proxy's log" >&2
		tail -n 20 $WORK/proxy.log >&2
	fi
	say "Cleaning up"
	remove_all
	[ $status != 0 ] || [ -z "$(leftovers)" ] || status=1
	leftovers >&2
	[ $status = 0 ] && echo "nothing is left; $SECONDS s in all" || echo "demo: not passed (status $status)" >&2
	exit $status
}

write_configuration() {
	mkdir -p $WORK/{cni,services.d,tmp,run,bpf,root}
	cat >$WORK/tclb.yaml <<-E
		node: {name: demo, address: 192.0.2.77}
		servicesDir: $WORK/services.d
		listen: ""
	E
	cat >$WORK/services.d/web.yaml <<-E
		services:
		- name: web
		  vips: [$VIP]
		  ports: [{name: http, protocol: tcp, port: 80, targetPort: 8080}]
		  members: true
	E
	cat >$WORK/cni/$NAME.conflist <<-E
		{
		  "cniVersion": "1.0.0", "name": "$NAME",
		  "plugins": [
		    {"type": "bridge", "bridge": "tclbdemo0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
		     "ipam": {"type": "host-local", "dataDir": "$WORK/ipam",
		              "ranges": [[{"subnet": "10.89.77.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
		    {"type": "tclb-cni", "capabilities": {"aliases": true}, "joinByName": true,
		     "bpffs": "$WORK/bpf", "runDir": "$WORK/run"}
		  ]
		}
	E
	write_podman_configuration
}

# The limits are those that podman may set without further capabilities; runc, because crun of
# Debian 12 refuses mixed cgroups.
write_podman_configuration() {
	local files processes
	files=$(ulimit -Hn)
	[ "$files" != unlimited ] || files=1048576
	processes=$(cat /proc/sys/kernel/pid_max)
	cat >$WORK/containers.conf <<-E
		[containers]
		default_ulimits = ["nofile=$files:$files", "nproc=$processes:$processes"]
		[network]
		network_backend = "cni"
		network_config_dir = "$WORK/cni"
		default_network = "$NAME"
		cni_plugin_dirs = ["$PWD/bin", "/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"]
		[engine]
		cgroup_manager = "cgroupfs"
		events_logger = "file"
		lock_type = "file"
		runtime = "runc"
		tmp_dir = "$WORK/libpod"
	E
	cat >$WORK/storage.conf <<-E
		[storage]
		driver = "vfs"
		graphroot = "$WORK/storage"
		runroot = "$WORK/storage-run"
	E
}

# An image of one file; no registry is asked.
make_image() {
	local applet
	mkdir -p $WORK/root/{bin,www,tmp,etc}
	cp "$(command -v busybox)" $WORK/root/bin/busybox
	for applet in sh sleep httpd wget cat; do ln -s busybox $WORK/root/bin/$applet; done
	tar -C $WORK/root -c . | podman import -q -c 'ENV PATH=/bin' - $IMAGE >/dev/null
}

start_proxy() {
	# exec, so that the number is the proxy's own
	(exec nsenter --net=/run/netns/$NAME bin/tclb proxy --run-dir $WORK/run --bpffs $WORK/bpf --config $WORK/tclb.yaml) \
		>$WORK/proxy.log 2>&1 </dev/null 8>&- 9>&- &
	echo $! >$WORK/proxy.pid
	for _ in $(seq 100); do
		! tclb status >/dev/null 2>&1 || return 0
		kill -0 "$(cat $WORK/proxy.pid)" 2>/dev/null || fail "the proxy ended"
		sleep 0.1
	done
	fail "the proxy did not answer within 10 s"
}

start_containers() {
	local i
	for i in 1 2 3; do
		podman run -d --cgroup-parent /$NAME --name $NAME-web$i --network-alias web $IMAGE \
			sh -c "echo web$i >/www/index.html; trap exit TERM; httpd -f -p 8080 -h /www & wait" >/dev/null
		echo "started $NAME-web$i   (podman run --network-alias web ...)"
	done
	podman run -d --cgroup-parent /$NAME --name $NAME-client $IMAGE sleep 600 >/dev/null
	echo "started $NAME-client"
}

# Joining is felt within a second; ask the maps, not a clock.
await_backends() {
	local want=$1 have=
	for _ in $(seq 50); do
		have=$(tclb backend list web -o json | grep -c '"address"' || true)
		[ "$have" != "$want" ] || return 0
		sleep 0.1
	done
	fail "$have backends instead of $want"
}

in_client() { podman exec $NAME-client sh -c "$1"; }

# spread FILE prints who answered how often, as a table with bars.
spread() {
	sort "$1" | uniq -c | awk '
		{count[$2] = $1; sum += $1; order[++n] = $2}
		END {
			printf "  %-8s %9s %8s\n", "BACKEND", "REQUESTS", "SHARE"
			for (i = 1; i <= n; i++) {
				share = count[order[i]] / sum
				bar = ""
				for (j = 0; j < share * 60; j++) bar = bar "█"
				printf "  %-8s %9d %6.1f %%  %s\n", order[i], count[order[i]], 100 * share, bar
			}
		}'
}

# check FILE BACKENDS...: every request was answered, and every one of these answered some.
check() {
	local file=$1 backend failed
	shift
	failed=$(grep -cv '^web[123]$' "$file" || true)
	[ "$failed" = 0 ] || fail "$failed of $(wc -l <"$file") requests failed"
	for backend; do grep -qx "$backend" "$file" || fail "$backend got no request"; done
}

# under_load FILE COMMAND... runs the command a second into a steady load, which goes on a second more.
# FILE gets all answers, FILE.after those from when the command was done.
under_load() {
	local file=$1 load done_at
	shift
	in_client "rm -f /tmp/enough; while [ ! -e /tmp/enough ]; do wget -q -O- http://$VIP/ || echo FAILED; done" >"$file" 2>/dev/null &
	load=$!
	sleep 1
	"$@"
	done_at=$(wc -l <"$file")
	sleep 1
	in_client ': >/tmp/enough'
	wait $load || fail "the client ended early"
	tail -n +$((done_at + 2)) "$file" >"$file.after" # the next one may have been on its way
}

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
	failed=$(grep -cv '^web[123]$' $file || true)
	[ "$failed" -le 1 ] || fail "$failed requests failed"
	check $file.after web1
	echo "  $(wc -l <$file) requests, $failed failed (one can be in flight); the last $(wc -l <$file.after) went to the one that is left"
}

main() {
	[ "$(id -u)" = 0 ] || fail "needs root"
	[ -x bin/tclb ] && [ -x bin/tclb-cni ] || fail "bin/ is empty: run 'make build'"
	exec 8>&1 9>/run/$NAME.lock
	flock -n 9 || fail "another demo is running"
	remove_all # what a demo that was killed left
	trap cleanup EXIT
	trap 'exit 130' INT TERM HUP

	ip netns add $NAME
	on_node ip link set lo up
	on_node ip address add 192.0.2.77/32 dev lo
	write_configuration
	make_image

	say "A node: tclb proxy, and podman with a CNI network that chains tclb-cni"
	start_proxy
	start_containers
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
