#!/usr/bin/env bash
# demo.sh: runs one pod on this machine's Docker Engine through the CRI, prints each
# step, and restores the previous state. Installs missing packages. A running
# Engine is used as it is; if none runs, one is started for the demo
# and stopped again.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || die "the demo sets up networks and needs root: sudo make demo"
need_engine
need_cni
need busybox=busybox-static

w=$(mktemp -d /tmp/berth-demo.XXXXXX)
engine_pid='' berthd_pid='' pod=''
quiet() { "$@" >/dev/null 2>&1 || true; }
cri() { # without the warnings about configuration files
	"$cache/bin/crictl" --config "$w/crictl.yaml" "$@" 2> >(grep -v level=warning >&2)
}
# state: prints everything that a pod could leave behind.
state() {
	docker ps -aq --no-trunc | sort
	ls /run/netns 2>/dev/null || true
	awk '{print $5}' /proc/self/mountinfo | grep -v "^$w/engine" | sort
	ip -o link show | awk -F': ' '{print $2}'
	ls /var/lib/cni/networks/* 2>/dev/null || true
}
finish() {
	code=$?
	[ -z "$pod" ] || quiet cri rmp -f "$pod"
	if [ -n "$berthd_pid" ]; then kill "$berthd_pid" 2>/dev/null || true; wait "$berthd_pid" 2>/dev/null || true; fi
	quiet docker rmi berth.local/demo:1
	[ "${pause_was_there:-yes}" = yes ] || quiet docker rmi berth.local/pause:1
	quiet ip link del berthdemo0
	quiet umount "$w/run/netns"
	if [ -n "$engine_pid" ]; then
		kill "$engine_pid" 2>/dev/null || true
		wait "$engine_pid" 2>/dev/null || true
		awk -v w="$w/" 'index($2, w) == 1 {print $2}' /proc/self/mounts | sort -r | while read -r m; do quiet umount "$m"; done
	fi
	rm -rf "$w"
	exit "$code"
}
trap finish EXIT

say "building berthd"
build_berthd
mkdir -p "$cache/bin"
(cd "$e2e" && CGO_ENABLED=0 go build -o "$cache/bin/" ./runc-clamp sigs.k8s.io/cri-tools/cmd/crictl)
"$top/bin/berthd" --version

sock=${DOCKER_HOST:-unix:///var/run/docker.sock}
if docker -H "$sock" version >/dev/null 2>&1; then
	say "using the Docker Engine at $sock"
else
	say "no Docker Engine is running: starting one for the demo"
	start_engine "$w/engine"
	sock=unix://$w/engine/docker.sock
fi
export DOCKER_HOST=$sock
docker version --format 'Docker Engine {{.Server.Version}}, API {{.Server.APIVersion}}'
pause_was_there=no
! docker image inspect berth.local/pause:1 >/dev/null 2>&1 || pause_was_there=yes
state >"$w/before"

say "building an image from this machine's busybox; no registry is needed"
mkdir -p "$w/image/bin"
cp "$(command -v busybox)" "$w/image/bin/"
for a in sh echo sleep hostname ip cat; do ln -s busybox "$w/image/bin/$a"; done
tar -C "$w/image" -c . | docker import -c 'CMD ["sh"]' - berth.local/demo:1 >/dev/null

say "starting berthd"
cni_conf "$w/net.d" 10.89.0.0/24 berthdemo0
"$top/bin/berthd" --container-runtime-endpoint "unix://$w/cri.sock" --docker-endpoint "$sock" \
	--cni-conf-dir "$w/net.d" --cni-bin-dir "$(cni_dir)" --cni-cache-dir "$w/cni-cache" \
	--cri-dockerd-root-directory "$w/root" --run-dir "$w/run" --pod-infra-container-image berth.local/pause:1 \
	>"$w/berthd.log" 2>&1 &
berthd_pid=$!
wait_for "$w/cri.sock"
printf 'runtime-endpoint: unix://%s/cri.sock\nimage-endpoint: unix://%s/cri.sock\ntimeout: 60\n' "$w" "$w" >"$w/crictl.yaml"
for _ in $(seq 50); do
	if cri version >/dev/null 2>&1; then break; fi
	sleep 0.1
done
cri version || { cat "$w/berthd.log"; die "berthd does not respond"; }

say "running a pod"
# The labels that the kubelet sets, by which tools find the pod of a container.
labels='"io.kubernetes.pod.name": "demo", "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": "berth-demo"'
cat >"$w/pod.json" <<-P
	{"metadata": {"name": "demo", "namespace": "default", "uid": "berth-demo"}, "hostname": "demo", "labels": {$labels},
	 "log_directory": "$w/logs", "dns_config": {"servers": ["10.0.0.10"], "searches": ["default.svc.cluster.local"]}, "linux": {}}
P
cat >"$w/container.json" <<-P
	{"metadata": {"name": "web"}, "labels": {$labels, "io.kubernetes.container.name": "web"}, "image": {"image": "berth.local/demo:1"}, "log_path": "web/0.log", "linux": {},
	 "command": ["sh", "-c", "echo hello from \$(hostname); exec sleep 3600"]}
P
pod=$(cri runp "$w/pod.json")
container=$(cri create "$pod" "$w/container.json" "$w/pod.json")
cri start "$container" >/dev/null
cri pods
cri ps
address=$(cri inspectp -o go-template --template '{{.status.network.ip}}' "$pod")
[ -n "$address" ] || die "the pod has no address"
echo "address:  $address"
for _ in $(seq 50); do [ -s "$w/logs/web/0.log" ] && break; sleep 0.1; done
log=$(cri logs "$container")
echo "log line: $log"
[ "$log" = "hello from demo" ] || die "the log differs from the output of the container"
say "exec: ip addr show eth0"
cri exec "$container" ip addr show eth0
say "stats"
cri stats "$container" | sed 's/\x1b\[[0-9]*[A-Z]//g' # without the codes that clear the screen
docker ps --format 'table {{.Names}}\t{{.Status}}'

say "cleaning up"
cri rmp -f "$pod"
pod=''
kill "$berthd_pid" && wait "$berthd_pid" && berthd_pid=''
docker rmi berth.local/demo:1 >/dev/null
ip link del berthdemo0
umount "$w/run/netns"
state >"$w/after"
if diff "$w/before" "$w/after"; then
	say "done: containers, network namespaces, mounts, links and addresses are as before"
else
	die "the demo left something behind; the difference is printed above"
fi
