#!/usr/bin/env bash
# box.sh COMMAND...: runs a command in separate mount, network and PID namespaces. Mounts,
# network interfaces, processes and cgroups that it leaves are removed when it ends; its
# loopback ports do not conflict with those of the machine. Before, it installs the Docker Engine that ENGINE selects.
set -euo pipefail
if [ "${1:-}" = --inside ]; then
	shift
	# Mounts below /tmp propagate in both directions. The root mount must be
	# private: pivot_root (pivot.sh, and every runc) refuses a shared one.
	mount --make-rprivate /
	# Once only: of two mounts at one path Docker 24 takes that below for the one that a volume is on.
	[ -n "${BOX_INNER:-}" ] || mount --bind /tmp /tmp
	mount --make-shared /tmp
	ip link set lo up
	# The kernel has the hugetlb controller, but not every machine mounts it.
	if grep -Eq '^hugetlb\s.*\s1$' /proc/cgroups && [ -d /sys/fs/cgroup/memory ] && [ ! -d /sys/fs/cgroup/hugetlb ]; then
		groups=$(mktemp -d)
		mount --rbind /sys/fs/cgroup "$groups"
		mount -t tmpfs -o mode=755 cgroups /sys/fs/cgroup
		for g in "$groups"/*; do
			to=/sys/fs/cgroup/${g##*/}
			if [ -L "$g" ]; then cp -P "$g" "$to"; else mkdir "$to" && mount --bind "$g" "$to"; fi
		done
		mkdir /sys/fs/cgroup/hugetlb
		mount -t cgroup -o hugetlb hugetlb /sys/fs/cgroup/hugetlb
		umount -R "$groups"
		rmdir "$groups"
	fi
	# The registry names that the tests use resolve to the registry in these namespaces.
	hosts=$(mktemp)
	chmod 644 "$hosts"
	{ cat /etc/hosts; echo '127.0.0.1 registry.k8s.io gcr.io k8s.gcr.io'; } >"$hosts"
	mount --bind "$hosts" /etc/hosts # removed at the end only: pods may mount it, too
	cgroups() { { find /sys/fs/cgroup -mindepth 2 -type d 2>/dev/null || true; } | sort -r; } # another box may remove some meanwhile
	before=$(cgroups)
	code=0
	"$@" || code=$?
	rm "$hosts"
	# Kill all remaining processes, so that their cgroups can be removed.
	kill -KILL -1 2>/dev/null || true
	# All boxes see the same cgroups: with BOX_INNER=1 another box, around this one, removes them once nothing runs any more.
	[ -z "${BOX_INNER:-}" ] || exit "$code"
	for _ in 1 2 3 4 5; do
		left=$(comm -13 <(sort <<<"$before") <(cgroups | sort) | sort -r)
		[ -n "$left" ] || break
		xargs rmdir 2>/dev/null <<<"$left" || sleep 0.2
	done
	exit "$code"
fi
# There is no network inside. A box in a box (BOX_INNER) finds it installed.
[ -z "${ENGINE:-}" ] || [ -n "${BOX_INNER:-}" ] || (. "$(dirname "$0")/lib.sh" && install_engine)
exec unshare --mount --net --pid --fork --kill-child --mount-proc "$0" --inside "$@"
