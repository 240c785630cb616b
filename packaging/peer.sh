#!/usr/bin/env bash
# peer.sh DIR [PROGRAM]: builds DIR/cri-dockerd_VERSION_amd64.deb, a package with the name,
# units and maintainer scripts of cri-dockerd's package. Its program is PROGRAM, or a
# shell script that only prints a version.
set -euo pipefail
out=$1 program=${2:-}
w=$out/cri-dockerd
units=$w/lib/systemd/system
mkdir -p "$w/DEBIAN" "$w/usr/bin" "$units"
cat >"$w/DEBIAN/control" <<-C
	Package: cri-dockerd
	Version: 0.4.3.3-0~debian-bookworm
	Architecture: amd64
	Maintainer: x <x@y.invalid>
	Description: the predecessor
C
if [ -n "$program" ]; then
	cp "$program" "$w/usr/bin/cri-dockerd"
else
	printf '#!/bin/sh\necho cri-dockerd 0.4.3\n' >"$w/usr/bin/cri-dockerd"
fi
chmod 755 "$w/usr/bin/cri-dockerd"
cat >"$units/cri-docker.service" <<-U
	[Unit]
	After=docker.service
	Requires=cri-docker.socket
	[Service]
	Type=notify
	ExecStart=/usr/bin/cri-dockerd --container-runtime-endpoint fd://
	Restart=always
	KillMode=process
	[Install]
	WantedBy=multi-user.target
U
cat >"$units/cri-docker.socket" <<-U
	[Unit]
	PartOf=cri-docker.service
	[Socket]
	ListenStream=%t/cri-dockerd.sock
	SocketMode=0660
	SocketGroup=docker
	[Install]
	WantedBy=sockets.target
U
cat >"$w/DEBIAN/postinst" <<-'S'
	#!/bin/sh
	set -e
	for unit in cri-docker.service cri-docker.socket; do
		deb-systemd-helper unmask "$unit"
		deb-systemd-helper enable "$unit"
	done
	systemctl daemon-reload
	deb-systemd-invoke start cri-docker.service cri-docker.socket
S
cat >"$w/DEBIAN/prerm" <<-'S'
	#!/bin/sh
	[ "$1" != remove ] || deb-systemd-invoke stop cri-docker.service cri-docker.socket
S
cat >"$w/DEBIAN/postrm" <<-'S'
	#!/bin/sh
	[ "$1" != remove ] || deb-systemd-helper mask cri-docker.service cri-docker.socket
	[ "$1" != purge ] || deb-systemd-helper unmask cri-docker.service cri-docker.socket
	systemctl daemon-reload
S
chmod 755 "$w"/DEBIAN/p*
dpkg-deb --root-owner-group -b "$w" "$out/" >/dev/null
