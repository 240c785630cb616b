#!/usr/bin/env bash
# box.sh COMMAND...: runs a command in mount, network and PID namespaces of its
# own. Whatever it mounts, sets up or leaves running is gone when it ends, and
# the ports of its loopback are its own.
set -euo pipefail
if [ "${1:-}" = --inside ]; then
	shift
	# What is mounted below /tmp is seen in both directions. The root itself must
	# be private: pivot_root (pivot.sh, and every runc) refuses a shared one.
	mount --make-rprivate /
	mount --bind /tmp /tmp
	mount --make-shared /tmp
	ip link set lo up
	# Names that the tests pull by lead to the registry of the box.
	hosts=$(mktemp)
	{ cat /etc/hosts; echo '127.0.0.1 registry.k8s.io gcr.io k8s.gcr.io'; } >"$hosts"
	mount --bind "$hosts" /etc/hosts
	exec "$@"
fi
exec unshare --mount --net --pid --fork --kill-child --mount-proc "$0" --inside "$@"
