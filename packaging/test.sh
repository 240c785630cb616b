#!/usr/bin/env bash
# test.sh: tests the packages that `make packages` has built: a second build
# of the same sources gives the same bytes, lintian and rpmlint report nothing, and
# installing, upgrading and removing work in separate root directories. There,
# systemctl and similar commands only record their arguments; the behaviour of the units
# is tested in a VM (make test-vm). With FULL=1 the second build compiles
# everything again, instead of only linking it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/.." && pwd)
. "$top/contrib/e2e/lib.sh"
. "$top/contrib/e2e/story.sh"
[ "$(id -u)" = 0 ] || die "installing packages in a separate root directory needs root"
need file=file lintian=lintian rpmlint=rpmlint rpm=rpm rpmbuild=rpm busybox=busybox-static
dist=$top/dist/packages
w=$(mktemp -d /tmp/berth-packages.XXXXXX)
trap 'rm -rf "$w"' EXIT
deb=$(ls "$dist"/berth_*_amd64.deb)
rpm=$(ls "$dist"/berth-*.x86_64.rpm)

say "checksums and SBOMs"
(cd "$dist" && sha256sum --check --quiet SHA256SUMS)
for machine in amd64 arm64 armv7 ppc64le riscv64 s390x; do
	want "berth-oci for $machine is static and stripped" grep -q 'statically linked.*stripped' <(file "$top/dist/stage/berth-oci-$machine")
	parts=$(go version -m "$top/dist/stage/berthd-$machine" | grep -cE '^\s+dep\s')
	listed=$(grep -c '"purl"' "$dist"/berth_*_"$machine".spdx.json)
	want "the SBOM for $machine lists all $parts modules and Go" [ "$listed" = $((parts + 1)) ]
	want "berthd for $machine is static and stripped" grep -q 'statically linked.*stripped' <(file "$top/dist/stage/berthd-$machine")
done

say "building the same sources in another directory, with another time and umask"
mkdir "$w/tree"
tar -C "$top" --exclude ./dist --exclude ./bin --exclude ./.git -c . | tar -C "$w/tree" -x --no-same-permissions
find "$w/tree" -exec touch -d 2001-02-03 {} +
(
	umask 077
	export TZ=Asia/Tokyo
	[ -z "${FULL:-}" ] || export GOFLAGS="${GOFLAGS:-} -a"
	make -s -C "$w/tree" packages VERSION="${VERSION:?}" COMMIT="${COMMIT:?}" DATE="${DATE:?}"
)
want "two builds give the same bytes" diff -r "$dist" "$w/tree/dist/packages"

say "lintian and rpmlint"
for file in "$dist"/berth_*.deb; do
	want "lintian reports nothing about ${file##*_}" lintian --allow-root --fail-on error,warning "$file"
done
for file in "$dist"/berth-*.rpm; do
	rpmlint --config "$here/rpmlint.toml" "$file" >"$w/rpmlint.log" 2>&1 || true # its exit code is for errors only
	want "rpmlint reports nothing about ${file##*-1.}" grep -q ' 0 errors, 0 warnings' "$w/rpmlint.log" || { cat "$w/rpmlint.log"; exit 1; }
done

