#!/usr/bin/env bash
# kubelet.sh: runs a real kubelet, with an apiserver and etcd, on berthd and a private
# Docker Engine, in separate namespaces (box.sh), and checks common kubectl
# operations. ENGINE, ENGINE_FLAGS, GATES, KUBE and KEEP are as for cluster.sh.
# BIG times 100 MiB are sent through port-forward. With the argument images only the part about
# image garbage collection runs (kubelet-images.sh), with userns that about user namespaces
# (kubelet-userns.sh), with checkpoint that about checkpoints (kubelet-checkpoint.sh).
registry=own
admission='--disable-admission-plugins ServiceAccount' # no controller creates service accounts here
. "$(dirname "$0")/cluster.sh"
big=${BIG:-3}

printf 'FROM berth.local/busybox:1\nRUN mkdir -p /share/sub && echo from an image >/share/sub/file\n' | DOCKER_BUILDKIT=0 docker build -q -t berth.local/files:1 - >/dev/null 2>&1
mkdir -p "$w/kubelet/seccomp"
echo '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}' >"$w/kubelet/seccomp/no-mkdir.json"

# pod NAME [YAML of spec]: creates a pod on this node.
pod() {
	sed 's/^\t*//' <<-P | k apply -f - >/dev/null
		apiVersion: v1
		kind: Pod
		metadata: {name: $1}
		spec:
		  nodeName: node
		  automountServiceAccountToken: false
		  terminationGracePeriodSeconds: 2
		  tolerations: [{operator: Exists}]
		$2
	P
}
phase() { [ "$(k get pod "$1" -o 'jsonpath={.status.phase}')" = "$2" ]; }
running() { k wait --for condition=Ready "pod/$1" --timeout 60s >/dev/null || { k describe "pod/$1"; return 1; }; }
image='image: berth.local/busybox:1, imagePullPolicy: Never'
left() { [ -z "$(docker ps -aq)" ]; }
passed() { [ "$failed" = 0 ] || die "some checks failed, see the lines with FAILED"; say "all checks passed"; }
printf 'runtime-endpoint: unix://%s/cri.sock\nimage-endpoint: unix://%s/cri.sock\ntimeout: 60\n' "$w" "$w" >"$w/crictl.yaml"
cri() { "$cache/bin/crictl" --config "$w/crictl.yaml" "$@"; }
# restart_kubelet SED: restarts the kubelet with its configuration changed.
restart_kubelet() {
	kill "$kubelet"
	while kill -0 "$kubelet" 2>/dev/null; do sleep 0.1; done
	sed -i "$1" "$w/kubelet.yaml"
	start_kubelet
}
case ${1:-} in
'') ;;
checkpoint | images | userns)
	. "$e2e/kubelet-$1.sh"
	passed
	exit
	;;
*) failed=1; die "$1: must be checkpoint, images or userns" ;;
esac

say "exec, attach, cp"
pod web "  containers:
		  - {name: web, $image, command: [sh, -c, 'echo begun; mkdir -p /www; httpd -p 8080 -h /www; while :; do sleep 0.2; done'], resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}}"
ok "a pod runs" running web
ok "exec" is "$(k exec web -- echo hello)" hello
code=0; k exec web -- sh -c 'exit 7' 2>/dev/null || code=$?
ok "the exit code of exec" is "$code" 7
ok "exec with a terminal" grep -q /dev/pts <<<"$(script -qec "$kube_dir/kubectl --kubeconfig $w/kubeconfig exec -it web -- tty" /dev/null </dev/null)"
code=0; script -qec "$kube_dir/kubectl --kubeconfig $w/kubeconfig exec -it web -- sh -c 'exit 9'" /dev/null </dev/null >/dev/null || code=$?
ok "the exit code of exec with a terminal" is "$code" 9
head -c 100M /dev/urandom >"$w/blob"
sum=$(sha256sum <"$w/blob")
ok "100 MiB through exec and back" is "$(k exec -i web -- cat <"$w/blob" | sha256sum)" "$sum"
ok "cp into the pod" k cp "$w/blob" web:/tmp/blob
ok "cp out of the pod" k cp web:/tmp/blob "$w/back" >/dev/null
ok "the copies are identical" is "$(sha256sum <"$w/back")" "$sum"
pod echo "  containers: [{name: echo, $image, command: [cat], stdin: true, stdinOnce: true}]
		  restartPolicy: Never"
