#!/usr/bin/env bash
# conformance.sh [flags of the specs]: make test-conformance: runs the node conformance specs of
# Kubernetes on the node of cluster.sh, with the controllers
# and the scheduler. The images that they use are built from Kubernetes' sources
# and busybox. FOCUS selects specs, PROCS is the number of parallel processes; ENGINE, ENGINE_FLAGS, GATES and
# KEEP are as for cluster.sh. With RUNTIME=1 berth's OCI runtime is installed; FOCUS=UserNamespacesSupport
# selects the specs that need it.
registry=yes kube=conformance
. "$(dirname "$0")/cluster.sh"

if [ -n "${RUNTIME:-}" ]; then
	say "installing the OCI runtime"
	runtime install
fi
say "starting controllers and scheduler"
"$cache/kube/kube-controller-manager" --kubeconfig "$w/kubeconfig" --leader-elect=false --bind-address 127.0.0.1 \
	--service-account-private-key-file "$w/sa.key" --root-ca-file "$w/apiserver/apiserver.crt" >"$w/controllers.log" 2>&1 &
pids+=($!)
"$cache/kube/kube-scheduler" --kubeconfig "$w/kubeconfig" --leader-elect=false --bind-address 127.0.0.1 >"$w/scheduler.log" 2>&1 &
pids+=($!)

if [ "$(cat "$cache/registry/conformance" 2>/dev/null)" != 4 ]; then
	say "building the images"
	E=registry.k8s.io/e2e-test-images
	push() { docker tag "$1" "$2" && docker push -q "$2" >/dev/null && docker rmi "$2" >/dev/null; }
	mkdir -p "$w/agnhost" "$w/kitten/etc"
	cp -al "$w/bb/." "$w/agnhost/"
	rm "$w/agnhost/etc/passwd" "$w/agnhost/etc/group"
	printf 'root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/:/bin/sh\n' >"$w/agnhost/etc/passwd"
	printf 'root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n' >"$w/agnhost/etc/group"
	cp "$cache/kube/agnhost" "$w/agnhost/"
	ln -s agnhost "$w/agnhost/agnhost-2"
	mkdir "$w/agnhost/uploads"
	printf '#!/bin/sh\nfor url; do :; done\nexec wget -q -O - "$url"\n' >"$w/agnhost/bin/curl"
	chmod +x "$w/agnhost/bin/curl"
	tar -C "$w/agnhost" -c . | docker import -c 'ENTRYPOINT ["/agnhost"]' -c 'CMD ["pause"]' - t-agnhost >/dev/null
	push t-agnhost $E/agnhost:2.66.1
	push t-agnhost $E/agnhost:2.55 # the previous release, for a spec that updates a pod
	echo '{"image": "kitten.jpg"}' >"$w/kitten/data.json"
	echo 'NAME="Alpine Linux"' >"$w/kitten/etc/os-release"
	tar -C "$w/kitten" -c . | docker import - t-kitten >/dev/null
	push t-kitten $E/kitten:1.8
	printf 'FROM berth.local/busybox:1\nUSER 1234\n' | DOCKER_BUILDKIT=0 docker build -q -t t-nonroot - >/dev/null 2>&1
	push t-nonroot $E/nonroot:1.5
	push berth.local/busybox:1 $E/busybox:1.37.0-2
	docker rmi -f t-agnhost t-kitten t-nonroot >/dev/null
	echo 4 >"$cache/registry/conformance"
fi

say "running the conformance specs"
code=0
# Most specs wait most of the time, so they run in parallel.
"$cache/kube/ginkgo" run -procs "${PROCS:-6}" -no-color -focus "${FOCUS:-\\[sig-node\\].*\\[Conformance\\]}" -timeout 2h -output-dir "$w" -junit-report junit.xml "$cache/kube/e2e.test" -- \
	-kubeconfig "$w/kubeconfig" -kubectl-path "$cache/kube/kubectl" -provider local -disable-log-dump "$@" >"$w/e2e.log" 2>&1 || code=$?
[ -s "$w/junit.xml" ] || { tail -40 "$w/e2e.log"; die "e2e.test did not run"; }
sed -n '/^Summarizing/,$p' "$w/e2e.log" | grep -E '\[(FAIL|TIMEDOUT|PANICKED|INTERRUPTED)\]' | sort -u || true
grep -E '^Ran [0-9]+ of|^(FAIL|SUCCESS)!' "$w/e2e.log"
exit "$code"