# root DIR: a root directory with a shell, and commands that record their arguments.
root() {
	mkdir -p "$1"/{bin,dev,usr/bin,usr/lib/systemd/system,run/systemd/system,etc,tmp,var/lib/rpm}
	mknod -m 666 "$1/dev/null" c 1 3
	ln -s usr/lib "$1/lib" # as in current distributions
	cp "$(command -v busybox)" "$1/bin/busybox"
	for a in sh cat mkdir rm ln echo test env readlink; do ln -s busybox "$1/bin/$a"; done
	for a in systemctl deb-systemd-invoke deb-systemd-helper systemd-sysusers; do
		printf '#!/bin/sh\necho "%s $*" >>/calls\n' "$a" >"$1/usr/bin/$a"
		chmod +x "$1/usr/bin/$a"
	done
	: >"$1/calls"
}
called() { # called ROOT COMMAND: whether the command was called with these arguments
	grep -qxF -- "$2" "$1/calls" || { echo "calls were:"; cat "$1/calls"; return 1; }
}
units_in_place() {
	local u
	for u in berth.service berth.socket cri-docker.service cri-docker.socket cri-dockerd.service cri-dockerd.socket; do
		[ -e "$1/usr/lib/systemd/system/$u" ] || { echo "$u is missing"; return 1; }
	done
	[ "$(readlink "$1/usr/lib/systemd/system/cri-docker.socket")" = berth.socket ]
}
no_stop() { not grep -E ' (stop|restart|kill)( |$)' "$1/calls"; }
# copied ROOT: what "berthd runtime install" does to the node, but for daemon.json.
copied() {
	mkdir -p "$1/opt/berth/oci" "$1/etc/docker"
	echo '{"runtimes": {"berth": {"path": "/opt/berth/oci/berth-oci"}}}' >"$1/etc/docker/daemon.json"
	echo program >"$1/opt/berth/oci/berth-oci"
}
# kept ROOT: what copied has made is as it was.
kept() { grep -qx program "$1/opt/berth/oci/berth-oci" && grep -q '"/opt/berth/oci/berth-oci"' "$1/etc/docker/daemon.json"; }
runs() { [[ $(chroot "$1" "/usr/bin/$2" --version) == "$2 "* ]]; }