ok "a pod with stdin runs" running echo
ok "attach" is "$(printf 'one\ntwo\n' | k attach -q -i echo 2>/dev/null)" "$(printf 'one\ntwo')"
ok "the container ends when its stdin ends" soon phase echo Succeeded

say "clients that do not read, or disconnect"
pod loud "  containers: [{name: loud, $image, command: [sh, -c, 'sleep 3; awk \"BEGIN { l = sprintf(\\\"%99s\\\", \\\"\\\"); for (i = 0; i < 500000; i++) print l }\"']}]
		  restartPolicy: Never"
soon phase loud Running
k attach -q loud | sleep 300 &
stuck=$!
# Over WebSocket a kubelet of 1.37 may continue to read for a client that has disconnected.
KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false k exec web -- yes | sleep 300 &
ok "a container prints 50 MB while an attach client does not read" soon phase loud Succeeded
ok "all lines are in the log" is "$(zcat -f "$w"/pods/*loud*/loud/0.log* | wc -l)" 500000
ok "exec works while the client of another exec does not read" is "$(k exec web -- echo hello)" hello
kill %% "$stuck" 2>/dev/null || true
pkill -f "kubectl --kubeconfig $w/kubeconfig (exec|attach)" || true
commands() { k exec web -- ps | sed 's/^ *[0-9]* *[^ ]* *[0-9:]* *//'; }
runs() { grep -qx "$1" <<<"$(commands)"; }
ended() { local all; all=$(commands) && [ -n "$all" ] && ! grep -qx "$1" <<<"$all"; }
ok "an exec that prints ends after its client was killed" soon ended yes
script -qec "$kube_dir/kubectl --kubeconfig $w/kubeconfig exec -it web -- sleep 7777" /dev/null </dev/null >/dev/null 2>&1 &
k exec web -- sleep 8888 &
ok "an exec with a terminal starts" soon runs 'sleep 7777'
ok "an exec without a terminal starts" soon runs 'sleep 8888'
pkill -f "kubectl --kubeconfig $w/kubeconfig exec (-it )?web" || true
ok "an exec with a terminal ends after its client was killed" soon ended 'sleep 7777'
ok "a silent exec without a terminal ends after its client was killed" soon ended 'sleep 8888'
probes() { for i in $(seq 100); do "$cache/bin/crictl" --config "$w/crictl.yaml" exec -s "$(docker ps -qf label=io.kubernetes.container.name=web)" true || return 1; done; }
before=$(k exec web -- ps | wc -l)
ok "100 exec probes succeed" probes
ok "the probes leave no process" test "$(k exec web -- ps | wc -l)" -le "$before" # one from above may still have been ending

say "port-forward"
k exec web -- sh -c "for i in \$(seq $big); do cat /tmp/blob >>/www/big; done; echo small >/www/small"
k port-forward pod/web 18080:8080 >"$w/forward.log" 2>&1 &
forward=$!
soon curl -sf http://127.0.0.1:18080/small
for i in $(seq 100); do curl -sf http://127.0.0.1:18080/small >"$w/small.$i" & waits[i]=$!; done
bad=0; for i in $(seq 100); do wait "${waits[i]}" || bad=$((bad + 1)); done
ok "100 parallel connections" is "$bad $(cat "$w"/small.* | sort | uniq -c | xargs)" "0 100 small"
ok "${big}00 MiB through port-forward" is "$(curl -sf http://127.0.0.1:18080/big | sha256sum)" "$(for _ in $(seq "$big"); do cat "$w/blob"; done | sha256sum)"
kill "$forward"

say "logs"
ok "logs" is "$(k logs web)" begun
pod talk "  containers: [{name: talk, $image, command: [sh, -c, 'for i in \$(seq 20000); do echo \$i a line that is long enough to have the kubelet rotate its file; [ \$((i % 200)) != 0 ] || sleep 0.1; done; sleep 3']}]
		  restartPolicy: Never"
