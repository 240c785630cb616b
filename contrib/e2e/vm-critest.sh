#!/usr/bin/env bash
# vm-critest.sh [flags of critest]: make test-vm-critest: runs vm-critest-story.sh in a VM
# (vm.sh): critest and the tests of contrib/live with cgroup v2, the systemd
# driver, AppArmor and all capabilities, which this machine may lack.
# LIVE_RUN selects tests of contrib/live, as go test -run does; LIVE_RUN=none runs none, CRITEST=none leaves out critest.
. "$(dirname "$0")/lib.sh"
need go=golang busybox=busybox-static
"$e2e/busybox.sh"
build_berthd
build_tools
[ -f "$cache/registry/complete" ] || die "the images of critest are missing: run make test-engine first, which builds them"
w=$(mktemp -d /tmp/berth-vm.XXXXXX)
trap 'rm -rf "$w"' EXIT
mkdir -p "$w/cache"
cp -r "$cache/registry" "$w/cache/"
cp "$top"/bin/{berthd,berth-oci} "$cache/bin/critest" "$cache/busybox" "$e2e/registry.sh" "$e2e/critest.known" "$w/"
(cd "$e2e" && CGO_ENABLED=0 go build -o "$w/verdict" ./verdict)
(cd "$top" && CGO_ENABLED=0 go test -c -o "$w/live.test" ./contrib/live)
printf '%s\n' "$@" >"$w/flags"
echo "${LIVE_RUN:-.}" >"$w/run"
echo "${CRITEST:-all}" >"$w/critest.run"
VM_MEM=${VM_MEM:-6144} VM_LIMIT=${VM_LIMIT:-7200} "$e2e/vm.sh" "$e2e/vm-critest-story.sh" "$w"/*
