#!/usr/bin/env bash
# Builds a static busybox with the default configuration into the cache. Debian's
# busybox lacks commands that the tests run, and its shell prefers its
# built-in commands to those of the image.
. "$(dirname "$0")/lib.sh"
env -i odd-name=1 "$cache/busybox" sh -c env 2>/dev/null | grep -q odd-name && exit 0
need gcc=build-essential make=build-essential dpkg-source=dpkg-dev bzip2=bzip2
say "building busybox"
w=$(mktemp -d)
trap 'rm -rf "$w"' EXIT
chmod 755 "$w"
cd "$w"
mkdir -p lists/partial
{ grep -rhE '^deb ' /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | sed 's/^deb /deb-src /' || true
	for f in /etc/apt/sources.list.d/*.sources; do
		[ -f "$f" ] || continue
		awk '/^URIs:/{u=$2} /^Suites:/{$1="";s=$0} /^Components:/{$1="";c=$0; n=split(s,a," "); for(i=1;i<=n;i++) print "deb-src [trusted=yes]", u, a[i], c}' "$f"
	done; } >sources.list
opts=(-o Dir::Etc::SourceList="$w/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$w/lists" -o APT::Sandbox::User=root)
apt-get -qq "${opts[@]}" update
apt-get -qq "${opts[@]}" source busybox >/dev/null 2>&1
cd busybox-*/
make -s defconfig >/dev/null
# tc needs kernel headers that no longer exist. Without FEATURE_DI_ENV_HACK the shell drops
# environment variables with names that are not valid in a shell. All else stays the default.
sed -i -e 's/.*CONFIG_FEATURE_DI_ENV_HACK[ =].*/CONFIG_FEATURE_DI_ENV_HACK=y/' -e 's/.*CONFIG_STATIC[ =].*/CONFIG_STATIC=y/' -e 's/^CONFIG_TC=y/# CONFIG_TC is not set/' .config
make -s -j"$(nproc)" >../log 2>&1 || { tail -20 ../log; exit 1; }
install -D busybox "$cache/busybox"
