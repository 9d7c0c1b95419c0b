# What the demos share: a node in a network namespace with places of its own, podman on it, requests and
# their count. Sourced, after NAME, WORK and VIP are set.
#
# A demo's nodes are called by short names: the functions act on $NODE, which `use` sets.

readonly IMAGE=localhost/$NAME:latest
NODE= SPACE= DIR=

say() { if [ -t 1 ]; then printf '\n\e[1m%s\e[0m\n' "$*"; else printf '\n%s\n' "$*"; fi; }
fail() {
	echo "demo: $*" >&2
	exit 1
}

# use NODE makes it the one that the functions below act on.
use() { NODE=$1 SPACE=$NAME-$1 DIR=$WORK/$1; }

# A process is on a node by being in its network namespace. What stays running must hold neither the lock nor
# the terminal.
on_node() { nsenter --net=/run/netns/$SPACE "$@" 8>&- 9>&-; }
tclb() { on_node bin/tclb "$@" --run-dir $DIR/run --bpffs $DIR/bpf --config $DIR/tclb.yaml; }
# No storage driver that needs help from the file system below; copies of busybox are small.
podman() {
	on_node env HOME=$DIR TMPDIR=$DIR/tmp CONTAINERS_CONF=$DIR/containers.conf \
		CONTAINERS_STORAGE_CONF=$DIR/storage.conf podman --tmpdir $DIR/libpod "$@"
}

# end_process FILE [SIGNAL] ends the program of ours whose number is in FILE, and waits for it.
end_process() {
	local pid
	[ -f "$1" ] || return 0
	pid=$(cat "$1")
	# After a crash the number may be somebody else's by now.
	case $(readlink "/proc/$pid/exe" 2>/dev/null) in "$PWD/bin/tclb" | */etcd) ;; *) return 0 ;; esac
	kill "-${2:-TERM}" "$pid"
	for _ in $(seq 50); do
		[ -e "/proc/$pid/exe" ] || return 0
		sleep 0.1
	done
	kill -KILL "$pid"
}

remove_node() {
	if [ -e /run/netns/$SPACE ] && [ -d $DIR ]; then
		[ ! -f $DIR/containers.conf ] || podman rm --all --force --time 0 >/dev/null 2>&1 || true
		end_process $DIR/proxy.pid
		[ ! -f $DIR/tclb.yaml ] || tclb uninstall >/dev/null 2>&1 || true
	fi
}

remove_all() {
	local mounted space
	for space in /run/netns/$NAME-*; do
		[ -e "$space" ] || continue
		use "${space#/run/netns/$NAME-}"
		remove_node
	done
	end_process $WORK/etcd.pid
	awk -v below="$WORK/" 'index($2, below) == 1 {print $2}' /proc/mounts | sort -r | while read -r mounted; do
		umount -l "$mounted" || true
	done
	for space in /run/netns/$NAME-*; do [ ! -e "$space" ] || ip netns delete "${space#/run/netns/}"; done
	find /sys/fs/cgroup -depth -type d -path "*/$NAME*" -exec rmdir {} + 2>/dev/null || true
	rm -f /var/lib/cni/results/$NAME-*
	rm -rf --one-file-system $WORK
}

# What remove_all should have removed and did not.
leftovers() {
	local path
	for path in /run/netns/$NAME-* $WORK $(find /sys/fs/cgroup -maxdepth 2 -name "$NAME*") /var/lib/cni/results/$NAME-*; do
		[ ! -e "$path" ] || echo "left over: $path"
	done
	grep " $WORK" /proc/mounts || true
	pgrep -af "$WORK/" || true
}

