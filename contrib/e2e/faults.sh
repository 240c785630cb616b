#!/usr/bin/env bash
# faults.sh: make test-faults: berthd under faults of berthd itself, of Docker, of network
# plugins, of disks, of limits and of clients, each followed by an audit of the node
# (contrib/live, TestFaults). FAULTS is a pattern of the subtests to run, as for go
# test -run; ENGINE is as for live.sh.
#
# faults.sh soak [DURATION]: make soak: runs pods as a kubelet does for an hour, or DURATION,
# with random faults (TestSoak). SEED repeats the choices of an earlier run.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || die "faults of a real Docker Engine need root"
need_engine
need_cni
need busybox=busybox-static curl=curl
[ -x "$cache/busybox" ] || "$e2e/busybox.sh"
may_lower_oom || [ -x "$cache/bin/runc-clamp" ] || build_tools
export LIVE_TIMEOUT=0 ENGINE_RESTARTS=1 ENGINE_FLAGS="--live-restore ${ENGINE_FLAGS:-}" LIVE_ONLY=contrib/live
if [ "${1:-}" = soak ]; then
	LIVE_FLAGS='-v -run ^TestSoak$' LIVE_ARGS="-soak ${2:-1h} -seed ${SEED:-0}" exec "$e2e/live.sh"
fi
FAULTS=${FAULTS:-}
FAULTS=${FAULTS// /_} # as in the names of go test
LIVE_FLAGS="-v -run ^TestFaults\$${FAULTS:+/$FAULTS}" LIVE_ARGS=-faults exec "$e2e/live.sh"
