#!/usr/bin/env bash
# machines-test.sh: starts the berthd of each architecture that this machine is not of,
# from its deb, and runs unit tests that depend on the size of integers and the order of
# bytes. It uses the emulators of qemu-user, without binfmt_misc.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/.." && pwd)
. "$top/contrib/e2e/lib.sh"
. "$top/contrib/e2e/story.sh"
need qemu-s390x=qemu-user dpkg-deb=dpkg rpm=rpm cpio=cpio
dist=$top/dist/packages
w=$(mktemp -d /tmp/berth-machines.XXXXXX)
trap 'rm -rf "$w"' EXIT

# The names of each architecture in SBOMs, Debian, rpm, qemu and Go.
machines='
amd64   amd64   x86_64  x86_64  amd64
arm64   arm64   aarch64 aarch64 arm64
armv7   armhf   armv7hl arm     arm
ppc64le ppc64el ppc64le ppc64le ppc64le
riscv64 riscv64 riscv64 riscv64 riscv64
s390x   s390x   s390x   s390x   s390x'

# doctor EMULATOR BERTHD: the report of berthd doctor on a node without Docker.
doctor() {
	local code=0
	# Emulators cannot enter namespaces of the test; the empty configuration and the address keep the
	# node's own Docker out of it.
	timeout 120 "$1" "$2" doctor --config /dev/null --docker-endpoint "unix://$w/no-docker.sock" >"$w/doctor" 2>&1 || code=$?
	if [ $code != 1 ] || grep -qE 'panic|SIGSEGV|fatal error|qemu: ' "$w/doctor" || ! grep -q "^fail  docker .*no-docker.sock" "$w/doctor" || ! grep -q "^ok    cri-dockerd" "$w/doctor"; then
		echo "exit code $code, want 1:"
		cat "$w/doctor"
		return 1
	fi
}

while read -r name deb rpm qemu goarch; do
	[ -n "$name" ] || continue
	say "$name"
	[ "$(dpkg-deb -f "$dist"/berth_*_"$deb".deb Architecture)" = "$deb" ] || die "no deb for $deb"
	[ "$(rpm -qp --nosignature --qf '%{ARCH}' "$dist"/berth-*."$rpm".rpm)" = "$rpm" ] || die "no rpm for $rpm"
	dpkg-deb -x "$dist"/berth_*_"$deb".deb "$w/$name"
	# rpm2cpio exits with 1 after it has written everything: rpmpack 0.7.1 records the size of the files as that of the archive.
	(cd "$w" && { rpm2cpio "$dist"/berth-*."$rpm".rpm || true; } | cpio -i --quiet --to-stdout '*/usr/bin/berthd') | cmp - "$w/$name/usr/bin/berthd" || die "deb and rpm for $name contain different programs"
	[ "$goarch" != "$(go env GOHOSTARCH)" ] || continue
	berthd=$w/$name/usr/bin/berthd
	want "berthd for $name starts" grep -qE '^berthd [0-9a-z]' <(timeout 60 "qemu-$qemu" "$berthd" --version)
	want "berthd doctor for $name reports that there is no Docker" doctor "qemu-$qemu" "$berthd"
done <<<"$machines"

# 32 bits, and big-endian.
for goarch in arm s390x; do
	say "unit tests for $goarch"
	(
		cd "$top"
		GOARCH=$goarch GOARM=7 CGO_ENABLED=0 go test -count=1 -exec "qemu-$goarch" ./core/labels ./core/limits ./core/logs/jsonfile ./core/logs/localfile ./core/todocker
	)
done
say "all machines passed"
