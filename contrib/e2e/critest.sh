#!/usr/bin/env bash
# critest.sh [critest flags]: runs the conformance tests of the CRI against
# bin/berthd on a private Docker Engine, in separate namespaces (box.sh).
# ENGINE=SUITE uses the Docker of another Debian release, ENGINE_FLAGS are further flags of
# dockerd. With KEEP=1 all logs are kept.
. "$(dirname "$0")/lib.sh"
if [ "${1:-}" != --boxed ]; then
	w=$(mktemp -d /tmp/berth-critest.XXXXXX)
	trap '[ -n "${KEEP:-}" ] || rm -rf "$w"' EXIT # after box.sh has removed its mounts
	BERTH_E2E_WORK=$w "$e2e/box.sh" "$0" --boxed "$@"
	exit
fi
shift
w=$BERTH_E2E_WORK
engine_pid='' berthd_pid=''
finish() {
	[ -z "$berthd_pid" ] || kill "$berthd_pid" 2>/dev/null || true
	docker -H "unix://$w/engine/docker.sock" ps -aq 2>/dev/null | xargs -r docker -H "unix://$w/engine/docker.sock" rm -fv >/dev/null 2>&1 || true
	if [ -n "$engine_pid" ]; then
		kill "$engine_pid" 2>/dev/null || true
		for _ in $(seq 100); do kill -0 "$engine_pid" 2>/dev/null || break; sleep 0.1; done
	fi
}
trap finish EXIT

say "starting a registry on loopback and a private Docker Engine (logs in $w)"
"$e2e/registry.sh" "$cache/registry"
read -ra engine_flags <<<"${ENGINE_FLAGS:-}"
start_engine "$w/engine" "${engine_flags[@]}"
docker -H "unix://$w/engine/docker.sock" version --format '{{.Server.Version}}, API {{.Server.APIVersion}}'

if [ ! -f "$cache/registry/complete" ]; then
	say "building the images of critest"
	"$e2e/images.sh" "unix://$w/engine/docker.sock"
	touch "$cache/registry/complete"
fi

say "installing the OCI runtime"
"$top/bin/berthd" runtime install --docker-endpoint "unix://$w/engine/docker.sock" --docker-config "$w/engine/daemon.json" \
	--run-dir "$w/run" --runtime-program "$top/bin/berth-oci" --runtime-dir "$w/oci"

say "starting berthd"
cni_conf "$w/net.d" 10.88.0.0/16
"$top/bin/berthd" --container-runtime-endpoint "unix://$w/cri.sock" --docker-endpoint "unix://$w/engine/docker.sock" \
	--cni-conf-dir "$w/net.d" --cni-bin-dir "$(cni_dir)" --cni-cache-dir "$w/cni-cache" \
	--cri-dockerd-root-directory "$w/root" --run-dir "$w/run" --log-level debug >"$w/berthd.log" 2>&1 &
berthd_pid=$!
wait_for "$w/cri.sock"

say "running critest"
code=0
# A spec that fails and then passes is reported as flaky in the log.
"$cache/bin/critest" -ginkgo.no-color -ginkgo.flake-attempts=2 -ginkgo.junit-report="$w/junit.xml" \
	-runtime-endpoint "unix://$w/cri.sock" -image-endpoint "unix://$w/cri.sock" "$@" >"$w/critest.log" 2>&1 || code=$?
[ -s "$w/junit.xml" ] || { tail -40 "$w/critest.log"; die "critest did not run"; }
(cd "$e2e" && go run ./verdict -known "$e2e/critest.known" "$w/junit.xml") || {
	grep -E 'level=(WARN|ERROR)' "$w/berthd.log" | tail -20
	exit 1
}
