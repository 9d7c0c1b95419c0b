#!/bin/bash
# Copies the headers that are here anew from Debian's libbpf-dev and linux-libc-dev (x86).
# Then: `make generate datapath`, and commit the difference with the versions in README.md. If a
# new header needs one that is not here, the compiler names it: `touch` it and run this again.
set -eu
cd "$(dirname "$0")"

dpkg-query -W -f '${Package} ${Version}\n' libbpf-dev linux-libc-dev

find . -name '*.h' -printf '%P\n' | sort | while read -r header; do
	for root in /usr/include /usr/include/x86_64-linux-gnu; do
		if [ -f "$root/$header" ]; then
			cp "$root/$header" "$header"
			continue 2
		fi
	done
	echo "no package has $header" >&2
	exit 1
done
