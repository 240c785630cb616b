#!/usr/bin/env bash
# engines.sh: what test.sh does, on other Docker Engines too: those of Debian 13
# (26.1) and of the next Debian (28.5), the latter with both image stores, and 29,
# built from its modules, whose image store is containerd's.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || die "tests on Docker Engines need root"
"$e2e/test.sh"
for suite in trixie forky; do engine_root "$suite" >/dev/null; done
"$e2e/engine29.sh"
failed=()
on() { # on NAME SUITE [dockerd flags]
	local name=$1
	export ENGINE=$2 ENGINE_FLAGS="${*:3}"
	say "on $name"
	"$e2e/live.sh" || failed+=("$name: live tests")
	"$e2e/critest.sh" || failed+=("$name: critest")
}
on "Docker 26.1" trixie
on "Docker 28.5" forky
on "Docker 28.5 with the containerd image store" forky --feature containerd-snapshotter=true
on "Docker 29" 29
[ ${#failed[@]} = 0 ] || die "$(printf '%s; ' "${failed[@]}")"
