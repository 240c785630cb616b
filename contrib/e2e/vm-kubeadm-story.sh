#!/bin/bash
# vm-kubeadm-story.sh: run by vm.sh for `make test-kubeadm`. Follows the documentation from the package
# to a node that is Ready, checks a Deployment and a Service, and checks them again after a reboot. The
# machine has only one local address and no network, and images are built on it.
set -euo pipefail
. ./story.sh
die() {
	echo "error: $*" >&2
	docker ps -a --format 'table {{.Names}}\t{{.Status}}' || true
	kubectl logs -n kube-system -l k8s-app=kube-proxy --tail 40 || true
	kubectl get endpointslices -A || true
	[ -z "${pod:-}" ] || kubectl exec "$pod" -- wget -O- -T 5 "http://${address:-}/" || true
	iptables -S FORWARD -v || true
	iptables -t nat -S -v | grep -E 'KUBE-(SERVICES|SVC|SEP)' || true
	journalctl --no-pager -u kubelet | tail -30
	journalctl --no-pager -u berth.service | tail -30
	exit 1
}
soon() { # soon COMMAND...: retries for ten minutes, because the processor is emulated
	local end=$((SECONDS + 600))
	while [ $SECONDS -lt $end ]; do if "$@" >/dev/null 2>&1; then return 0; fi; sleep 3; done
	"$@"
}
export PATH=$PATH:/usr/sbin KUBECONFIG=/etc/kubernetes/admin.conf
network() {
	modprobe dummy || true
	ip link add node0 type dummy 2>/dev/null || ip link add node0 type bridge
	ip addr add 10.10.0.10/24 dev node0
	ip link set node0 up
	ip route add default via 10.10.0.1
}
ready() { kubectl get nodes | grep -q ' Ready '; }
answers() { [ "$(kubectl get deployment web -o jsonpath='{.status.readyReplicas}')" = 2 ]; }
look() {
	want "the node is Ready" soon ready
	kubectl get nodes -o wide
	want "the node reports the runtime docker://26" grep -q '^docker://26' <(kubectl get nodes -o jsonpath='{.items[0].status.nodeInfo.containerRuntimeVersion}')
	want "the Deployment is ready" soon answers
	kubectl get pods -A -o wide
	pod=$(kubectl get pods -l app=web -o jsonpath='{.items[0].metadata.name}')
	want "kubectl logs" is "$(kubectl logs "$pod" | head -1)" "hello from $pod"
	executed() { [ "$(kubectl exec "$pod" -- hostname)" = "$pod" ]; }
	want "kubectl exec" soon executed
	kubectl port-forward "$pod" 18080:8080 >/dev/null &
	forward=$!
	forwarded() { [ "$(busybox wget -qO- http://127.0.0.1:18080/)" = "it works" ]; }
	want "kubectl port-forward" soon forwarded
	kill $forward
	address=$(kubectl get service web -o jsonpath='{.spec.clusterIP}')
	by_address() { [ "$(kubectl exec "$pod" -- wget -qO- -T 5 "http://$address/")" = "it works" ]; }
	want "a pod reaches the Service by its address" soon by_address
	named() { kubectl exec "$pod" -- nslookup web.default.svc.cluster.local | grep -q "Address.*$address"; }
	want "a pod resolves the name of the Service" soon named
}

# proxy_image DIR: kube-proxy with this machine's iptables, its extensions and their libraries:
# without libm the extension statistic cannot be loaded, and Services with two pods have no rules.
proxy_image() {
	local name parts
	cp kube/kube-proxy "$1/usr/local/bin/"
	parts=(/usr/sbin/xtables-nft-multi /usr/lib/x86_64-linux-gnu/xtables/*.so)
	cp --parents -L "${parts[@]}" $(ldd "${parts[@]}" | grep -o '/lib[^ ]*' | grep -v ':$' | sort -u) "$1/"
	for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
		ln -s xtables-nft-multi "$1/usr/sbin/$name"
	done
}

first() {
	say "apt install the package"
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ./berth_*_amd64.deb >/dev/null
	echo '{"live-restore": true}' >/etc/docker/daemon.json
	systemctl reload docker
	network
	say "installing the files of Kubernetes' packages"
	cp kube/kubelet kube/kubeadm kube/kubectl crictl /usr/bin/
	cat >/etc/systemd/system/kubelet.service <<-'U'
		[Unit]
		After=network-online.target
		[Service]
		Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
		Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
		EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
		ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS
		Restart=always
		RestartSec=5
		StartLimitInterval=0
		[Install]
		WantedBy=multi-user.target
	U
	# At the next boot the network is set up before the kubelet starts.
	printf '#!/bin/bash\n%s\nnetwork\n' "$(declare -f network)" >/usr/local/sbin/node-network
	chmod +x /usr/local/sbin/node-network
	printf '[Unit]\nBefore=kubelet.service\n[Service]\nType=oneshot\nExecStart=/usr/local/sbin/node-network\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/node-network.service
	systemctl daemon-reload
	systemctl enable --quiet kubelet.service node-network.service
	say "building the images, as there is no registry"
	docker_import() { tar -C "$1" -c . | docker import -c "$3" - "$2" >/dev/null; }
	for image in $(kubeadm config images list --kubernetes-version v1.37.2 2>/dev/null); do
		name=${image##*/}
		name=${name%%:*}
		rm -rf image
		mkdir -p image/usr/local/bin image/tmp
		case $name in
		pause) # imported under its public name, so that it is not pulled
			cp kube/pause image/pause
			docker_import image "$image" 'ENTRYPOINT ["/pause"]'
			;;
		kube-proxy)
			proxy_image image
			docker_import image "$image" 'CMD ["kube-proxy"]'
			;;
		coredns)
			cp kube/coredns image/coredns
			docker_import image "$image" 'ENTRYPOINT ["/coredns"]'
			;;
		*)
			if [ -e "kube/$name" ]; then cp "kube/$name" image/usr/local/bin/; else cp -r bb/. image/; fi
			docker_import image "$image" 'CMD ["sh"]'
			;;
		esac
	done
	rm -rf image
	tar -C bb -c . | docker import -c 'CMD ["sh"]' - registry.k8s.io/berth-test/busybox:1 >/dev/null

	say "berthd doctor before kubeadm"
	echo 1 >/proc/sys/net/ipv4/ip_forward
	echo net.ipv4.ip_forward=1 >/etc/sysctl.d/99-kubernetes.conf
	modprobe br_netfilter || true
	echo br_netfilter >/etc/modules-load.d/kubernetes.conf
	berthd doctor || true

	say "commands of kubernetes.md"
	# On an emulated processor kubeadm times out, and its timeouts cannot be set with
	# flags: running the same command again continues.
	kubeadm() {
		local -
		set +x
		command kubeadm "$@" && return
		[ "$1" = init ] || return
		for _ in 1 2 3; do
			say "kubeadm timed out: running it again when the API server responds"
			soon curl -sfk https://10.10.0.10:6443/livez
			if command kubeadm "$@" --ignore-preflight-errors=all; then return; fi
		done
		return 1
	}
	as_written docs/kubernetes.md '## kubeadm' 1
	as_written docs/kubernetes.md '## kubeadm' 2 2>&1 | tee init.log || die "kubeadm init"
	complaints() { grep -iE 'warning.*(cri|container runtime|docker|cgroup)|^W[0-9]{4}.*(sandbox image|container runtime)|inconsistent' init.log || true; }
	want "kubeadm prints no warning about the runtime" is "$(complaints)" ""
	as_written docs/kubernetes.md '## kubeadm' 3

	say "configuring a network for pods"
	mkdir -p /etc/cni/net.d
	cat >/etc/cni/net.d/10-vm.conflist <<-C
		{"cniVersion": "1.0.0", "name": "vm", "plugins": [
		  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
		   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
		  {"type": "firewall"},
		  {"type": "portmap", "capabilities": {"portMappings": true}}]}
	C
	cat >web.yaml <<-D
		apiVersion: apps/v1
		kind: Deployment
		metadata: {name: web}
		spec:
		  replicas: 2
		  selector: {matchLabels: {app: web}}
		  template:
		    metadata: {labels: {app: web}}
		    spec:
		      terminationGracePeriodSeconds: 1
		      automountServiceAccountToken: false
		      containers:
		      - name: web
		        image: registry.k8s.io/berth-test/busybox:1
		        imagePullPolicy: Never
		        command: [sh, -c, 'echo hello from \$(hostname); echo it works >/tmp/index.html; exec httpd -f -p 8080 -h /tmp']
		---
		apiVersion: v1
		kind: Service
		metadata: {name: web}
		spec:
		  selector: {app: web}
		  ports: [{port: 80, targetPort: 8080}]
	D
	soon kubectl get serviceaccount default
	kubectl apply -f web.yaml
	look
	say "berthd doctor after kubeadm"
	want "berthd doctor finds no error" berthd doctor

	say "upgrading the package under running pods"
	docker ps -q | sort >before
	apt-get install -y --no-install-recommends ./next/berth_*_amd64.deb >/dev/null
	want "the new version runs" grep -q 99.0.0 <(berthd --version)
	sleep 20
	want "no container was restarted" is "$(docker ps -q | sort | tr '\n' ' ')" "$(tr '\n' ' ' <before)"
	want "the node stays Ready" ready
	say "reboot"
	exit 42
}

second() {
	say "after the reboot"
	want "the API server responds" soon kubectl get nodes
	# The API server returns the old status until the kubelet has updated it.
	restarted() {
		local counts
		counts=$(kubectl get pods -A -o jsonpath='{range .items[*]}{.status.containerStatuses[0].restartCount}{"\n"}{end}')
		[ -n "$counts" ] && ! grep -qx 0 <<<"$counts"
	}
	want "every pod has been restarted" soon restarted
	look
	want "berthd doctor finds no error after the reboot" berthd doctor
	say "all checks passed"
}

case $1 in
1) first ;;
2) second ;;
esac
