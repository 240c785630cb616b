#!/usr/bin/env bash
# engine.sh VERSION: builds a Docker Engine that no Debian has (23.0, 24.0, 25.0, 27.5
# or 29) from its Go modules into the cache. It takes some minutes the first time.
# 29 comes with the containerd and runc that go with it; the others use those of
# a Debian (start_engine in lib.sh).
. "$(dirname "$0")/lib.sh"
version=${1:-} replace=()
case $version in
# The BuildKit that 23.0.15 and 24.0.9 name is of between two releases, and the module
# proxy does not have it. They get the nearest before it that it has (for 24.0 that of
# 24.0.6, which names in turn a Docker that is not there). berth builds no images.
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
*) die "no Docker Engine ${version:-without a version} is known: 23.0, 24.0, 25.0, 27.5 or 29" ;;
esac
case $version in
25.0 | 27.5) engine_root trixie >/dev/null ;; # whose containerd and runc they use
esac
out=$cache/engine-$version
[ "$(cat "$out/.complete" 2>/dev/null)" != "$release" ] || exit 0
need gcc=build-essential
say "building Docker Engine $version into $out"
rm -rf "$out"
mkdir -p "$out"

# latest builds 29 and what goes with it.
latest() {
	local moby=github.com/moby/moby/v2 c root
	need pkg-config=pkg-config
	pkg-config --exists libseccomp || need no-such-program=libseccomp-dev
	export GOBIN=$out
	cd / # these modules are none of ours
	# The module does not know which release it becomes.
	go install -ldflags "-s -w -X $moby/dockerversion.Version=29.0.0-e2e" "$moby/cmd/dockerd@v2.0.0-beta.24"
	for c in containerd containerd-shim-runc-v2; do
		go install -ldflags '-s -w' "github.com/containerd/containerd/v2/cmd/$c@v2.3.4"
	done
	CGO_ENABLED=1 go install -ldflags '-s -w' -tags seccomp github.com/opencontainers/runc@v1.4.0
	# The client of Debian 13 talks to it; that of Debian 12 is too old.
	root=$(engine_root trixie)
	cat >"$out/docker" <<-E
		#!/bin/sh
		exec $root/lib64/ld-linux-x86-64.so.2 --library-path $root/usr/lib/x86_64-linux-gnu $root/usr/bin/docker "\$@"
	E
	chmod +x "$out/docker"
}

# older builds a release whose module names what it is made of in vendor.mod only.
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
	rm -rf vendor # of which a module has the list and no more
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
