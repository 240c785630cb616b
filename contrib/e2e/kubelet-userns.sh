# shellcheck shell=bash
# Sourced by kubelet.sh, on a node without pods: installs berth's OCI runtime and runs pods with
# hostUsers: false, with the volumes and the operations that Deployments have. The kubelet takes the
# IDs of the pods from its default range (65536 and above), because there is no user kubelet on this node.
say "user namespaces"

# What must be the same after all pods of this part have been deleted, but for netns/default, which Docker mounts for the first
# container in the node's network.
mounts() { cat /proc/self/mountinfo "/proc/$engine_pid/mountinfo" | awk '{print $5}' | grep -v -e /kubelet/ -e '/netns/default$' | sort; }
netns() { { find /run/netns "$w/engine/exec/netns" -type f ! -name default 2>/dev/null || true; } | sort; }
instructions() { find "$w/run/oci" -type f 2>/dev/null || true; }
# mapped_processes prints the processes that are not in the node's user namespace.
mapped_processes() {
	local p own
	own=$(cat /proc/self/uid_map)
	for p in /proc/[0-9]*; do
		case $(cat "$p/uid_map" 2>/dev/null || true) in
		'' | "$own") ;; # '' has ended
		*) echo "${p#/proc/}" ;;
		esac
	done
}
# container NAME POD and pid NAME POD: of the running container; NAME is POD for the pause container.
container() { docker ps -qf "name=^/k8s_$1_$2_"; }
pid() { docker inspect -f '{{.State.Pid}}' "$(container "$1" "$2")" || echo none; }
uid_map() { xargs <"/proc/$(pid "$1" "$2")/uid_map" || true; }
file_of_node() { stat -c %u:%g "$w/kubelet/pods/$(k get pod mapped -o 'jsonpath={.metadata.uid}')/volumes/kubernetes.io~empty-dir/disk/$1"; }
announced() { cri info | tr -d ' \n' | grep -q '"user_namespaces":true'; }
not_announced() { cri info >/dev/null && ! announced; }
ready() { k wait --for condition=Ready "pod/$1" --timeout 300s >/dev/null || { k describe "pod/$1"; return 1; }; }

# userns_story runs on kubelets that have the feature by default.
userns_story() {
	printf 'FROM berth.local/busybox:1\nRUN mkdir -p /anonymous /opt/app && echo from the image >/anonymous/file && chown 1000:1000 /anonymous/file /opt/app\nVOLUME /anonymous\n' |
		DOCKER_BUILDKIT=0 docker build -q -t berth.local/mapped:1 - >/dev/null 2>&1
	mkdir -p "$w/mapped"
	echo secret >"$w/mapped/file"
	chmod 600 "$w/mapped/file"
	mounts >"$w/mounts.before"
	netns >"$w/netns.before"

	pod unready "  hostUsers: false
		  containers: [{name: unready, $image, command: [sleep, '1000']}]"
	refused() { k describe pod unready | grep -q 'runtime does not support user namespaces'; }
	ok "without berth's OCI runtime a pod with hostUsers: false does not run" soon refused
	ok "berthd logs why" grep -q 'pods cannot have user namespaces.*run berthd runtime install' "$w/berthd.log"
	k delete pod unready --grace-period 0 --force >/dev/null 2>&1
	ok "the runtime is installed" runtime install
	ok "user namespaces are announced" soon announced
	ok "berthd logs that" grep -q 'pods can have user namespaces' "$w/berthd.log"
	restart_kubelet '' # it reads once what the node declares, such as UserNamespacesHostNetworkSupport
	soon k wait --for condition=Ready node/node --timeout 1s

	userns_pods
	userns_volumes
	userns_operations
	userns_restart
	userns_others
	userns_removal
}

