#!/usr/bin/env bash
# live.sh: runs the tests that need the flag -docker on a private Docker Engine, in separate
# namespaces (box.sh). ENGINE and ENGINE_FLAGS are as for critest.sh. With HOSTILE=1
# the daemon.json of the Engine has many defaults that must not apply to pods. With LIVE_SHARDS=2 the
# tests are run in two parts at the same time, each on an Engine of its own: most of them wait.
. "$(dirname "$0")/lib.sh"
if [ "${1:-}" = --shards ]; then
	w=$(mktemp -d /tmp/berth-test.XXXXXX)
	trap 'rm -rf "$w"' EXIT
	parts=()
	for i in $(seq "$LIVE_SHARDS"); do
		BOX_INNER=1 LIVE_SHARD=$i/$LIVE_SHARDS LIVE_SHARDS=1 "$0" >"$w/$i" 2>&1 &
		parts+=($!)
	done
	code=0
	for i in $(seq "$LIVE_SHARDS"); do
		wait "${parts[i - 1]}" || code=1
		say "part $i of $LIVE_SHARDS"
		cat "$w/$i"
	done
	exit "$code"
fi
if [ "${1:-}" != --boxed ]; then
	[ "${LIVE_SHARDS:-1}" = 1 ] || exec "$e2e/box.sh" "$0" --shards
	w=$(mktemp -d /tmp/berth-test.XXXXXX)
	trap 'rm -rf "$w"' EXIT # after box.sh has removed its mounts
	TMPDIR=$w BERTH_E2E_WORK=$w "$e2e/box.sh" "$0" --boxed
	exit
fi
shift
w=$BERTH_E2E_WORK
engine_pid=''
finish() {
	docker ps -aq 2>/dev/null | xargs -r docker rm -fv >/dev/null 2>&1 || true
	touch "$w/engine/over" 2>/dev/null || true # see ENGINE_RESTARTS
	[ -z "${ENGINE_RESTARTS:-}" ] || engine_pid=$(cat "$w/engine/pid" 2>/dev/null || true)
	if [ -n "$engine_pid" ]; then
		kill "$engine_pid" 2>/dev/null || true
		for _ in $(seq 100); do kill -0 "$engine_pid" 2>/dev/null || break; sleep 0.1; done
	fi
}
trap finish EXIT
read -ra engine_flags <<<"${ENGINE_FLAGS:-}"
if [ -n "${HOSTILE:-}" ]; then
	# An Engine with another root directory can read /tmp, but not this directory.
	cp "$e2e/hostile.json" "$e2e/hostile-seccomp.json" "$w/"
	# HOSTILE_LOGS=buffered sets an option that applies to every container: pods get a larger buffer.
	[ "${HOSTILE_LOGS:-}" != buffered ] || sed -i 's/"mode": "non-blocking"/&, "max-buffer-size": "1k"/' "$w/hostile.json"
	engine_flags+=(--config-file "$w/hostile.json" --seccomp-profile "$w/hostile-seccomp.json")
fi
mkdir -p /etc/docker
mount -t tmpfs tmpfs /etc/docker # for hosts.toml of tests; this mount is in the namespace of box.sh
start_engine "$w/engine" "${engine_flags[@]}"
export DOCKER_HOST=unix://$w/engine/docker.sock
mkdir -p "$w/bb/bin" "$w/bb/etc" "$w/bb/tmp"
cp "$cache/busybox" "$w/bb/bin/"
for a in $("$cache/busybox" --list | grep -vx busybox); do ln "$w/bb/bin/busybox" "$w/bb/bin/$a"; done
printf 'root:x:0:0:root:/:/bin/sh\n' >"$w/bb/etc/passwd"
printf 'root:x:0:\n' >"$w/bb/etc/group"
tar -C "$w/bb" -c . | docker import -c 'CMD ["sh"]' - berth-test:1 >/dev/null
cd "$top"

# LIVE_FLAGS are further flags of go test, such as -run or -bench; LIVE_ARGS are
# further flags of the tests, such as -lines; LIVE_ONLY selects one package, and
# LIVE_TIMEOUT is its timeout.
read -ra live_flags <<<"${LIVE_FLAGS:-}"
read -ra live_args <<<"${LIVE_ARGS:-}"
on() { # on PACKAGE [flags of its tests]
	[ "${LIVE_ONLY:-$1}" = "$1" ] || return 0
	go test -count=1 -timeout "${LIVE_TIMEOUT:-60m}" "${live_flags[@]}" "./$1" -args -docker "$DOCKER_HOST" -image berth-test:1 "${@:2}" || failed=1
}
failed=0
case ${LIVE_SHARD:-1/1} in
1/*)
	on core/engine/enginelaws
	on core/pause
	;;
esac
if [ -n "${LIVE_SHARD:-}" ]; then
	part=$(go test -list '^Test' ./contrib/live | grep '^Test' | awk -v "n=${LIVE_SHARD#*/}" -v "i=${LIVE_SHARD%/*}" 'NR % n == i - 1 {printf "%s%s", sep, $0; sep = "|"}')
	live_flags+=(-run "^($part)\$")
fi
# containerd 2.3, where engine.sh has built it, in a directory that an Engine with another root sees.
if [ -e "$cache/engine-29/.complete" ]; then
	mkdir "$w/peer"
	cp "$cache/engine-29/"containerd* "$w/peer/"
	live_args+=(-containerd "$w/peer" -enter "${engine_enter[*]}")
fi
on contrib/live -cni "$(cni_dir)" "${live_args[@]}"
exit "$failed"
