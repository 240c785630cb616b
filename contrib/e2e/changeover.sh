#!/usr/bin/env bash
# changeover.sh [VERSION...]: make test-changeover: a node changes from a real cri-dockerd to
# berthd and back under running pods (TestChangeoverFromCRIDockerdAndBack). Each version is built from its
# module, which takes some minutes the first time; 0.4.0 needs Docker 23 or newer. ENGINE is as for live.sh.
. "$(dirname "$0")/lib.sh"
need go=golang
[ $# -gt 0 ] || set -- v0.3.17 v0.4.3
for version; do
	program=$(cri_dockerd "$version")
	say "cri-dockerd $version"
	LIVE_ONLY=contrib/live LIVE_FLAGS="-v -run TestChangeoverFromCRIDockerdAndBack" LIVE_ARGS="-cri-dockerd $program" "$e2e/live.sh"
done
