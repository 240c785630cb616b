#!/bin/bash
# vm-story.sh: run by vm.sh for `make test-vm`. Checks a node on which the deb
# is installed: units, pods on cgroup v2 with the systemd driver, restarts of
# berthd and Docker, an upgrade, a reboot, removal.
set -euo pipefail
. ./story.sh
die() {
	echo "error: $*" >&2
	systemctl --no-pager --full status berth.service berth.socket || true
	journalctl --no-pager -u berth.service | tail -40
	exit 1
}
cri() { ./crictl --config "$PWD/crictl.yaml" "$@" 2> >(grep -v level=warning >&2); }
soon() { # soon COMMAND...: retries for a minute
	for _ in $(seq 120); do if "$@" >/dev/null 2>&1; then return 0; fi; sleep 0.5; done
	"$@"
}
make() { :; } # the packages are built already
kubeadm() { :; } # contrib/e2e/vm-kubeadm.sh runs it
export PATH=$PATH:/usr/sbin
printf 'runtime-endpoint: unix:///run/cri-dockerd.sock\nimage-endpoint: unix:///run/cri-dockerd.sock\ntimeout: 60\n' >crictl.yaml
deb=$(echo ./berth_*_amd64.deb)

# by_hand UNIT: installs a cri-dockerd without a package, with the drop-in of minikube.
by_hand() {
	printf '#!/bin/sh\nexec sleep 86400\n' >/usr/local/bin/cri-dockerd
	chmod +x /usr/local/bin/cri-dockerd
	printf '[Service]\nExecStart=/usr/local/bin/cri-dockerd --container-runtime-endpoint fd://\n[Install]\nWantedBy=multi-user.target\n' >"/etc/systemd/system/$1.service"
	printf '[Socket]\nListenStream=/run/cri-dockerd.sock\n[Install]\nWantedBy=sockets.target\n' >"/etc/systemd/system/$1.socket"
	mkdir -p /etc/systemd/system/cri-docker.service.d
	printf '[Service]\nExecStart=\nExecStart=/usr/local/bin/cri-dockerd --container-runtime-endpoint fd:// --network-plugin=cni\n' >/etc/systemd/system/cri-docker.service.d/10-cni.conf
	systemctl daemon-reload
	systemctl enable --now "$1.socket" "$1.service" 2>/dev/null
}

# run NAME [FIELD]: runs a pod with one container. Sets $pod and $container. FIELD is added to the linux part of both.
run() {
	cat >"$1-pod.json" <<-P
		{"metadata": {"name": "$1", "namespace": "default", "uid": "uid-$1"}, "hostname": "$1", "log_directory": "/var/log/pods/$1",
		 "linux": {"cgroup_parent": "kubepods.slice/kubepods-besteffort.slice"${2:+, $2}}}
	P
	cat >"$1-container.json" <<-P
		{"metadata": {"name": "web"}, "image": {"image": "berth.local/busybox:1"}, "log_path": "web/0.log",
		 "linux": {"resources": {"memory_limit_in_bytes": 67108864, "unified": {"memory.high": "50331648"}}${2:+, $2}}, "command": ["sh", "-c", "cat /sys/fs/cgroup/memory.high >/high; echo hello from \$(hostname); exec sleep 86400"]}
	P
	pod=$(cri runp "$1-pod.json")
	container=$(cri create "$pod" "$1-container.json" "$1-pod.json")
	cri start "$container" >/dev/null
}
pid() { docker inspect -f '{{.State.Pid}}' "$container"; }
state() { cri inspectp -o go-template --template '{{.status.state}}' "$pod"; }
address() { cri inspectp -o go-template --template '{{.status.network.ip}}' "$pod"; }
leased() { [ -e "/var/lib/cni/networks/vm/$1" ]; }
ready() { cri info -o go-template --template '{{range .status.conditions}}{{.type}}={{.status}} {{end}}' | grep -q 'NetworkReady=true'; }
announced() { cri info | tr -d ' \n' | grep -q '"user_namespaces":true'; }
replaced() { # whether berthd is another process than $hung
	local now
	now=$(systemctl show -P MainPID berth.service)
	[ "$now" != 0 ] && [ "$now" != "$hung" ]
}
range='[{"host_id": 200000, "container_id": 0, "length": 65536}]'
mapped='"security_context": {"namespace_options": {"userns_options": {"mode": 0, "uids": '$range', "gids": '$range'}}}'
alive() { # alive WHAT: checks that the pod still runs, with the same process
	want "$1: the pod is ready" is "$(state)" SANDBOX_READY
	want "$1: the container has the same process" is "$(pid)" "$was"
	want "$1: exec works" is "$(cri exec "$container" hostname)" story
}

