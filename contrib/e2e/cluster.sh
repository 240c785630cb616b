# shellcheck shell=bash
# Sourced by kubelet.sh and conformance.sh with their arguments: starts a node with
# etcd, apiserver, a kubelet, berthd and a private Docker Engine in separate namespaces
# (box.sh), with busybox as berth.local/busybox:1. k is kubectl. ENGINE and
# ENGINE_FLAGS are as for critest.sh; with KEEP=1 all logs are kept.
# With registry=yes the images that images.sh builds can be pulled, with registry=own those that
# a test pushes to registry.k8s.io; kube is an additional
# target of kube.sh. GATES are further feature gates of the kubelet, such as
# "EventedPLEG: true, PodAndContainerStatsFromCRI: true". KUBE is another release of
# kubelet, apiserver and kubectl than the default, such as 1.31.14.
. "$(dirname "$0")/lib.sh"
if [ "${1:-}" != --boxed ]; then
	[ -x "$cache/bin/crictl" ] || build_tools
	"$e2e/kube.sh" ${kube:-}
	build_berthd
	"$e2e/busybox.sh"
	need curl=curl script=bsdutils openssl=openssl
	if [ -n "${registry:-}" ]; then
		need docker-registry=docker-registry
		[ "$registry" = own ] || [ -f "$cache/registry/complete" ] || die "the images to pull are missing: run make test-engine first, which builds them"
	fi
	w=$(mktemp -d /tmp/berth-kubelet.XXXXXX)
	trap '[ -n "${KEEP:-}" ] || rm -rf "$w"' EXIT # after box.sh has removed its mounts
	BERTH_E2E_WORK=$w "$e2e/box.sh" "$0" --boxed "$@"
	exit
fi
shift
w=$BERTH_E2E_WORK failed=0
# Required feature gates that only later releases enable by default.
gates=''
[ "$kube_minor" -ge 35 ] || gates+=,ImageVolume=true
[ "$kube_minor" -ge 33 ] || gates+=,SupplementalGroupsPolicy=true,InPlacePodVerticalScaling=true
# One that no release enables by default, for pods with hostNetwork: true and hostUsers: false.
[ "$kube_minor" -lt 36 ] || gates+=,UserNamespacesHostNetworkSupport=true
engine_pid='' pids=()
k() { "$kube_dir/kubectl" --kubeconfig "$w/kubeconfig" "$@"; }
finish() {
	[ "$failed" = 0 ] || { grep -E 'level=(WARN|ERROR)' "$w/berthd.log" | tail -20; grep '^E' "$w/kubelet.log" | tail -20; }
	for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
	docker ps -aq 2>/dev/null | xargs -r docker rm -fv >/dev/null 2>&1 || true
	if [ -n "$engine_pid" ]; then
		kill "$engine_pid" 2>/dev/null || true
		for _ in $(seq 100); do kill -0 "$engine_pid" 2>/dev/null || break; sleep 0.1; done
	fi
	# box.sh does not remove the cgroups of the kubelet.
	find /sys/fs/cgroup -depth -type d -path "*/berth-kubelet*" -exec rmdir {} + 2>/dev/null || true
}
trap finish EXIT
ok() { # ok WHAT COMMAND...: on failure the run fails at its end, after the other checks
	local what=$1
	shift
	if "$@"; then echo "ok: $what"; else failed=1; echo "FAILED: $what" >&2; fi
}
is() { [ "$1" = "$2" ] || { echo "got '$1', want '$2'" >&2; return 1; }; }
soon() { for _ in $(seq 240); do if "$@" >/dev/null 2>&1; then return 0; fi; sleep 0.5; done; "$@"; }

say "starting a Docker Engine and berthd, importing an image"
case ${registry:-} in
'') ;;
own) "$e2e/registry.sh" "$w/registry" ;;
*) "$e2e/registry.sh" "$cache/registry" ;;
esac
read -ra engine_flags <<<"${ENGINE_FLAGS:-}"
start_engine "$w/engine" "${engine_flags[@]}"
export DOCKER_HOST=unix://$w/engine/docker.sock
docker version --format 'Docker {{.Server.Version}}'
mkdir -p "$w/bb/bin" "$w/bb/etc" "$w/bb/tmp"
cp "$cache/busybox" "$w/bb/bin/"
for a in $("$cache/busybox" --list | grep -vx busybox); do ln "$w/bb/bin/busybox" "$w/bb/bin/$a"; done
printf 'root:x:0:0:root:/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n' >"$w/bb/etc/passwd"
printf 'root:x:0:\nweb:x:1000:\nextra:x:50000:web\n' >"$w/bb/etc/group"
tar -C "$w/bb" -c . | docker import -c 'CMD ["sh"]' - berth.local/busybox:1 >/dev/null
cni_conf "$w/net.d" 10.88.0.0/16
start_berthd() {
	"$top/bin/berthd" --container-runtime-endpoint "unix://$w/cri.sock" --docker-endpoint "$DOCKER_HOST" \
		--cni-conf-dir "$w/net.d" --cni-bin-dir "$(cni_dir)" --cni-cache-dir "$w/cni-cache" --pod-infra-container-image berth.local/pause:1 \
		--cri-dockerd-root-directory "$w/root" --run-dir "$w/run" --log-level debug >>"$w/berthd.log" 2>&1 &
	berthd=$!
	pids+=("$berthd")
	wait_for "$w/cri.sock"
}
start_berthd
# runtime COMMAND: berthd runtime COMMAND, for this Engine.
runtime() {
	"$top/bin/berthd" runtime "$@" --docker-endpoint "$DOCKER_HOST" --docker-config "$w/engine/daemon.json" --run-dir "$w/run" \
		--runtime-program "$top/bin/berth-oci" --runtime-dir "$w/oci"
}

