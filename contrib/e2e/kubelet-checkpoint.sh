# shellcheck shell=bash
# Sourced by kubelet.sh: the kubelet's checkpoint API (KEP-2008), on Engines that have a CRIU which works
# with this kernel: ENGINE=trixie or forky.
say "checkpoints"
version=$("$top/bin/berthd" doctor --config /dev/null --docker-endpoint "$DOCKER_HOST" 2>/dev/null | sed -n 's/^ok  *criu  *version \([^,]*\),.*/\1/p' || true) # what else the doctor finds does not matter here
pod counter "  containers:
		  - {name: counter, $image, command: [sh, -c, 'rm /etc/group; i=0; while :; do i=\$((i + 1)); echo \$i >/n; sleep 0.2; done']}"
ok "a pod that counts runs" running counter
checkpoint() { k create --raw "/api/v1/nodes/node/proxy/checkpoint/default/$1/counter" -f /dev/null; }
count() { k exec counter -- cat /n; }
if [ -z "$version" ]; then
	refusal=$(checkpoint counter 2>&1 || true)
	ok "without CRIU the kubelet's answer names it" grep -qi criu <<<"$refusal"
else
	echo "CRIU $version"
	before=$(count)
	archive=$(checkpoint counter | grep -o '/[^"]*\.tar')
	ok "the kubelet's answer names an archive for root only" is "$(stat -c %a "$archive")" 600
	goes_on() { local now; now=$(count) && [ -n "$now" ] && [ "$now" -gt "$((before + 3))" ]; }
	ok "the container counts on" soon goes_on
	ok "it was not restarted" is "$(k get pod counter -o 'jsonpath={.status.containerStatuses[0].restartCount}')" 0
	ok "the archive has CRIU's images, the configuration and the changed files" is "$(tar -tf "$archive" | grep -cxE 'checkpoint/inventory.img|config.dump|spec.dump|rootfs-diff.tar|deleted.files|dump.log')" 6
	ok "the configuration names the container" grep -q '"name": "counter"' <<<"$(tar -xOf "$archive" config.dump)"
	again=$(checkpoint counter | grep -o '/[^"]*\.tar')
	ok "a second checkpoint is another archive" test -s "$again" -a "$again" != "$archive"
fi
nobody() { ! checkpoint nobody >/dev/null 2>&1; }
ok "a checkpoint of a pod that is not there is refused" nobody
ok "the pod is deleted" k delete pod counter --timeout 60s >/dev/null
ok "nothing is left of the checkpoints" is "$(find "$w/root/berth/checkpoints" -mindepth 1 2>/dev/null)" ""
