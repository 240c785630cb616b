#!/usr/bin/env bash
# registry.sh DIR: serves the images in DIR as a registry, over TLS, on the
# loopback in the namespaces of box.sh.
set -euo pipefail
dir=$1
mkdir -p "$dir"
names=(registry.k8s.io gcr.io k8s.gcr.io)
[ -f "$dir/ca.crt" ] || openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -keyout "$dir/key.pem" -out "$dir/ca.crt" \
	-subj /CN=e2e-registry -addext "subjectAltName=$(printf 'DNS:%s,' "${names[@]}")IP:127.0.0.1" 2>/dev/null
# This mount is in the namespace of box.sh, so the machine's /etc/docker does not change.
mkdir -p /etc/docker
mount -t tmpfs tmpfs /etc/docker
for name in "${names[@]}"; do
	mkdir -p "/etc/docker/certs.d/$name"
	cp "$dir/ca.crt" "/etc/docker/certs.d/$name/"
done
cat >"$dir/config.yml" <<C
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $dir/data}, delete: {enabled: true}}
http: {addr: 127.0.0.1:443, tls: {certificate: $dir/ca.crt, key: $dir/key.pem}}
C
docker-registry serve "$dir/config.yml" >"$dir/log" 2>&1 &
for _ in $(seq 100); do
	if curl -sf --cacert "$dir/ca.crt" https://registry.k8s.io/v2/ >/dev/null; then exit 0; fi
	sleep 0.1
done
cat "$dir/log" >&2
exit 1