cleanup() {
	local status=$? log
	trap '' INT TERM HUP
	trap - EXIT
	exec >&8 # an interrupted command may have had its output elsewhere
	for log in $WORK/*/proxy.log $WORK/etcd.log; do
		[ $status != 0 ] && [ -s "$log" ] || continue
		echo "--- ${log#$WORK/}" >&2
		tail -n 20 "$log" >&2
	done
	say "Cleaning up"
	remove_all
	[ $status != 0 ] || [ -z "$(leftovers)" ] || status=1
	leftovers >&2
	[ $status = 0 ] && echo "nothing is left; $SECONDS s in all" || echo "demo: not passed (status $status)" >&2
	exit $status
}

# begin checks what a demo needs, and takes away what one that was killed left.
begin() {
	[ "$(id -u)" = 0 ] || fail "needs root"
	[ -x bin/tclb ] && [ -x bin/tclb-cni ] || fail "bin/ is empty: run 'make build'"
	exec 8>&1 9>/run/$NAME.lock
	flock -n 9 || fail "another demo is running"
	remove_all
	trap cleanup EXIT
	trap 'exit 130' INT TERM HUP
}

# make_node ADDRESS [LINES...] makes the node's namespace and configuration; lines are added to tclb.yaml.
make_node() {
	local address=$1
	shift
	ip netns add $SPACE
	on_node ip link set lo up
	on_node ip address add $address/32 dev lo
	mkdir -p $DIR/{cni,services.d,tmp,run,bpf}
	printf '%s\n' "node: {name: $NODE, address: $address}" "servicesDir: $DIR/services.d" 'listen: ""' "$@" >$DIR/tclb.yaml
	cat >$DIR/cni/$NAME.conflist <<-E
		{
		  "cniVersion": "1.0.0", "name": "$NAME",
		  "plugins": [
		    {"type": "bridge", "bridge": "tclbdemo0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
		     "ipam": {"type": "host-local", "dataDir": "$DIR/ipam",
		              "ranges": [[{"subnet": "10.89.77.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
		    {"type": "tclb-cni", "capabilities": {"aliases": true}, "joinByName": true,
		     "bpffs": "$DIR/bpf", "runDir": "$DIR/run"}
		  ]
		}
	E
	configure_podman
	make_image
}

# The limits are those that podman may set without further capabilities; runc, because crun of
# Debian 12 refuses mixed cgroups.
configure_podman() {
	local files processes
	files=$(ulimit -Hn)
	[ "$files" != unlimited ] || files=1048576
	processes=$(cat /proc/sys/kernel/pid_max)
	cat >$DIR/containers.conf <<-E
		[containers]
		default_ulimits = ["nofile=$files:$files", "nproc=$processes:$processes"]
		[network]
		network_backend = "cni"
		network_config_dir = "$DIR/cni"
		default_network = "$NAME"
		cni_plugin_dirs = ["$PWD/bin", "/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"]
		[engine]
		cgroup_manager = "cgroupfs"
		events_logger = "file"
		lock_type = "file"
		runtime = "runc"
		tmp_dir = "$DIR/libpod"
	E
	cat >$DIR/storage.conf <<-E
		[storage]
		driver = "vfs"
		graphroot = "$DIR/storage"
		runroot = "$DIR/storage-run"
	E
}

# An image of one file; no registry is asked.
make_image() {
	local applet
	mkdir -p $DIR/root/{bin,www,tmp,etc}
	cp "$(command -v busybox)" $DIR/root/bin/busybox
	for applet in sh sleep httpd wget cat timeout; do ln -s busybox $DIR/root/bin/$applet; done
	tar -C $DIR/root -c . | podman import -q -c 'ENV PATH=/bin' - $IMAGE >/dev/null
}

start_proxy() {
	# exec, so that the number is the proxy's own
	(exec nsenter --net=/run/netns/$SPACE bin/tclb proxy --run-dir $DIR/run --bpffs $DIR/bpf --config $DIR/tclb.yaml) \
		>$DIR/proxy.log 2>&1 </dev/null 8>&- 9>&- &
	echo $! >$DIR/proxy.pid
	disown
	for _ in $(seq 100); do
		! tclb status >/dev/null 2>&1 || return 0
		kill -0 "$(cat $DIR/proxy.pid)" 2>/dev/null || fail "the proxy ended"
		sleep 0.1
	done
	fail "the proxy did not answer within 10 s"
}

# start_web NAME starts a container that joins the service by its network alias and says its name.
start_web() {
	podman run -d --cgroup-parent /$NAME --name $NAME-$1 --network-alias web $IMAGE \
		sh -c "echo $1 >/www/index.html; trap exit TERM; httpd -f -p 8080 -h /www & wait" >/dev/null
	echo "started $NAME-$1   (podman run --network-alias web ...)"
}

start_client() {
	# A first process that waits for others' children: requests with a time limit leave some behind.
	podman run -d --cgroup-parent /$NAME --name $NAME-client $IMAGE sh -c 'trap exit TERM; while :; do sleep 1; done' >/dev/null
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

# failures FILE counts the requests that were not answered.
failures() { grep -cv '^web[0-9]$' "$1" || true; }

# check FILE BACKENDS...: every request was answered, and every one of these answered some.
check() {
	local file=$1 backend failed
	shift
	failed=$(failures "$file")
	[ "$failed" = 0 ] || fail "$failed of $(wc -l <"$file") requests failed"
	for backend; do grep -qx "$backend" "$file" || fail "$backend got no request"; done
}

# under_load FILE COMMAND... runs the command a second into a steady load, which goes on a second more.
# FILE gets all answers, FILE.after those from when the command was done.
under_load() {
	local file=$1 load done_at
	shift
	in_client "rm -f /tmp/enough; while [ ! -e /tmp/enough ]; do timeout 5 wget -q -O- http://$VIP/ || echo FAILED; done" >"$file" 2>/dev/null &
	load=$!
	sleep 1
	"$@"
	done_at=$(wc -l <"$file")
	sleep 1
	in_client ': >/tmp/enough'
	wait $load || fail "the client ended early"
	tail -n +$((done_at + 2)) "$file" >"$file.after" # the next one may have been on its way
}

