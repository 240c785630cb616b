#!/usr/bin/env bash
# engine.sh VERSION: builds a Docker Engine that no Debian release has (23.0, 24.0, 25.0, 27.5
# or 29) from its Go modules into the cache. This takes some minutes the first time.
# 29 is built with its own containerd and runc; the others use those of
# a Debian release (start_engine in lib.sh).
. "$(dirname "$0")/lib.sh"
version=${1:-} replace=()
case $version in
# 23.0.15 and 24.0.9 require a BuildKit commit between two releases, which the module
# proxy does not have. They are built with the nearest earlier version that it has (for 24.0 that of
# 24.0.6, which in turn requires a Docker version that is missing). berth builds no images.
23.0) release=23.0.15 replace=(github.com/moby/buildkit=github.com/moby/buildkit@v0.10.6) ;;
24.0)
	release=24.0.9 replace=(
		github.com/moby/buildkit=github.com/moby/buildkit@v0.11.7-0.20230723230859-616c3f613b54
		github.com/docker/docker@v23.0.7-0.20230720050051-0cae31c7dd6e+incompatible=github.com/docker/docker@v23.0.15+incompatible
	)
	;;
25.0) release=25.0.14 ;;
27.5) release=27.5.1 ;;
29) release='github.com/moby/moby/v2/cmd/dockerd@v2.0.0-beta.24 containerd@v2.3.4 runc@v1.4.0' ;;
*) die "Docker Engine version ${version:-missing}: must be one of 23.0, 24.0, 25.0, 27.5, 29" ;;
esac
case $version in
25.0 | 27.5) engine_root trixie >/dev/null ;; # they use its containerd and runc
esac
out=$cache/engine-$version
[ "$(cat "$out/.complete" 2>/dev/null)" != "$release" ] || exit 0
need gcc=build-essential
say "building Docker Engine $version into $out"
rm -rf "$out"
mkdir -p "$out"

# latest builds 29 with its containerd and runc.
latest() {
	local moby=github.com/moby/moby/v2 root
	build_containerd "$out"
	export GOBIN=$out
	cd / # outside of this module
	# The module does not contain its release number.
	go install -ldflags "-s -w -X $moby/dockerversion.Version=29.0.0-e2e" "$moby/cmd/dockerd@v2.0.0-beta.24"
	# The client of Debian 13 works with it; that of Debian 12 is too old.
	root=$(engine_root trixie)
	cat >"$out/docker" <<-E
		#!/bin/sh
		exec $root/lib64/ld-linux-x86-64.so.2 --library-path $root/usr/lib/x86_64-linux-gnu $root/usr/bin/docker "\$@"
	E
	chmod +x "$out/docker"
}

# older builds a release that lists its dependencies in vendor.mod only.
older() {
	local source m
	work=$(mktemp -d /tmp/berth-engine.XXXXXX)
	trap 'rm -rf "$work"' EXIT
	cd "$work"
	go mod init x >/dev/null 2>&1
	source=$(go mod download -json "github.com/docker/docker@v$release+incompatible" | sed -n 's/^.*"Dir": "\(.*\)".*$/\1/p')
	[ -n "$source" ] || die "Docker $release cannot be downloaded"
	cp -r "$source" source
	chmod -R u+w source
	cd source
	rm -rf vendor # a module contains only modules.txt of it
	mv vendor.mod go.mod
	mv vendor.sum go.sum
	for m in "${replace[@]}"; do go mod edit -replace "$m"; done
	CGO_ENABLED=1 go build -mod=mod -ldflags "-s -w -X github.com/docker/docker/dockerversion.Version=$release" \
		-tags 'netgo osusergo exclude_graphdriver_btrfs exclude_graphdriver_devicemapper' -o "$out/dockerd" ./cmd/dockerd
	cd /
}

case $version in
29) latest ;;
*) older ;;
esac
echo "$release" >"$out/.complete"