userns_pods() {
	k create serviceaccount default >/dev/null 2>&1 || true
	k create configmap mapped --from-literal=key=configured >/dev/null
	k create secret generic mapped --from-literal=key=confidential >/dev/null
	pod mapped "  hostUsers: false
		  serviceAccountName: default
		  terminationGracePeriodSeconds: 10
		  securityContext: {fsGroup: 5000}
		  volumes:
		  - {name: disk, emptyDir: {}}
		  - {name: memory, emptyDir: {medium: Memory}}
		  - {name: secret, secret: {secretName: mapped, defaultMode: 0400}}
		  - {name: config, configMap: {name: mapped}}
		  - {name: downward, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
		  - {name: projected, projected: {sources: [{serviceAccountToken: {path: token}}, {configMap: {name: mapped}}, {secret: {name: mapped, items: [{key: key, path: secret}]}}]}}
		  - {name: host, hostPath: {path: $w/mapped}}
		  initContainers:
		  - {name: first, $image, command: [sh, -c, 'mkdir -p /disk/a/b && echo from init >/disk/a/b/init'], volumeMounts: [{name: disk, mountPath: /disk}]}
		  - {name: side, $image, restartPolicy: Always, command: [sh, -c, 'echo side; exec sleep 1000'], startupProbe: {exec: {command: [cat, /disk/a/b/init]}, periodSeconds: 2, timeoutSeconds: 20, failureThreshold: 30}, volumeMounts: [{name: disk, mountPath: /disk}]}
		  containers:
		  - name: app
		    image: berth.local/mapped:1
		    imagePullPolicy: Never
		    command: [sh, -c, 'trap \"echo stopped >/host/stopped; exit 0\" TERM; mkdir -p /tmp/www && echo hello >/tmp/www/index.html; httpd -p 8080 -h /tmp/www; echo begun; while :; do sleep 0.2; done']
		    resources: {requests: {cpu: 50m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}
		    livenessProbe: {exec: {command: [test, -e, /disk/a/b/init]}, periodSeconds: 2, timeoutSeconds: 20}
		    readinessProbe: {httpGet: {port: 8080, path: /index.html}, periodSeconds: 1, timeoutSeconds: 10}
		    lifecycle:
		      postStart: {exec: {command: [sh, -c, 'echo started >/memory/started']}}
		      preStop: {exec: {command: [sh, -c, 'echo before >/host/before']}}
		    volumeMounts:
		    - {name: disk, mountPath: /disk}
		    - {name: memory, mountPath: /memory}
		    - {name: secret, mountPath: /secret}
		    - {name: config, mountPath: /config}
		    - {name: downward, mountPath: /downward}
		    - {name: projected, mountPath: /projected}
		    - {name: host, mountPath: /host}
		    - {name: disk, mountPath: /sub, subPath: a/b}
		    - {name: config, mountPath: /etc/app.conf, subPath: key}
		    - {name: host, mountPath: /read-only, readOnly: true}
		  - {name: user, $image, command: [sleep, '1000'], securityContext: {runAsUser: 1000, runAsGroup: 3000, allowPrivilegeEscalation: false}, volumeMounts: [{name: disk, mountPath: /disk}, {name: secret, mountPath: /secret}]}"
	ok "a pod with hostUsers: false runs" ready mapped
	map=$(uid_map POD mapped)
	ok "it has 65536 IDs of its own" grep -Eq '^0 [1-9][0-9]{4,} 65536$' <<<"$map"
	for c in side app user; do ok "$c has the IDs of its pod" is "$(uid_map $c mapped)" "$map"; done
	base=$(cut -d' ' -f2 <<<"$map")
	ok "root of the container is user $base of the node" is "$(stat -c %u "/proc/$(pid app mapped)")" "$base"
	pod second "  hostUsers: false
		  containers: [{name: second, $image, command: [sleep, '1000']}]"
	ok "a second pod runs" ready second
	ok "it has other IDs" test "$(uid_map POD second)" != "$map"
}

app() { k exec mapped -c app -- sh -c "$1"; }

userns_volumes() {
	say "user namespaces: volumes"
	ok "owners of the root file system" is "$(app 'stat -c %u:%g / /bin/sh /opt/app /anonymous /anonymous/file | xargs')" "0:0 0:0 1000:1000 0:0 1000:1000"
	ok "the VOLUME of the image can be written" is "$(app 'echo x >/anonymous/new && stat -c %u:%g /anonymous/new')" 0:0
	ok "files of the pod" is "$(app 'stat -c %u:%g /etc/hosts /etc/hostname /etc/resolv.conf /dev/termination-log /dev/shm | xargs')" "0:0 0:0 0:0 0:0 0:0"
	ok "emptyDir: owners" is "$(app 'stat -c %u:%g /disk /memory /disk/a/b/init | xargs')" "0:5000 0:5000 0:5000"
	ok "emptyDir: new files" is "$(app 'touch /disk/root /memory/root && chown 1000:1000 /disk/root && stat -c %u:%g /disk/root /memory/root | xargs')" "1000:1000 0:5000"
	ok "emptyDir: a file has the same owner on the node" is "$(file_of_node root)" 1000:1000
	ok "secret: owner and mode" is "$(app 'stat -L -c "%u:%g %a" /secret/key; cat /secret/key' | xargs)" "0:5000 440 confidential"
	ok "configMap" is "$(app 'stat -L -c %u:%g /config/key; cat /config/key' | xargs)" "0:5000 configured"
	ok "downwardAPI" is "$(app 'stat -L -c %u:%g /downward/name; cat /downward/name' | xargs)" "0:5000 mapped"
	ok "projected" is "$(app 'stat -L -c %u:%g /projected/token /projected/key /projected/secret; cat /projected/secret; echo; test -s /projected/token && echo token' | xargs)" "0:5000 0:5000 0:5000 confidential token"
	ok "subPath" is "$(app 'cat /sub/init /etc/app.conf; echo; echo x >/sub/new && stat -c %u:%g /disk/a/b/new' | xargs)" "from init configured 0:5000"
	# The kubelet (1.37) sends mappings for every mount, also for hostPath: root of the container owns what root of the node owns.
	ok "hostPath: a file that only root may read" is "$(app 'stat -c "%u:%g %a" /host/file; cat /host/file' | xargs)" "0:0 600 secret"
	ok "hostPath: a new file belongs to root on the node" is "$(app 'echo x >/host/new'; stat -c %u:%g "$w/mapped/new")" 0:0
	ok "a read-only volume" app '! touch /read-only/x 2>/dev/null'
	ok "user and groups of another container" is "$(k exec mapped -c user -- id)" "uid=1000(web) gid=3000 groups=3000,5000,50000(extra)"
	ok "its files in a volume" is "$(k exec mapped -c user -- sh -c 'touch /disk/user && stat -c %u:%g /disk/user; cat /secret/key' | xargs)" "1000:5000 confidential"
	ok "they have the same owner on the node" is "$(file_of_node user)" 1000:5000
	ok "the hook after the start has run" is "$(app 'cat /memory/started')" started
	ok "root has no privileges over the node" app '! mount -t tmpfs x /mnt 2>/dev/null && ! mknod /tmp/x b 8 0 2>/dev/null && ! echo x 2>/dev/null >/proc/sys/kernel/hostname'
}

userns_operations() {
	say "user namespaces: operations"
	ok "exec is in the user namespace" is "$(app 'cat /proc/self/uid_map; id -u' | xargs)" "$map 0"
	ok "exec with a terminal" grep -q /dev/pts <<<"$(script -qec "$kube_dir/kubectl --kubeconfig $w/kubeconfig exec -it mapped -c app -- tty" /dev/null </dev/null)"
	head -c 1M /dev/urandom >"$w/mapped.blob"
	ok "cp into the pod" k cp "$w/mapped.blob" mapped:/disk/blob -c app
	ok "cp out of the pod" k cp mapped:/disk/blob "$w/mapped.back" -c app >/dev/null
	ok "the copies are identical" cmp "$w/mapped.blob" "$w/mapped.back"
	ok "logs" is "$(k logs mapped -c app) $(k logs mapped -c side)" "begun side"
	k port-forward pod/mapped 18081:8080 >"$w/mapped.forward" 2>&1 &
	local forward=$!
	soon curl -sf http://127.0.0.1:18081/index.html
	ok "port-forward" is "$(curl -sf http://127.0.0.1:18081/index.html)" hello
	kill "$forward"
	pod mappedin "  hostUsers: false
		  containers: [{name: mappedin, $image, command: [cat], stdin: true, stdinOnce: true}]
		  restartPolicy: Never"
	ok "a pod with stdin runs" ready mappedin
	ok "attach" is "$(printf 'one\ntwo\n' | k attach -q -i mappedin 2>/dev/null)" "$(printf 'one\ntwo')"
	ok "the container ends when its stdin ends" soon phase mappedin Succeeded
	pod crash "  hostUsers: false
		  containers: [{name: crash, $image, command: [sh, -c, 'echo life; echo the reason >/dev/termination-log; sleep 3; exit 3']}]"
	crashed() { [ "$(k logs --previous crash 2>/dev/null)" = life ]; }
	ok "logs --previous after a crash" soon crashed
	ok "the message and the exit code of the crash" is "$(k get pod crash -o 'jsonpath={.status.containerStatuses[0].lastState.terminated.message} {.status.containerStatuses[0].lastState.terminated.exitCode}' | xargs)" "the reason 3"
	k debug mapped --image berth.local/busybox:1 --image-pull-policy Never --target app -c look -- sh -c 'ps | grep -q "[h]ttpd -p" && echo seen; cat /proc/self/uid_map; stat -c %u /proc/1/root/opt/app' >/dev/null 2>&1 || true
	looks() { [ "$(k logs mapped -c look 2>/dev/null | xargs)" = "seen $map 1000" ]; }
	ok "an ephemeral container sees the processes of its target, with its IDs" soon looks
	summarized() { k get --raw /api/v1/nodes/node/proxy/stats/summary | tr -d ' \n' | grep -q '"name":"app","startTime".*"workingSetBytes":[1-9]'; }
	ok "the kubelet's summary has the container" soon summarized
	ok "resize" k patch pod mapped "${subresource_resize[@]}" --patch '{"spec": {"containers": [{"name": "app", "resources": {"limits": {"cpu": "500m"}}}]}}' >/dev/null
	limited() { [ "$(app 'cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d" " -f1 /sys/fs/cgroup/cpu.max')" = 50000 ]; }
	ok "the CPU limit is increased in place" soon limited
	restarts() { k get pod mapped -o 'jsonpath={.status.containerStatuses[?(@.name=="'"$1"'")].restartCount}'; }
	ok "no container was restarted" is "$(restarts app) $(restarts user)" "0 0"
}

userns_restart() {
	say "user namespaces: restarts"
	kill "$berthd"
	while kill -0 "$berthd" 2>/dev/null; do sleep 0.1; done
	start_berthd
	greets() { [ "$(app 'echo hello')" = hello ]; }
	ok "exec after a restart of berthd" soon greets
	docker kill "$(container user mapped)" >/dev/null
	again() { [ "$(restarts user)" = 1 ] && [ -n "$(container user mapped)" ]; }
	ok "the kubelet restarts a container that was killed" soon again
	ok "it has the IDs of its pod" is "$(uid_map user mapped)" "$map"
	ok "it reads its volumes" is "$(k exec mapped -c user -- sh -c 'stat -c %u:%g /disk/user; cat /secret/key' | xargs)" "1000:5000 confidential"
	restart_kubelet ''
	soon k wait --for condition=Ready node/node --timeout 1s
	ok "the pod runs on after a restart of the kubelet" ready mapped
	ok "with the same containers" is "$(uid_map POD mapped), $(restarts app)" "$map, 0"
}

userns_others() {
	say "user namespaces: other pods"
	if [ "$kube_minor" -ge 36 ]; then
		pod innode "  hostUsers: false
		  hostNetwork: true
		  containers: [{name: innode, $image, command: [sh, -c, 'httpd -p 18082 -h /etc; while :; do sleep 0.2; done'], readinessProbe: {httpGet: {port: 18082, path: /hosts}, periodSeconds: 1, timeoutSeconds: 10}}]"
		ok "a pod in the node's network runs" ready innode
		ok "it has IDs of its own" grep -Eq '^0 [1-9][0-9]{4,} 65536$' <<<"$(uid_map innode innode)"
		ok "it has the node's network namespace" is "$(readlink "/proc/$(pid innode innode)/ns/net")" "$(readlink /proc/self/ns/net)"
		ok "root cannot change that network" k exec innode -- sh -c '! ip link set lo down 2>/dev/null && ! echo x 2>/dev/null >/sys/class/net/lo/ifalias && test -d /sys/class/net/node0'
	fi
	pod unmappable "  hostUsers: false
		  volumes: [{name: proc, hostPath: {path: /proc}}]
		  containers: [{name: unmappable, $image, command: [sleep, '1000'], volumeMounts: [{name: proc, mountPath: /of-node}]}]"
	named() { k describe pod unmappable | grep -q 'mount /of-node: /proc cannot be id-mapped'; }
	ok "a volume that cannot be id-mapped is named in an event" soon named
	pod plain "  containers: [{name: plain, $image, command: [sleep, '1000']}]"
	ok "a pod without hostUsers runs" ready plain
	ok "it is in the node's user namespace" is "$(uid_map plain plain)" "$(xargs </proc/self/uid_map)"
	in_use() { ! runtime remove >"$w/remove.log" 2>&1 && grep -q mapped "$w/remove.log"; }
	ok "the runtime cannot be removed while pods use it" in_use
}

userns_removal() {
	say "user namespaces: removal"
	deleted() { k delete pod --all --timeout 120s >/dev/null; }
	ok "pods can be deleted" deleted
	ok "the hook before the stop has run, and the container got its signal" is "$(cat "$w/mapped/before" "$w/mapped/stopped" | xargs)" "before stopped"
	ok "no container remains" soon left
	no_instructions() { [ -z "$(instructions)" ]; }
	ok "no instructions remain" soon no_instructions
	no_processes() { [ -z "$(mapped_processes)" ]; }
	ok "no process remains" soon no_processes
	same_mounts() { diff "$w/mounts.before" <(mounts); }
	ok "no mount remains" soon same_mounts
	same_netns() { diff "$w/netns.before" <(netns); }
	ok "no network namespace remains" soon same_netns
	no_volumes() { [ -z "$(docker volume ls -q)" ]; }
	ok "no volume remains" soon no_volumes
	k delete configmap/mapped secret/mapped >/dev/null
	ok "the runtime can be removed" runtime remove
	ok "user namespaces are not announced any more" soon not_announced
}

subresource_resize=(--subresource resize)
if [ "$kube_minor" -ge 33 ]; then
	userns_story
else
	echo "skipped: Kubernetes $kube_version does not enable UserNamespacesSupport by default"
fi
