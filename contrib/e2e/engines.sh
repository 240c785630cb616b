#!/usr/bin/env bash
# engines.sh: what test.sh does, on other Docker Engines too: those of Debian 13
# (26.1) and of the next Debian (28.5), the latter with both image stores, and those
# that engine.sh builds, of which 29 has containerd's image store.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || die "tests on Docker Engines need root"
"$e2e/test.sh"
for suite in trixie forky; do engine_root "$suite" >/dev/null; done
for version in 23.0 24.0 25.0 27.5 29; do "$e2e/engine.sh" "$version"; done
failed=()
on() { # on NAME SUITE [dockerd flags]
	local name=$1
	export ENGINE=$2 ENGINE_FLAGS="${*:3}"
	say "on $name"
	"$e2e/live.sh" || failed+=("$name: live tests")
	"$e2e/critest.sh" || failed+=("$name: critest")
}
for version in 23.0 24.0 25.0; do on "Docker $version" "$version"; done
on "Docker 26.1" trixie
on "Docker 27.5" 27.5
on "Docker 28.5" forky
on "Docker 28.5 with the containerd image store" forky --feature containerd-snapshotter=true
on "Docker 29" 29
[ ${#failed[@]} = 0 ] || die "$(printf '%s; ' "${failed[@]}")"