first() {
	say "virtual machine"
	. /etc/os-release
	echo "$PRETTY_NAME, $(systemctl --version | head -1), Docker $(docker version -f '{{.Server.Version}}'), cgroup $(docker info -f '{{.CgroupVersion}}, driver {{.CgroupDriver}}')"
	want "cgroup v2 with the systemd driver" is "$(docker info -f '{{.CgroupVersion}} {{.CgroupDriver}}')" "2 systemd"
	echo '{"live-restore": true}' >/etc/docker/daemon.json
	systemctl reload docker
	tar -C bb -c . | docker import -c 'CMD ["sh"]' - berth.local/busybox:1 >/dev/null

	say "commands of README.md"
	mkdir -p dist/packages
	cp "$deb" dist/packages/
	as_written README.md '## Install' 1
	want "berthd runs under both names" is "$(berthd --version | cut -d' ' -f1) $(cri-dockerd --version | cut -d' ' -f1)" "berthd cri-dockerd"

	say "units"
	for u in berth.socket berth.service cri-docker.socket cri-docker.service cri-dockerd.socket cri-dockerd.service; do
		want "$u is active" systemctl --quiet is-active "$u"
	done
	want "the socket and the service are enabled" is "$(systemctl is-enabled berth.socket berth.service | tr '\n' ' ')" "enabled enabled "
	want "the socket is accessible to root and the group docker" is "$(stat -c '%a %U %G' /run/cri-dockerd.sock)" "660 root docker"
	# These are the steps of minikube and of most guides.
	want "cri-docker.socket can be enabled" systemctl --quiet enable cri-docker.socket
	want "cri-docker.service can be enabled and restarted" systemctl enable --quiet cri-docker.service
	want "cri-docker can be restarted" systemctl restart cri-docker
	want "journalctl -u cri-docker shows the log of berthd" grep -q 'msg=serving' <(journalctl --no-pager -u cri-docker)
	systemd-analyze --no-pager security berth.service | tail -1
	want "systemd-analyze verify reports nothing about the units" is "$(systemd-analyze verify --man=no berth.service berth.socket 2>&1 | grep berth || true)" ""

	say "configuring a network for pods"
	cri info | grep -A3 NetworkReady || true
	mkdir -p /etc/cni/net.d
	cat >/etc/cni/net.d/10-vm.conflist <<-C
		{"cniVersion": "1.0.0", "name": "vm", "plugins": [
		  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
		   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
		  {"type": "portmap", "capabilities": {"portMappings": true}}]}
	C
	want "the network is ready without a restart" soon ready

	say "running a pod"
	run story
	was=$(pid)
	ip=$(address)
	echo "pod $pod at $ip"
	alive "started"
	want "the log file has the CRI format" soon grep -q ' stdout F hello from story' /var/log/pods/story/web/0.log
	want "crictl logs" is "$(cri logs "$container")" "hello from story"
	want "the cgroup is below the requested parent" grep -q '^0::/kubepods.slice/kubepods-besteffort.slice/docker-' "/proc/$was/cgroup"
	want "the memory limit is set" is "$(cat "/sys/fs/cgroup$(cut -d: -f3 "/proc/$was/cgroup")/memory.max")" 67108864
	want "eth0 in the pod has the address" grep -q "$ip" <(cri exec "$container" ip addr show eth0)
	want "the address is allocated" leased "$ip"
	cri stats --id "$container" || true

	say "restarts"
	systemctl restart berth.service
	alive "service restarted"
	kill -9 "$(systemctl show -P MainPID berth.service)"
	want "a killed berthd is restarted" soon systemctl --quiet is-active berth.service
	alive "berthd killed"
	systemctl stop berth.service 2>/dev/null
	want "the service is stopped and the socket is active" is "$(systemctl is-active berth.service berth.socket | tr '\n' ' ')" "inactive active "
	alive "service started by a call"
	for _ in 1 2 3; do systemctl restart berth.service; done &
	calls=0
	while kill -0 $! 2>/dev/null; do
		cri version >/dev/null || die "a call during a restart failed"
		calls=$((calls + 1))
	done
	wait
	echo "ok: $calls calls during restarts, all successful"
	systemctl restart docker
	want "the container runs after a restart of Docker" soon is "$(docker ps -q --no-trunc | grep -c "$container")" 1
	soon cri version
	alive "Docker restarted, with live-restore"
	systemctl stop docker.socket docker.service 2>/dev/null
	sleep 2
	want "berthd keeps running when Docker stops" systemctl --quiet is-active berth.service
	want "the status reports DockerDaemonNotReady" grep -q DockerDaemonNotReady <(cri info)
	systemctl start docker.service
	soon cri version
	alive "Docker stopped and started"

	say "drop-in of minikube"
	mkdir -p /etc/systemd/system/cri-docker.service.d
	printf '[Service]\nExecStart=\nExecStart=/usr/bin/cri-dockerd --container-runtime-endpoint fd:// --pod-infra-container-image=registry.k8s.io/pause:3.9 --network-plugin=cni --hairpin-mode=hairpin-veth\n' >/etc/systemd/system/cri-docker.service.d/10-cni.conf
	systemctl daemon-reload
	systemctl restart cri-docker
	want "berthd runs with the flags of the drop-in" grep -q -- '--hairpin-mode=hairpin-veth' <(tr '\0' ' ' </proc/"$(systemctl show -P MainPID berth.service)"/cmdline)
	alive "with the drop-in"
	rm -r /etc/systemd/system/cri-docker.service.d
	systemctl daemon-reload

	say "command of kubespray's unit, with the path of the socket"
	mkdir -p /etc/systemd/system/cri-dockerd.service.d
	printf '[Service]\nExecStart=\nExecStart=/usr/bin/cri-dockerd --container-runtime-endpoint unix:///var/run/cri-dockerd.sock --cni-conf-dir=/etc/cni/net.d --cni-bin-dir=/usr/lib/cni --network-plugin=cni --pod-cidr=10.99.0.0/24 --pod-infra-container-image=registry.k8s.io/pause:3.10 --log-level info\n' >/etc/systemd/system/cri-dockerd.service.d/kubespray.conf
	systemctl daemon-reload
	systemctl restart cri-dockerd
	want "berthd serves this path on systemd's socket" grep -q 'msg=serving endpoint=unix:///var/run/cri-dockerd.sock' <(journalctl --no-pager "_PID=$(systemctl show -P MainPID berth.service)")
	alive "with a path and a socket unit"
	rm -r /etc/systemd/system/cri-dockerd.service.d
	systemctl daemon-reload
	systemctl restart berth.service
	alive "without the drop-in"

	say "environment variables"
	echo DOCKER_HOST=unix:///run/docker.sock >/etc/default/berth
	echo 'docker-endpoint: ""' >/etc/berth/config.d/env.yaml
	systemctl restart berth.service
	alive "with DOCKER_HOST"
	want "berthd has the variable" grep -qxz DOCKER_HOST=unix:///run/docker.sock "/proc/$(systemctl show -P MainPID berth.service)/environ"
	rm /etc/default/berth /etc/berth/config.d/env.yaml
	systemctl restart berth.service

	say "watchdog"
	hung=$(systemctl show -P MainPID berth.service)
	kill -STOP "$hung"
	# After WatchdogSec= systemd ends it, after TimeoutStopSec= with SIGKILL.
	for _ in 1 2 3 4 5; do ! soon replaced 2>/dev/null || break; done
	want "systemd replaces a berthd that hangs" replaced
	want "the journal says why" grep -qi 'watchdog timeout' <(journalctl --no-pager -u berth.service)
	soon cri version
	alive "after the watchdog"

	say "a pod with a user namespace"
	want "user namespaces are not announced without the OCI runtime" not announced
	berthd runtime install
	want "user namespaces are announced" soon announced
	alive "after the installation of the OCI runtime"
	echo "$pod $container $ip" >story
	run mapped "$mapped"
	want "its root is not the node's" is "$(stat -c %u "/proc/$(pid)") $(cri exec "$container" cat /proc/self/uid_map | xargs)" "200000 0 200000 65536"
	want "the first instruction had memory.high" is "$(cri exec "$container" cat /high)" 50331648
	want "the OCI runtime is not removed while the pod has it" not berthd runtime remove
	echo "$pod $container $(pid)" >mapped
	read -r pod container ip <story

	say "upgrade"
	before=$(systemctl show -P MainPID berth.service)
	apt-get install -y --no-install-recommends ./next/berth_*_amd64.deb >/dev/null
	want "the new version is installed" grep -q 99.0.0 <(berthd --version)
	want "berthd is a new process" not is "$(systemctl show -P MainPID berth.service)" "$before" >/dev/null
	alive "upgraded"
	read -r pod container was <mapped
	want "the pod with a user namespace runs on" is "$(pid) $(cri exec "$container" cat /proc/self/uid_map | xargs)" "$was 0 200000 65536"
	systemctl restart docker
	soon cri version
	want "also after a restart of Docker" is "$(pid) $(cri exec "$container" hostname)" "$was mapped"

	say "berthd doctor"
	berthd doctor || true

	say "reboot"
	exit 42
}