running talk || true
k logs -f talk >"$w/followed" || true
ok "logs -f across rotations" is "$(cut -d' ' -f1 "$w/followed" | md5sum)" "$(seq 20000 | md5sum)"
files=$(find "$w/pods" -path '*talk*' -name '0.log*' | wc -l)
echo "the kubelet has rotated the log into $files files"
ok "the kubelet rotates the log" test "$files" -gt 2
# If a container starts and ends between two relists, the kubelet (1.37) reports the container
# before it as the last one, which it has removed already. The sleep makes each run long enough.
pod again "  containers: [{name: again, $image, command: [sh, -c, 'echo life \$(date +%N); sleep 3; exit 1']}]"
previous() { k logs --previous again 2>/dev/null | grep -q life; }
ok "logs --previous" soon previous

say "debug"
k debug web --image berth.local/busybox:1 --image-pull-policy Never --target web -c look -- sh -c 'ps; cat /proc/1/cmdline' >/dev/null 2>&1 || true
looked() { k logs web -c look 2>/dev/null | grep -q httpd; }
ok "a debug container lists the processes of its target" soon looked

say "resize"
cgroup() { k exec web -- sh -c 'cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max'; }
quota() { k exec web -- sh -c 'cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d" " -f1 /sys/fs/cgroup/cpu.max'; }
subresource=(--subresource resize)
[ "$kube_minor" -ge 32 ] || subresource=() # 1.31 has no subresource: the pod is patched
resize() { k patch pod web "${subresource[@]}" --patch "{\"spec\": {\"containers\": [{\"name\": \"web\", \"resources\": {\"limits\": {\"cpu\": \"$1\", \"memory\": \"$2\"}}}]}}" >/dev/null; }
limits() { [ "$(cgroup) $(quota)" = "$1" ]; }
ok "resize to 500m and 128Mi" resize 500m 128Mi
ok "the limits of the container are increased" soon limits "$((128 << 20)) 50000"
limit_in_status() { [ "$(k get pod web -o 'jsonpath={.status.containerStatuses[0].resources.limits.memory}')" = "$1" ]; }
ok "the pod's status has the new limit" soon limit_in_status 128Mi
ok "resize to 300m and 96Mi" resize 300m 96Mi
ok "the limits of the container are reduced" soon limits "$((96 << 20)) 30000"
ok "the container was not restarted" is "$(k get pod web -o 'jsonpath={.status.containerStatuses[0].restartCount}')" 0

