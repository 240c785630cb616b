#!/usr/bin/env bash
# vm-test.sh: make test-vm: runs vm-story.sh in a VM (vm.sh), with the deb of dist/packages.
. "$(dirname "$0")/lib.sh"
need go=golang busybox=busybox-static
[ -x "$cache/bin/crictl" ] || build_tools
w=$(mktemp -d /tmp/berth-vm.XXXXXX)
trap 'rm -rf "$w"' EXIT
mkdir -p "$w/bb/bin" "$w/bb/tmp"
cp "$(command -v busybox)" "$w/bb/bin/busybox"
for a in sh sleep hostname ip echo cat; do ln -s busybox "$w/bb/bin/$a"; done
next_package "$w/next"
build_berthd
mkdir "$w/bin" "$w/packaging"
cp "$top/bin/berthd" "$w/bin/"
cp "$top"/packaging/{berth.service,berth.socket,config.yaml} "$w/packaging/"
program=$(cri_dockerd v0.4.3)
"$top/packaging/peer.sh" "$w/peer" "$program"
"$e2e/vm.sh" "$e2e/vm-story.sh" "$e2e/story.sh" "$top"/{README.md,contrib/docs} "$top"/dist/packages/berth_*_amd64.deb "$w"/peer/*.deb "$cache/bin/crictl" "$w"/{bb,next,bin,packaging}
