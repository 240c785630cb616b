#!/usr/bin/env bash
# bench.sh [flags of contrib/bench]: measures bin/berthd on a private Docker Engine, in
# separate namespaces (box.sh). ENGINE and ENGINE_FLAGS are as for critest.sh; BERTHD_FLAGS are
# further flags of berthd.
#
# SHIMS=1,2,4 measures only containerd's shims of pods of so many containers, with shim-per-pod
# on and off, and prints the figures.
#
# PEER=unix:///SOCKET measures another CRI runtime in the same run. PEER_CMD is a command
# that starts such a runtime: it gets a second Engine, with all images, at
# $DOCKER_HOST, CNI in $CNI_CONF and $CNI_BIN, and a private directory in
# $PEER_DIR, and must listen on $PEER_DIR/cri.sock.
. "$(dirname "$0")/../e2e/lib.sh"
if [ "${1:-}" != --boxed ]; then
	[ "$(id -u)" = 0 ] || die "the benchmark sets up networks and needs root: sudo make bench"
	need_engine
	need_cni
	need busybox=busybox-static
	build_berthd
	mkdir -p "$cache/bin" "$top/dist/bench"
	(cd "$e2e" && CGO_ENABLED=0 go build -o "$cache/bin/" ./runc-clamp)
	(cd "$top" && go build -o "$cache/bin/bench" ./contrib/bench)
	w=$(mktemp -d /tmp/berth-bench.XXXXXX)
	trap 'rm -rf "$w"' EXIT # after box.sh has removed its mounts
	TMPDIR=$w BERTH_E2E_WORK=$w "$e2e/box.sh" "$0" --boxed "$@"
	exit
fi
shift
w=$BERTH_E2E_WORK
pids=()
finish() { # removes all containers, then ends the processes in reverse order of their start
	for s in "$w"/engine/docker.sock "$w"/peer-engine/docker.sock; do
		[ ! -S "$s" ] || docker -H "unix://$s" ps -aq 2>/dev/null | xargs -r docker -H "unix://$s" rm -fv >/dev/null 2>&1 || true
	done
	for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
		kill "${pids[i]}" 2>/dev/null || true
		for _ in $(seq 100); do kill -0 "${pids[i]}" 2>/dev/null || break; sleep 0.1; done
	done
}
trap finish EXIT

mkdir -p "$w/bb/bin" "$w/bb/etc" "$w/bb/tmp"
busybox=$(command -v busybox)
cp "$busybox" "$w/bb/bin/busybox"
for a in $("$busybox" --list | grep -vx busybox); do ln "$w/bb/bin/busybox" "$w/bb/bin/$a"; done
printf 'root:x:0:0:root:/:/bin/sh\n' >"$w/bb/etc/passwd"
printf 'root:x:0:\n' >"$w/bb/etc/group"
engine() { # engine DIR: starts an Engine and imports the image
	start_engine "$1" "${engine_flags[@]}"
	pids+=("$engine_pid")
	tar -C "$w/bb" -c . | docker -H "unix://$1/docker.sock" import -c 'CMD ["sh"]' - berth.local/bench:1 >/dev/null
}
read -ra engine_flags <<<"${ENGINE_FLAGS:-}"
read -ra berthd_flags <<<"${BERTHD_FLAGS:-}"
say "starting a private Docker Engine and berthd"
engine "$w/engine"
cni_conf "$w/net.d" 10.88.0.0/16
berthd() { # berthd [FLAG...]: starts it
	rm -f "$w/cri.sock"
	"$top/bin/berthd" --container-runtime-endpoint "unix://$w/cri.sock" --docker-endpoint "unix://$w/engine/docker.sock" \
		--cni-conf-dir "$w/net.d" --cni-bin-dir "$(cni_dir)" --cni-cache-dir "$w/cni-cache" \
		--cri-dockerd-root-directory "$w/root" --run-dir "$w/run" --pod-infra-container-image berth.local/pause:1 "${berthd_flags[@]}" "$@" >>"$w/berthd.log" 2>&1 &
	pids+=($!)
	wait_for "$w/cri.sock"
}
if [ -n "${SHIMS:-}" ]; then
	for each in true false true false; do
		say "shim-per-pod: $each"
		berthd "--shim-per-pod=$each"
		"$cache/bin/bench" --docker "unix://$w/engine/docker.sock" --berthd "unix://$w/cri.sock" --image berth.local/bench:1 --shims "$SHIMS" "$@" ||
			{ tail -n 20 "$w/berthd.log" >&2; exit 1; }
		kill "${pids[-1]}"
		wait "${pids[-1]}" || true
		unset 'pids[-1]'
	done
	exit
fi
berthd
cni_conf "$w/bare/net.d" 10.89.0.0/16 e2e1
peer=()
if [ -n "${PEER_CMD:-}" ]; then
	say "starting a second Engine and the peer"
	engine "$w/peer-engine"
	mkdir -p "$w/peer"
	cni_conf "$w/peer/net.d" 10.90.0.0/16 e2e2
	DOCKER_HOST=unix://$w/peer-engine/docker.sock CNI_CONF=$w/peer/net.d CNI_BIN=$(cni_dir) PEER_DIR=$w/peer \
		bash -c "$PEER_CMD" >"$w/peer.log" 2>&1 &
	pids+=($!)
	PEER=unix://$w/peer/cri.sock
	wait_for "$w/peer/cri.sock"
	peer=(--peer-engine "unix://$w/peer-engine/docker.sock")
fi
[ -z "${PEER:-}" ] || peer+=(--peer "$PEER")
out=$top/dist/bench
code=0
"$cache/bin/bench" --docker "unix://$w/engine/docker.sock" --berthd "unix://$w/cri.sock" --image berth.local/bench:1 \
	--cni-conf "$w/bare/net.d" --cni-bin "$(cni_dir)" "${peer[@]}" --json "$out/bench.json" --svg "$out/bench.svg" "$@" || code=$?
if [ "$code" != 0 ]; then
	tail -n 20 "$w"/berthd.log "$w"/peer.log >&2 2>/dev/null || true
	exit "$code"
fi
say "all samples are in $out/bench.json, a chart in $out/bench.svg"
