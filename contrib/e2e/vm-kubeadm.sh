#!/usr/bin/env bash
# vm-kubeadm.sh: make test-kubeadm: runs vm-kubeadm-story.sh in a VM (vm.sh): from the deb to a
# node that is Ready. kube.sh builds Kubernetes.
. "$(dirname "$0")/lib.sh"
"$e2e/busybox.sh"
[ -x "$cache/bin/crictl" ] || build_tools
"$e2e/kube.sh" dns
w=$(mktemp -d /tmp/berth-vm.XXXXXX)
trap 'rm -rf "$w"' EXIT
mkdir -p "$w/bb/bin" "$w/bb/tmp" "$w/kube"
cp "$cache/busybox" "$w/bb/bin/busybox" # Debian's busybox loads libraries to resolve host names, and crashes
for a in sh sleep hostname ip echo cat wget httpd nslookup; do ln -s busybox "$w/bb/bin/$a"; done
for b in kubelet kubeadm kubectl kube-apiserver kube-controller-manager kube-scheduler kube-proxy coredns etcd; do cp "$cache/kube/$b" "$w/kube/"; done
cp "$top/core/pause/pause-amd64" "$w/kube/pause"
next_package "$w/next"
VM_MEM=${VM_MEM:-6144} VM_LIMIT=${VM_LIMIT:-3600} "$e2e/vm.sh" "$e2e/vm-kubeadm-story.sh" "$e2e/story.sh" "$top/contrib/docs" "$top"/dist/packages/berth_*_amd64.deb "$cache/bin/crictl" "$w/bb" "$w/kube" "$w/next"
