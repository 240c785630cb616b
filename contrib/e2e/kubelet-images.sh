# shellcheck shell=bash
# Sourced by kubelet.sh, on a node without pods: the kubelet's image garbage collection deletes an
# image that was pulled and spares one that was built on the node. It is the page
# contrib/docs/build-here.md with a kubelet that finds its disk full.
say "images that were built on the node survive image garbage collection"
printf 'FROM berth.local/busybox:1\nCMD ["sh", "-c", "echo built here; sleep 1000"]\n' | DOCKER_BUILDKIT=0 docker build -q -t app - >/dev/null 2>&1
printf 'FROM berth.local/busybox:1\nENV PULLED=1\nCMD ["sleep", "1000"]\n' | DOCKER_BUILDKIT=0 docker build -q -t registry.k8s.io/pulled:1 - >/dev/null 2>&1
docker push -q registry.k8s.io/pulled:1 >/dev/null
docker rmi registry.k8s.io/pulled:1 >/dev/null
run_app() {
	k run app --image app --image-pull-policy Never \
		--overrides '{"spec": {"nodeName": "node", "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1, "tolerations": [{"operator": "Exists"}]}}' >/dev/null
}
ok "kubectl run --image=app --image-pull-policy=Never" run_app
ok "the pod of an image that was built runs" soon running app
ok "its output" is "$(k logs app)" "built here"
pod pulled "  containers: [{name: pulled, image: 'registry.k8s.io/pulled:1', imagePullPolicy: Always}]"
ok "the pod of an image that is pulled runs" soon running pulled
delete_pods() { k delete pod "$@" --timeout 120s >/dev/null; }
ok "both pods are deleted" delete_pods app pulled
ok "their containers are removed" soon left
present() { docker image inspect "$1" >/dev/null 2>&1; }
absent() { ! present "$1"; }
ok "the image that was built is there before" present app
ok "the image that was pulled is there before" present registry.k8s.io/pulled:1

cp "$w/kubelet.yaml" "$w/kubelet.yaml.before"
# The kubelet compares with the thresholds of image garbage collection every 5 minutes only, but
# deletes all unused images as soon as it finds the disk full.
restart_kubelet '
	s/nodefs.available: 0%, imagefs.available: 0%/nodefs.available: 99%, imagefs.available: 99%/
	$a imageMinimumGCAge: 1s
	$a imageGCHighThresholdPercent: 2
	$a imageGCLowThresholdPercent: 1'
ok "the kubelet deletes the image that was pulled" soon absent registry.k8s.io/pulled:1
sleep 15 # the next round of the kubelet
ok "the image that was built is still there" present app
ok "the image that was imported is still there" present berth.local/busybox:1
ok "the kubelet has tried to free space" grep -qi 'deleting unused images\|attempting to delete unused images' "$w/kubelet.log"
cp "$w/kubelet.yaml.before" "$w/kubelet.yaml"
restart_kubelet ''
relieved() { [ "$(k get node node -o 'jsonpath={.status.conditions[?(@.type=="DiskPressure")].status}')" = False ] && k wait --for condition=Ready node/node --timeout 1s; }
ok "the node is ready again" soon relieved
ok "kubectl run again" run_app
ok "the pod of the image that was built runs again" soon running app
ok "its pod is deleted" delete_pods app
ok "no container remains after image garbage collection" soon left
