#!/usr/bin/env bash
# test.sh: installs what is missing, then runs what needs a real Docker Engine:
# the tests behind -docker, and critest. Everything runs in boxes (box.sh), so
# that nothing is left on the machine but installed packages and a cache.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || die "tests on a real Docker Engine need root"
need_engine
need_cni
need docker-registry=docker-registry busybox=busybox-static nginx=nginx-light openssl=openssl curl=curl gcc=build-essential
"$e2e/busybox.sh"
say "building"
build_berthd
build_tools
say "tests on a real Docker Engine"
"$e2e/live.sh"
"$e2e/critest.sh"
say "pods on an Engine with defaults of its own"
for mode in '' buffered; do
	HOSTILE=1 HOSTILE_LOGS=$mode LIVE_ONLY=contrib/live LIVE_FLAGS='-run TestDaemonJSONDefaultsDoNotReachPods|TestPodRunsAndIsRemoved$|TestProcessSettingsInTheContainer' "$e2e/live.sh"
done
say "streams over WebSocket"
"$e2e/critest.sh" -websocket-exec -websocket-attach -websocket-portforward -ginkgo.focus=Streaming