say "starting etcd, apiserver and kubelet"
ip link add node0 type bridge
ip addr add 10.77.0.1/24 dev node0
ip link set node0 up
# The apiserver determines its own address from the default route.
ip route add default dev node0
"$cache/kube/etcd" --data-dir "$w/etcd" --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
	--listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync >"$w/etcd.log" 2>&1 &
pids+=($!)
openssl genrsa -out "$w/sa.key" 2048 2>/dev/null
token=$(openssl rand -hex 16)
echo "$token,admin,admin,system:masters" >"$w/tokens"
"$kube_dir/kube-apiserver" --etcd-servers http://127.0.0.1:2379 --cert-dir "$w/apiserver" --secure-port 6443 --bind-address 10.77.0.1 \
	--service-cluster-ip-range 10.96.0.0/16 --token-auth-file "$w/tokens" --authorization-mode AlwaysAllow --allow-privileged --kubelet-preferred-address-types InternalIP ${admission:-} \
	${gates:+--feature-gates "${gates#,}"} \
	--service-account-issuer https://kubernetes --service-account-key-file "$w/sa.key" --service-account-signing-key-file "$w/sa.key" >"$w/apiserver.log" 2>&1 &
pids+=($!)
cat >"$w/kubeconfig" <<-C
	apiVersion: v1
	kind: Config
	clusters: [{name: c, cluster: {server: "https://10.77.0.1:6443", insecure-skip-tls-verify: true}}]
	users: [{name: u, user: {token: "$token"}}]
	contexts: [{name: x, context: {cluster: c, user: u}}]
	current-context: x
C
soon k get --raw /readyz || { tail "$w/apiserver.log"; die "the apiserver did not become ready"; }
for c in $(find /sys/fs/cgroup -maxdepth 1 -type d -printf '%f\n' | grep -vx cgroup); do mkdir -p "/sys/fs/cgroup/$c/berth-kubelet"; done
for f in cpus mems; do cat "/sys/fs/cgroup/cpuset/cpuset.$f" >"/sys/fs/cgroup/cpuset/berth-kubelet/cpuset.$f" 2>/dev/null || true; done
cat >"$w/kubelet.yaml" <<-C
	apiVersion: kubelet.config.k8s.io/v1beta1
	kind: KubeletConfiguration
	containerRuntimeEndpoint: unix://$w/cri.sock
	authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
	authorization: {mode: AlwaysAllow}
	cgroupDriver: cgroupfs
	cgroupRoot: /berth-kubelet
	failCgroupV1: false
	failSwapOn: false
	featureGates: {KubeletInUserNamespace: true$(sed 's/,/, /g; s/=/: /g' <<<"$gates")${GATES:+, $GATES}}
	evictionHard: {memory.available: 1Mi, nodefs.available: 0%, imagefs.available: 0%, nodefs.inodesFree: 0%, imagefs.inodesFree: 0%}
	podLogsDir: $w/pods
	containerLogMaxSize: 200Ki
	containerLogMaxFiles: 20
	containerLogMonitorInterval: 3s
	clusterDNS: [10.96.0.10]
	resolvConf: ""
	readOnlyPort: 0
	shutdownGracePeriod: 0s
C
start_kubelet() {
	"$kube_dir/kubelet" --config "$w/kubelet.yaml" --kubeconfig "$w/kubeconfig" --root-dir "$w/kubelet" --cert-dir "$w/kubelet-certs" \
		--hostname-override node --node-ip 10.77.0.1 -v 2 >>"$w/kubelet.log" 2>&1 &
	kubelet=$!
	pids+=("$kubelet")
}
start_kubelet
soon k wait --for condition=Ready node/node --timeout 1s || { failed=1; die "the node did not become ready"; }
k get nodes -o wide
