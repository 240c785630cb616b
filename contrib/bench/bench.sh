#!/usr/bin/env bash
# bench.sh [flags of contrib/bench]: measures bin/berthd on a private Docker Engine, in
# separate namespaces (box.sh). ENGINE and ENGINE_FLAGS are as for critest.sh; BERTHD_FLAGS are
# further flags of berthd. contrib/docs/bench.md describes all modes.
#
# PEERS="containerd cri-dockerd" are runtimes that are built and measured in the same run: both
# by default, as far as they can be built; PEERS= for none.
# PEER=[NAME=]unix:///SOCKET measures a runtime that runs already. PEER_CMD is a command
# that starts one: it gets a second Engine, with all images, at
# $DOCKER_HOST, CNI in $CNI_CONF and $CNI_BIN, and a private directory in
# $PEER_DIR, and must listen on $PEER_DIR/cri.sock.
#
# SHIMS=1,2,4 measures instead the shims of pods of so many containers, with shim-per-pod on and off.
# USERNS=1 SHIMS=1,2,4 measures such pods with and without user namespaces.
# DENSITY=110,250,500 measures instead nodes with so many pods, DENSITY_NETWORK=host for
# pods in the network of the node.
# STREAMS=256 measures instead exec, attach and port-forward with so many MB.
#
# Each run is compared with the last one like it in HISTORY (dist/bench/history.jsonl).
. "$(dirname "$0")/../e2e/lib.sh"
. "$(dirname "$0")/peers.sh"
out=$top/dist/bench
history=(--history "${HISTORY:-$out/history.jsonl}")
if [[ " $* " == *" --again"[\ =]* ]]; then
	cd "$top"
	exec go run ./contrib/bench "${history[@]}" "$@"
fi

# choose_peers builds the peers, as far as they can be built unless PEERS demands them.
choose_peers() {
	local chosen name program optional=''
	if [ -z "${PEERS+set}" ]; then
		optional=1 PEERS='containerd cri-dockerd'
		[ -z "${PEER:-}${PEER_CMD:-}" ] || PEERS=''
		[ -z "${SHIMS:-}${DENSITY:-}${STREAMS:-}" ] || PEERS=containerd
	fi
	read -ra chosen <<<"$PEERS"
	BENCH_PEERS=''
	# cri-dockerd forwards ports with it.
	[[ -z ${STREAMS:-} || " $PEERS " != *" cri-dockerd "* ]] || need socat=socat
	for name in "${chosen[@]}"; do
		if program=$(peer_program "$name"); then
			BENCH_PEERS+=" $name=$program"
		elif [ -n "$optional" ]; then
			say "skipped: $name, for the reason above"
		else
			exit 1
		fi
	done
	export BENCH_PEERS
}

if [ "${1:-}" != --boxed ]; then
	[ "$(id -u)" = 0 ] || die "the benchmark sets up networks and needs root: sudo make bench"
	need_engine
	need_cni
	need busybox=busybox-static
	build_berthd
	mkdir -p "$cache/bin" "$out"
	(cd "$e2e" && CGO_ENABLED=0 go build -o "$cache/bin/" ./runc-clamp)
	choose_peers
	w=$(mktemp -d /tmp/berth-bench.XXXXXX)
	chmod 711 "$w" # for containers of containerd with user namespaces
	trap 'rm -rf "$w"' EXIT # after box.sh has removed its mounts
	trap : INT TERM         # the bench removes its pods then, which takes a moment
	(cd "$top" && go build -o "$w/bench" ./contrib/bench)
	code=0
	TMPDIR=$w BERTH_E2E_WORK=$w "$e2e/box.sh" "$0" --boxed "$@" || code=$?
	exit "$code"