second() {
	read -r pod container ip <story
	say "after the reboot"
	want "the service is active" soon systemctl --quiet is-active berth.service
	soon cri version
	want "the old pod is listed as not ready" is "$(state)" SANDBOX_NOTREADY
	want "its container has exited" is "$(cri inspect -o go-template --template '{{.status.state}}' "$container")" CONTAINER_EXITED
	cri stopp "$pod" >/dev/null
	want "its address is released" not leased "$ip"
	run story2
	want "a new pod runs" is "$(cri exec "$container" hostname)" story2
	cri rmp -f "$(head -c 64 story)" >/dev/null
	cri rmp -f "$(head -c 64 mapped)" >/dev/null
	want "the old pods are removed" is "$(docker ps -aq | wc -l)" 2
	story2=$pod
	run mapped2 "$mapped"
	want "a new pod has a user namespace" is "$(cri exec "$container" cat /proc/self/uid_map | xargs)" "0 200000 65536"
	cri rmp -f "$pod" >/dev/null
	want "the OCI runtime is not removed while a container needs it" not berthd runtime remove
	cri rmp -f "$story2" >/dev/null
	want "the OCI runtime is removed" berthd runtime remove
	want "nothing is left of it" is "$(find /opt/berth -mindepth 1 2>/dev/null | wc -l) $(grep -c berth /etc/docker/daemon.json)" "0 0"
	run story3
	was=$(pid)

	say "removal"
	apt-get remove -y berth >/dev/null
	want "the socket is removed" test ! -e /run/cri-dockerd.sock
	want "the pod keeps running" is "$(pid)" "$was"
	apt-get install -y --no-install-recommends "$deb" >/dev/null
	soon cri version
	want "after a new installation the pod is ready" is "$(state)" SANDBOX_READY
	want "after a new installation the pod has the same process" is "$(pid)" "$was"
	cri rmp -f "$pod" >/dev/null
	want "containers, namespaces, files and addresses of the pod are removed" is "$(docker ps -aq | wc -l) $(find /run/netns /run/berth/pods -mindepth 1 | wc -l) $(find /var/lib/cni/networks/vm -name '10.*' | wc -l)" "0 0 0"
	apt-get purge -y berth >/dev/null
	want "purge removes the configuration" test ! -e /etc/berth

	say "commands of migrating.md: from the package of cri-dockerd and back"
	mkdir -p /opt/cni
	ln -s /usr/lib/cni /opt/cni/bin
	tar -C bb -c . | docker import -c 'ENTRYPOINT ["sleep", "1000000"]' - registry.k8s.io/pause:3.10 >/dev/null
	apt-get install -y ./cri-dockerd_*_amd64.deb >/dev/null
	adapter() { readlink "/proc/$(systemctl show -P MainPID cri-docker.service)/exe"; }
	runs() { is "$(adapter)" "$1" && cri version; }
	want "cri-dockerd runs" soon runs /usr/bin/cri-dockerd
	soon ready
	run story
	was=$(pid)
	alive "created by cri-dockerd"
	as_written docs/migrating.md '## From cri-dockerd' 1
	want "berthd runs instead of cri-dockerd" soon runs /usr/bin/berthd
	want "the package of cri-dockerd is removed" not grep -q ' installed' <(dpkg-query -W -f '${Status}' cri-dockerd 2>/dev/null)
	want "the units are enabled" is "$(systemctl is-enabled berth.socket berth.service | tr '\n' ' ')" "enabled enabled "
	alive "taken over"
	as_written docs/migrating.md '## Back to cri-dockerd' 1
	want "cri-dockerd runs again" soon runs /usr/bin/cri-dockerd
	alive "back under cri-dockerd"
	as_written docs/migrating.md '## From cri-dockerd' 1
	want "berthd runs again" soon runs /usr/bin/berthd
	alive "taken over again"
	cri rmp -f "$pod" >/dev/null
	dpkg --purge berth cri-dockerd >/dev/null
	docker rmi registry.k8s.io/pause:3.10 >/dev/null
	rm /opt/cni/bin

	say "commands of migrating.md: from a cri-dockerd without a package"
	by_hand cri-docker
	as_written docs/migrating.md '## From cri-dockerd' 1
	want "berth is not started while cri-dockerd's units exist" not systemctl --quiet is-active berth.service
	as_written docs/migrating.md '## From cri-dockerd' 2
	want "berthd responds" soon cri version
	want "the drop-in applies to berthd" is "$(systemctl show -P DropInPaths berth.service)" /etc/systemd/system/cri-docker.service.d/10-cni.conf
	rm -r /etc/systemd/system/cri-docker.service.d
	apt-get purge -y berth >/dev/null

	say "commands of kubernetes.md: after kubespray"
	by_hand cri-dockerd
	rm -r /etc/systemd/system/cri-docker.service.d
	as_written docs/kubernetes.md '## kubespray' 1
	want "berthd responds" soon cri version
	apt-get purge -y berth >/dev/null

	say "commands of install.md: without a package"
	rm /usr/local/bin/cri-dockerd
	as_written docs/install.md '## Without a package' 1
	want "berthd responds" soon cri version
	want "berthd runs from /usr/local/bin" is "$(readlink "/proc/$(systemctl show -P MainPID berth.service)/exe")" /usr/local/bin/berthd
	want "the plugins in Debian's directory are found" soon ready
	say "all checks passed"
}

case $1 in
1) first ;;
2) second ;;
esac
