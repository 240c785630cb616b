#!/usr/bin/env bash
# test.sh: installs missing packages, then runs the tests that need a real Docker Engine:
# the tests with the flag -docker, and critest. Everything runs in separate namespaces (box.sh), so
# that only installed packages and a cache are left on the machine.
. "$(dirname "$0")/lib.sh"
prepare_engine_tests
say "running tests on a real Docker Engine"
"$e2e/live.sh"
"$e2e/critest.sh"
say "running pods on an Engine with its own defaults in daemon.json"
for mode in '' buffered; do
	HOSTILE=1 HOSTILE_LOGS=$mode LIVE_ONLY=contrib/live LIVE_FLAGS='-run TestDaemonJSONDefaultsDoNotReachPods|TestPodRunsAndIsRemoved$|TestProcessSettingsInTheContainer' "$e2e/live.sh"
done
say "running critest for streams over WebSocket"
"$e2e/critest.sh" -websocket-exec -websocket-attach -websocket-portforward -ginkgo.focus=Streaming