fi
shift
w=$BERTH_E2E_WORK
bench=$w/bench
pids=()
finish() { # removes all containers, then ends the processes in reverse order of their start
	for s in "$w"/engine/docker.sock "$w"/*/engine/docker.sock; do
		[ ! -S "$s" ] || docker -H "unix://$s" ps -aq 2>/dev/null | xargs -r docker -H "unix://$s" rm -fv >/dev/null 2>&1 || true
	done
	for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
		kill "${pids[i]}" 2>/dev/null || true
		for _ in $(seq 100); do kill -0 "${pids[i]}" 2>/dev/null || break; sleep 0.1; done
	done
}
trap finish EXIT
trap : INT TERM

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
berthd() { # berthd DIR ENGINE [FLAG...]: starts it
	local dir=$1 engine=$2
	shift 2
	"$top/bin/berthd" --container-runtime-endpoint "unix://$dir/cri.sock" --docker-endpoint "unix://$engine/docker.sock" \
		--cni-conf-dir "$dir/net.d" --cni-bin-dir "$(cni_dir)" --cni-cache-dir "$dir/cni-cache" --streaming-bind-addr 127.0.0.1:0 \
		--cri-dockerd-root-directory "$dir/root" --run-dir "$dir/run" --pod-infra-container-image berth.local/pause:1 "${berthd_flags[@]}" "$@" >>"$dir/log" 2>&1 &
	pids+=($!)
	wait_for "$dir/cri.sock"
}
set -m # the processes below are in groups of their own: Ctrl-C must not end them before the pods are removed
say "starting a private Docker Engine and berthd"
engine "$w/engine"
cni_conf "$w/berth/net.d" 10.88.0.0/16
berthd "$w/berth" "$w/engine"
cni_conf "$w/bare/net.d" 10.89.0.0/16 e2e1
version=$("$top/bin/berthd" --version)
peer=(--about "berth=$version") name=bench mode=()
if [ -n "${SHIMS:-}" ] && [ -n "${USERNS:-}" ]; then
	name=userns mode=(--shims "$SHIMS")
	say "installing the OCI runtime"
	"$top/bin/berthd" runtime install --docker-endpoint "unix://$w/engine/docker.sock" --docker-config "$w/engine/daemon.json" \
		--run-dir "$w/berth/run" --runtime-program "$top/bin/berth-oci" --runtime-dir "$w/oci"
	peer+=(--peer "userns=unix://$w/berth/cri.sock" --peer-engine "userns=unix://$w/engine/docker.sock"
		--user-namespaces userns --about "userns=the same, pods with user namespaces")
elif [ -n "${SHIMS:-}" ]; then
	name=shims mode=(--shims "$SHIMS")
	say "starting a second Engine and a berthd without shim-per-pod"
	engine "$w/off/engine"
	cni_conf "$w/off/net.d" 10.92.0.0/16 e2e4
	berthd "$w/off" "$w/off/engine" --shim-per-pod=false
	peer+=(--peer "shims-off=unix://$w/off/cri.sock" --peer-engine "shims-off=unix://$w/off/engine/docker.sock" --about "shims-off=$version with shim-per-pod=false, on an Engine of its own")
elif [ -n "${STREAMS:-}" ]; then
	name=streams mode=(--streams "$STREAMS")
elif [ -n "${DENSITY:-}" ]; then
	name=density mode=(--density "$DENSITY")
	case ${DENSITY_NETWORK:-cni} in
	cni) ;;
	host) mode+=(--host-network) ;;
	*) die "DENSITY_NETWORK=$DENSITY_NETWORK: must be cni or host" ;;
	esac
fi
for each in ${BENCH_PEERS:-}; do
	say "starting ${each%%=*}"
	case $each in
	containerd=*)
		start_containerd "${each#*=}" "$w/containerd" "$w/engine/docker.sock"
		[ "$name" != userns ] || peer+=(--peer "containerd-userns=unix://$w/containerd/containerd.sock"
			--user-namespaces containerd-userns --about "containerd-userns=the same, pods with user namespaces")
		;;
	cri-dockerd=*) start_cri_dockerd "${each#*=}" "$w/cri-dockerd" ;;
	esac
done
if [ -n "${PEER_CMD:-}" ]; then
	say "starting a second Engine and the peer"
	engine "$w/peer/engine"
	cni_conf "$w/peer/net.d" 10.93.0.0/16 e2e5
	DOCKER_HOST=unix://$w/peer/engine/docker.sock CNI_CONF=$w/peer/net.d CNI_BIN=$(cni_dir) PEER_DIR=$w/peer \
		bash -c "$PEER_CMD" >"$w/peer/log" 2>&1 &
	pids+=($!)
	wait_for "$w/peer/cri.sock"
	peer+=(--peer "peer=unix://$w/peer/cri.sock" --peer-engine "peer=unix://$w/peer/engine/docker.sock")
elif [ -n "${PEER:-}" ]; then
	peer+=(--peer "$PEER")
fi
set +m
code=0
"$bench" --docker "unix://$w/engine/docker.sock" --berthd "unix://$w/berth/cri.sock" --image berth.local/bench:1 \
	--cni-conf "$w/bare/net.d" --cni-bin "$(cni_dir)" --berthd-flags "${BERTHD_FLAGS:-}" "${peer[@]}" "${mode[@]}" "${history[@]}" \
	--json "$out/$name.json" --svg "$out/$name.svg" "$@" || code=$?
case $code in
0 | 2) say "all samples are in $out/$name.json, a chart in $out/$name.svg, and the history is ${history[1]}" ;;
130) ;;
*) tail -n 20 "$w"/*/log >&2 2>/dev/null || true ;;
esac
exit "$code"