say "deb: install over cri-dockerd, upgrade, remove, purge"
r=$w/deb
root "$r"
mkdir -p "$r/var/lib/dpkg/info" "$r/var/lib/dpkg/updates" && : >"$r/var/lib/dpkg/status"
pkg() { dpkg --root="$r" --log=/dev/null --force-depends --force-confdef --force-confold "$@" >"$w/log" 2>&1 || { cat "$w/log"; return 1; }; }
"$here/peer.sh" "$w/peer"
want "a node with cri-dockerd" pkg -i "$w"/peer/*.deb
: >"$r/calls"
want "berth installs over cri-dockerd" pkg -i --auto-deconfigure --force-conflicts "$deb"
want "cri-dockerd is gone" not grep -q '^Status: install ok installed' <(grep -A1 '^Package: cri-dockerd$' "$r/var/lib/dpkg/status")
want "all units of berth exist after the removal of cri-dockerd" units_in_place "$r"
want "the program runs as berthd" runs "$r" berthd
want "the program runs as cri-dockerd" runs "$r" cri-dockerd
want "the unit of cri-dockerd is unmasked" called "$r" "deb-systemd-helper unmask cri-docker.service"
want "the service is enabled" called "$r" "deb-systemd-helper enable berth.service"
want "the service is started" called "$r" "deb-systemd-invoke start berth.socket berth.service"
want "manual page and completion are installed" test -s "$r/usr/share/man/man8/berthd.8.gz" -a -s "$r/usr/share/bash-completion/completions/cri-dockerd"
: >"$r/calls"
echo 'log-level: debug' >>"$r/etc/berth/config.yaml"
copied "$r"
want "upgrade" pkg -i "$deb"
want "the upgrade keeps the OCI runtime of Docker" kept "$r"
want "the upgrade restarts the service in one step" called "$r" "deb-systemd-invoke try-restart berth.service"
want "the upgrade stops no unit" no_stop "$r"
want "the operator's edit is kept" grep -qx 'log-level: debug' "$r/etc/berth/config.yaml"
: >"$r/calls"
mkdir -p "$r/var/lib/cri-dockerd/sandbox"
want "removal" pkg -r berth
want "the OCI runtime of Docker is kept" kept "$r"
want "the removal prints how to remove it" grep -q 'berthd runtime remove' "$w/log"
want "the service is stopped" called "$r" "deb-systemd-invoke stop berth.socket berth.service"
want "the configuration is kept" test -f "$r/etc/berth/config.yaml"
want "all units and programs are removed" test ! -e "$r/usr/bin/berthd" -a ! -L "$r/usr/bin/cri-dockerd" -a ! -L "$r/usr/lib/systemd/system/cri-docker.service"
: >"$r/calls"
want "installed again" pkg -i "$deb"
want "the service is started again" called "$r" "deb-systemd-invoke start berth.socket berth.service"
want "removed again" pkg -r berth
want "purge" pkg -P berth
want "the configuration is removed" test ! -e "$r/etc/berth"
want "the state of pods is kept" test -d "$r/var/lib/cri-dockerd/sandbox"
# beside WHAT FILE INSTALL...: installs berth while the operator's FILE conflicts with its units.
beside() {
	local what=$1 file=$2
	shift 2
	: >"$r/calls"
	want "installation beside $what" "$@"
	want "berth is not started" not grep -q ' start' "$r/calls"
	want "the installation names the conflicting file" grep -qx "berth: $file conflicts with the units of berth" "$w/log"
	rm "$r$file"
}
units=/etc/systemd/system
mkdir -p "$r$units"/{cri-docker,berth}.service.d
echo '[Unit]' >"$r$units/cri-docker.service"
beside "a unit of cri-dockerd made by hand" $units/cri-docker.service pkg -i "$deb"
echo '[Unit]' >"$r$units/berth.service"
beside "a unit of berth made by hand" $units/berth.service pkg -i "$deb"
printf '[Service]\nExecStart=\nExecStart=-/usr/local/bin/cri-dockerd' >"$r$units/cri-docker.service.d/10-cni.conf"
beside "a drop-in with another program" $units/cri-docker.service.d/10-cni.conf pkg -i "$deb"
: >"$r/calls"
printf '[Service]\nExecStart=\nExecStart=-/usr/bin/cri-dockerd --log-level debug\n' >"$r$units/berth.service.d/10.conf"
want "installation with a drop-in that starts berthd" pkg -i "$deb"
want "berth is started" called "$r" "deb-systemd-invoke start berth.socket berth.service"

say "deb: failed operations are rolled back"
: >"$r/calls"
want "an aborted removal" chroot "$r" /var/lib/dpkg/info/berth.postinst abort-remove
want "starts the service again" called "$r" "deb-systemd-invoke start berth.socket berth.service"
want "restarts no unit" no_stop "$r"
want "removed, to install cri-dockerd again" pkg -r berth
want "cri-dockerd is installed" pkg -i "$w"/peer/*.deb
mkdir -p "$w/taken/DEBIAN" "$w/taken/usr/bin"
printf 'Package: taken\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y.invalid>\nDescription: contains a file of berth\n' >"$w/taken/DEBIAN/control"
: >"$w/taken/usr/bin/berthd"
dpkg-deb --root-owner-group -b "$w/taken" "$w/taken.deb" >/dev/null
want "a package that contains a file of berth" pkg -i "$w/taken.deb"
: >"$r/calls"
want "berth cannot be unpacked with it" not pkg -i --auto-deconfigure --force-conflicts "$deb" >/dev/null
want "the units that were stopped for it" called "$r" "deb-systemd-invoke stop cri-docker.socket cri-docker.service"
want "are started again" called "$r" "deb-systemd-invoke start cri-docker.socket cri-docker.service"

say "rpm: install over cri-dockerd with Epoch 3, upgrade, remove"
r=$w/rpm
root "$r"
cat >"$w/cri-dockerd.spec" <<-'S'
	Name: cri-dockerd
	Epoch: 3
	Version: 99.0
	Release: 3
	Summary: the predecessor
	License: ASL 2.0
	%description
	The predecessor.
	%install
	mkdir -p %{buildroot}/usr/bin %{buildroot}/usr/lib/systemd/system
	printf '#!/bin/sh\necho cri-dockerd 99.0\n' >%{buildroot}/usr/bin/cri-dockerd
	chmod 755 %{buildroot}/usr/bin/cri-dockerd
	echo '[Unit]' >%{buildroot}/usr/lib/systemd/system/cri-docker.service
	echo '[Unit]' >%{buildroot}/usr/lib/systemd/system/cri-docker.socket
	%preun
	if [ $1 = 0 ]; then systemctl --no-reload disable --now cri-docker.service; fi
	%files
	/usr/bin/cri-dockerd
	/usr/lib/systemd/system/cri-docker.service
	/usr/lib/systemd/system/cri-docker.socket
S
cat >"$w/wants.spec" <<-'S'
	Name: wants-cri
	Version: 1
	Release: 1
	Summary: needs an adapter
	License: ASL 2.0
	Requires: cri-dockerd >= 3:0.3
	%description
	Needs an adapter.
	%files
S
sed -i 's/^\t//' "$w"/*.spec
for spec in cri-dockerd wants; do
	rpmbuild -bb --quiet --target x86_64-linux --define "_topdir $w/rpmbuild" --define '_build_id_links none' "$w/$spec.spec" >"$w/rpmbuild.log" 2>&1 || { cat "$w/rpmbuild.log"; die "rpmbuild"; }
done
rp() { rpm --root "$r" --nosignature "$@" >"$w/log" 2>&1 || { cat "$w/log"; return 1; }; }
rpm --root "$r" --initdb
built=$w/rpmbuild/RPMS/x86_64
# No package provides the shell here, so dependencies are not checked.
want "a node with cri-dockerd 3:99.0, and a package that needs it" rp -i --nodeps "$built"/cri-dockerd-99.0-3.x86_64.rpm "$built"/wants-cri-1-1.x86_64.rpm
: >"$r/calls"
cp "$rpm" "$w/berth.rpm"
want "the package requires only a shell" not grep -v '/bin/sh\|^rpmlib' <(rpm -qp --nosignature --requires "$rpm")
want "berth replaces it" rp -U "$w/berth.rpm"
want "cri-dockerd is gone" not rpm --root "$r" -q cri-dockerd
want "a package that requires cri-dockerd accepts berth" rp -V --nofiles --noscripts wants-cri
want "all units exist" units_in_place "$r"
want "the program runs as cri-dockerd" runs "$r" cri-dockerd
want "berth is started after cri-dockerd has disabled its units" test "$(grep -n 'disable --now cri-docker.service' "$r/calls" | cut -d: -f1)" -lt "$(grep -n 'start berth.socket berth.service' "$r/calls" | cut -d: -f1)"
want "the service is enabled" called "$r" "systemctl enable berth.socket berth.service"
want "cri-dockerd cannot be installed beside it" not rpm --root "$r" --nosignature -i "$built"/cri-dockerd-99.0-3.x86_64.rpm
: >"$r/calls"
echo 'log-level: debug' >>"$r/etc/berth/config.yaml"
copied "$r"
want "upgrade" rp -U --replacepkgs --replacefiles "$w/berth.rpm"
want "the upgrade restarts the service in one step" called "$r" "systemctl try-restart berth.service"
want "the operator's edit is kept" grep -qx 'log-level: debug' "$r/etc/berth/config.yaml"
want "the upgrade stops no unit" no_stop "$r"
: >"$r/calls"
want "the upgrade keeps the OCI runtime of Docker" kept "$r"
want "removal" rp -e --nodeps berth
want "the OCI runtime of Docker is kept" kept "$r"
want "the service is stopped and disabled" called "$r" "systemctl --no-reload disable --now berth.socket berth.service"
want "the operator's edit is kept as .rpmsave" test -f "$r/etc/berth/config.yaml.rpmsave"
want "all units and programs are removed" test ! -e "$r/usr/bin/berthd" -a ! -L "$r/usr/lib/systemd/system/cri-docker.service"
mkdir -p "$r$units/berth.service.d"
echo '[Unit]' >"$r$units/berth.service"
beside "a unit of berth made by hand" $units/berth.service rp -U "$w/berth.rpm"
want "removal" rp -e --nodeps berth
printf '[Service]\nExecStart=\nExecStart=/usr/local/bin/cri-dockerd\n' >"$r$units/berth.service.d/10.conf"
beside "a drop-in with another program" $units/berth.service.d/10.conf rp -U "$w/berth.rpm"

say "the example configuration"
berthd=$top/dist/stage/berthd-amd64
want "is accepted as it is" "$berthd" config print --config "$here/config.yaml"
sed 's/^# \([a-z-]*: \)/\1/' "$here/config.yaml" >"$w/all.yaml"
want "is accepted with all options uncommented" "$berthd" config print --config "$w/all.yaml"
say "all checks passed"
