#!/bin/bash
# vm-critest-story.sh: run by vm.sh for vm-critest.sh.
set -euo pipefail
say() { printf '\n==> %s\n' "$*"; }
export PATH=$PATH:/usr/sbin
w=$PWD
code=0

# As the Engines of live.sh: the tests change daemon.json beside the socket, and read the PID file.
mkdir -p /srv/docker /etc/systemd/system/docker.service.d
echo '{}' >/srv/docker/daemon.json
printf '[Service]\nExecStart=\nExecStart=/usr/sbin/dockerd -H unix:///srv/docker/docker.sock --pidfile /srv/docker/pid --config-file /srv/docker/daemon.json\n' >/etc/systemd/system/docker.service.d/e2e.conf
systemctl daemon-reload
systemctl restart docker
export DOCKER_HOST=unix:///srv/docker/docker.sock

say "virtual machine"
echo "Docker $(docker version -f '{{.Server.Version}}'), cgroup $(docker info -f '{{.CgroupVersion}}, driver {{.CgroupDriver}}, {{.SecurityOptions}}')"
systemctl is-active docker

if [ "$(cat run)" != none ]; then
	say "running contrib/live"
	mkdir -p bb/bin bb/etc bb/tmp
	cp busybox bb/bin/
	for a in $(./busybox --list | grep -vx busybox); do ln bb/bin/busybox "bb/bin/$a"; done
	printf 'root:x:0:0:root:/:/bin/sh\n' >bb/etc/passwd
	printf 'root:x:0:\n' >bb/etc/group
	tar -C bb -c . | docker import -c 'CMD ["sh"]' - berth-test:1 >/dev/null
	./live.test -test.v -test.timeout 60m -test.run "$(cat run)" -docker "$DOCKER_HOST" -image berth-test:1 -cni /usr/lib/cni -berthd "$w/berthd" -berth-oci "$w/berth-oci" 2>&1 | grep -v '^=== ' || code=1
	docker rmi -f berth-test:1 >/dev/null
fi

[ "$(cat critest.run)" != none ] || exit $code

say "running critest"
echo '127.0.0.1 registry.k8s.io gcr.io k8s.gcr.io' >>/etc/hosts
bash ./registry.sh "$w/cache/registry"
mkdir -p net.d
cat >net.d/10-e2e.conflist <<-C
	{"cniVersion": "1.0.0", "name": "e2e", "plugins": [
	  {"type": "bridge", "bridge": "e2e0", "isGateway": true, "ipMasq": false,
	   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
	  {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]}
C
./berthd runtime install --docker-endpoint "$DOCKER_HOST" --docker-config /srv/docker/daemon.json --runtime-program "$w/berth-oci" --run-dir "$w/run.d"
./berthd --container-runtime-endpoint "unix://$w/cri.sock" --docker-endpoint "$DOCKER_HOST" --cni-conf-dir "$w/net.d" --cni-bin-dir /usr/lib/cni \
	--cri-dockerd-root-directory "$w/root" --run-dir "$w/run.d" --log-level debug >berthd.log 2>&1 &
for _ in $(seq 600); do [ ! -S cri.sock ] || break; sleep 0.1; done
mapfile -t flags <flags
./critest -ginkgo.no-color -ginkgo.flake-attempts=2 -ginkgo.junit-report=junit.xml \
	-runtime-endpoint "unix://$w/cri.sock" -image-endpoint "unix://$w/cri.sock" ${flags[@]:+"${flags[@]}"} >critest.log 2>&1 || true
[ -s junit.xml ] || { tail -40 critest.log; exit 1; }
./verdict -known critest.known junit.xml || {
	grep -E 'level=(WARN|ERROR)' berthd.log | tail -20
	code=1
}
exit $code