say "security context, sidecar"
pod tight "  initContainers: [{name: side, $image, restartPolicy: Always, command: [sh, -c, 'echo side; sleep 1000']}]
		  securityContext: {runAsUser: 1000, runAsGroup: 3000, supplementalGroups: [4000], supplementalGroupsPolicy: Strict, fsGroup: 5000, seccompProfile: {type: RuntimeDefault}}
		  containers: [{name: tight, $image, command: [sleep, '1000'], securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]"
ok "the pod runs" running tight
ok "user and groups" is "$(k exec tight -c tight -- id)" "uid=1000(web) gid=3000 groups=3000,4000,5000"
ok "no capabilities" is "$(k exec tight -c tight -- grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status | tr -s '\t\n' ' ')" "CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 "
ok "a read-only root" k exec tight -c tight -- sh -c '! touch /x 2>/dev/null'
ok "the user in the pod's status" is "$(k get pod tight -o 'jsonpath={.status.containerStatuses[0].user.linux.uid}')" 1000

sub='{name: image, mountPath: /sub, subPath: share/sub}, '
[ "$kube_minor" -ge 33 ] || sub='' # before 1.33 image volumes have no sub-path
pod fields "  hostname: named
		  subdomain: sub
		  hostAliases: [{ip: 10.1.2.3, hostnames: [alias]}]
		  dnsPolicy: None
		  dnsConfig: {nameservers: [10.9.9.9], searches: [a.test], options: [{name: ndots, value: '3'}]}
		  shareProcessNamespace: true
		  securityContext: {sysctls: [{name: net.ipv4.ip_local_port_range, value: '20000 30000'}, {name: kernel.shm_rmid_forced, value: '1'}], fsGroup: 5000, supplementalGroups: [4000]}
		  volumes: [{name: empty, emptyDir: {}}, {name: image, image: {reference: 'berth.local/files:1', pullPolicy: Never}}, {name: host, hostPath: {path: $w/tree}}]
		  containers:
		  - {name: one, $image, command: [sh, -c, 'trap \"echo got it; exit 0\" TERM; while :; do sleep 0.2; done'],
		     securityContext: {runAsUser: 1000, runAsNonRoot: true, capabilities: {add: [NET_ADMIN]}, seccompProfile: {type: Unconfined}},
		     volumeMounts: [{name: empty, mountPath: /empty}, {name: image, mountPath: /image}, ${sub}{name: host, mountPath: /deep, readOnly: true, recursiveReadOnly: Enabled}, {name: host, mountPath: /shallow, readOnly: true}]}
		  - {name: two, $image, command: [sleep, '1000'], securityContext: {seccompProfile: {type: Localhost, localhostProfile: no-mkdir.json}, appArmorProfile: {type: Unconfined}}}"
mkdir -p "$w/tree/below"
mount -t tmpfs tmpfs "$w/tree/below"
one() { k exec fields -c one -- "$@"; }
ok "a pod with many fields runs" running fields
ok "an image volume" is "$(one cat /image/share/sub/file)" "from an image"
[ -z "$sub" ] || ok "a sub-path of it" is "$(one cat /sub/file)" "from an image"
ok "the image volume is read-only" one sh -c '! touch /image/x 2>/dev/null'
ok "added capabilities are in the bounding set, not effective for a non-root user" is "$(one grep -E 'CapBnd|CapEff' /proc/self/status | tr -s '\t\n' ' ')" "CapEff: 0000000000000000 CapBnd: 00000000a80435fb "
ok "seccomp: unconfined" is "$(one grep -c 'Seccomp:.0' /proc/self/status)" 1
ok "seccomp: a profile of the node" k exec fields -c two -- sh -c '! mkdir /x 2>/dev/null'
ok "fsGroup owns the volume" is "$(one stat -c %g /empty)" 5000
ok "groups" is "$(one id -G)" "1000 4000 5000 50000"
ok "sysctls" is "$(one cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced | tr '\t\n' '  ')" "20000 30000 1 "
ok "hostname" is "$(one hostname)" named
ok "host aliases" one grep -q '^10.1.2.3.*alias' /etc/hosts
ok "DNS" is "$(one cat /etc/resolv.conf | tr '\n' ' ')" "nameserver 10.9.9.9 search a.test options ndots:3 "
ok "containers share one PID namespace" one sh -c 'ps | grep -q "[s]leep 1000"'
ok "the pod's status reports a recursive read-only mount" is "$(k get pod fields -o 'jsonpath={.status.containerStatuses[0].volumeMounts[?(@.mountPath=="/deep")].recursiveReadOnly}')" Enabled
ok "the mount below it is read-only" one sh -c 'touch /deep/below/x 2>&1 | grep -q Read-only'
ok "a read-only mount that is not recursive" k exec fields -c one -- sh -c 'touch /shallow/x 2>&1 | grep -q Read-only; ! touch /shallow/below/x 2>&1 | grep -q Read-only'
pod node "  hostNetwork: true
		  hostPID: true
		  hostIPC: true
		  containers: [{name: node, $image, command: [sleep, '1000'], securityContext: {privileged: true}}]"
ok "a privileged pod with the node's namespaces runs" running node
same() { is "$(k exec node -- readlink "/proc/self/ns/$1")" "$(readlink "/proc/self/ns/$1")"; }
for ns in net pid ipc uts; do ok "it has the node's $ns namespace" same "$ns"; done
ok "it has all devices" k exec node -- test -e /dev/kmsg
pod bad "  containers: [{name: bad, $image, command: [sleep, '1000'], securityContext: {seccompProfile: {type: Localhost, localhostProfile: none.json}}}]"
profile_reported() { k describe pod bad | grep -q 'seccomp profile.*none.json'; }
ok "a missing seccomp profile is reported, and the container does not run without it" soon profile_reported

say "stats"
summary() { k get --raw /api/v1/nodes/node/proxy/stats/summary | tr -d ' \n' | grep -q '"name":"web","startTime".*"workingSetBytes":[1-9]'; }
ok "the kubelet's summary has the container" soon summary
pod used "  containers: [{name: used, $image, command: [sh, -c, 'awk \"BEGIN { s = sprintf(\\\"%67108864s\\\", \\\"\\\"); while (1) system(\\\"sleep 1000\\\") }\" & while :; do :; done'], resources: {limits: {cpu: 500m, memory: 128Mi}}}]"
about() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a > b * .95 && a < b * 1.05) }'; }
number() { k get --raw /api/v1/nodes/node/proxy/stats/summary | tr -d ' \n' | grep -o '"name":"used","startTime".*' | grep -o "\"$1\":[0-9]*" | head -1 | cut -d: -f2; }
spent() { cut -d ' ' -f 1 "/proc/$(docker inspect -f '{{.State.Pid}}' "$(docker ps -qf name=k8s_used_used_)")/schedstat"; } # nanoseconds of its busy process
# share SECONDS: the cores that the container gets: its limit of half a core, or less where the machine is busy.
share() {
	local a t
	a=$(spent) t=$(date +%s%N)
	sleep "$1"
	echo "$(spent) $a $(date +%s%N) $t" | awk '{ print ($1 - $2) / ($3 - $4) }'
}
half() {
	local cores
	cores=$(share 10)
	about "$(number usageNanoCores)" "$(awk -v c="$cores" 'BEGIN { print c * 1e9 }')" && awk -v c="$cores" 'BEGIN { exit !(c < .55) }'
}
held() { about "$(number rssBytes)" $((65 << 20)); }
ok "the kubelet's summary reports the CPU that is used, at most half a core" soon half
ok "the kubelet's summary reports the use of 64 MiB" soon held
resource() { k get --raw /api/v1/nodes/node/proxy/metrics/resource | awk -v row="$1" 'index($0, row "{container=\"used\"") == 1 { print $2 '"${2:-}"' }'; }
working() { about "$(resource container_memory_working_set_bytes)" "$(number workingSetBytes)"; }
ok "the metrics for kubectl top have the same working set" soon working
cores() {
	local a b cores
	a=$(resource container_cpu_usage_seconds_total ', $3')
	cores=$(share 20)
	b=$(resource container_cpu_usage_seconds_total ', $3')
	about "$(echo "$a $b" | awk '{ print ($3 - $1) / ($4 - $2) * 1000 }')" "$cores"
}
ok "the metrics for kubectl top have the same CPU usage" soon cores
if [[ ${GATES:-} = *PodAndContainerStatsFromCRI* ]]; then
	cadvisor() { k get --raw /api/v1/nodes/node/proxy/metrics/cadvisor | grep "^$1.*pod=\"web\""; }
	metrics() { cadvisor 'container_memory_working_set_bytes{container="web"' && cadvisor container_cpu_usage_seconds_total && cadvisor container_network_receive_bytes_total; }
	ok "the kubelet's cAdvisor metrics have the pod, from the CRI" soon metrics
