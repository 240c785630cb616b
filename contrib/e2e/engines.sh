#!/usr/bin/env bash
# engines.sh [ENGINE...]: runs the live tests and critest on each Docker Engine: that of Debian 12
# (20.10, all of test.sh), of Debian 13 (26.1) and of the next Debian (28.5, with both
# image stores), and those that engine.sh builds, of which 29 uses the containerd image store.
# Arguments select versions.
. "$(dirname "$0")/lib.sh"
all=(20.10 23.0 24.0 25.0 26.1 27.5 28.5 29)
[ $# != 0 ] || set -- "${all[@]}"
for version; do
	[[ " ${all[*]} " = *" $version "* ]] || die "Docker $version: must be one of ${all[*]}"
done
prepare_engine_tests
failed=()
on() { # on NAME SUITE [dockerd flags]
	local name=$1
	export ENGINE=$2 ENGINE_FLAGS="${*:3}"
	say "on $name"
	LIVE_SHARDS=2 "$e2e/live.sh" || failed+=("$name: live tests")
	"$e2e/critest.sh" || failed+=("$name: critest")
}
for version; do
	case $version in
	20.10) (unset ENGINE ENGINE_FLAGS; "$e2e/test.sh") || failed+=("Docker 20.10") ;;
	26.1) on "Docker 26.1" trixie ;;
	28.5)
		on "Docker 28.5" forky
		on "Docker 28.5 with the containerd image store" forky --feature containerd-snapshotter=true
		;;
	*) on "Docker $version" "$version" ;;
	esac
done
[ ${#failed[@]} = 0 ] || die "$(printf '%s; ' "${failed[@]}")"
