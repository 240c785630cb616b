#!/usr/bin/env bash
# engine29.sh: builds Docker Engine 29, with the containerd and runc that go with
# it, from their Go modules into the cache. It takes some minutes the first time.
. "$(dirname "$0")/lib.sh"
moby=github.com/moby/moby/v2
versions="$moby/cmd/dockerd@v2.0.0-beta.24 containerd@v2.3.4 runc@v1.4.0"
out=$cache/engine-29
[ "$(cat "$out/.complete" 2>/dev/null)" != "$versions" ] || exit 0
need gcc=build-essential pkg-config=pkg-config
pkg-config --exists libseccomp || need no-such-program=libseccomp-dev
say "building Docker Engine 29 into $out"
rm -rf "$out"
mkdir -p "$out"
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
echo "$versions" >"$out/.complete"