fi

. "$e2e/kubelet-checkpoint.sh"

say "Docker stops and starts"
condition() { [ "$(cri info -o go-template --template '{{range .status.conditions}}{{if eq .type "RuntimeReady"}}{{.status}}{{end}}{{end}}' 2>/dev/null)" = "$1" ]; }
within() { # within SECONDS COMMAND...
	local limit=$((SECONDS + $1))
	shift
	while ! "$@" >/dev/null 2>&1; do [ $SECONDS -lt $limit ] || return 1; sleep 0.1; done
}
kill "$engine_pid"
while kill -0 "$engine_pid" 2>/dev/null; do sleep 0.05; done
ok "RuntimeReady becomes false" within 30 condition false
ok "calls return Unavailable" grep -q Unavailable <<<"$(cri ps 2>&1)"
start_engine "$w/engine" "${engine_flags[@]}"
ok "RuntimeReady becomes true again" within 30 condition true
printf '{"metadata": {"name": "back", "namespace": "x", "uid": "back"}, "linux": {}}' >"$w/back.json"
back() { cri runp "$w/back.json" >"$w/back.id"; }
ok "a pod runs again" within 60 back
cri rmp -f "$(cat "$w/back.id")" >/dev/null
ok "the kubelet's pods run again" soon running web

say "removal"
delete() { k delete pod --all --grace-period 1 --timeout 120s >/dev/null; }
ok "pods can be deleted" delete
ok "no container remains" soon left
. "$e2e/kubelet-images.sh"
ok "the kubelet has not crashed" kill -0 "$kubelet"
ok "the kubelet logged no error about the runtime" is "$(grep -E '^E.*(StreamingServer|ReopenContainerLog|rpc error: code = (Unimplemented|Internal|Unknown))' "$w/kubelet.log")" ""
. "$e2e/kubelet-userns.sh"
passed
