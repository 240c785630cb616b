#!/usr/bin/env bash
# sign-test.sh: signs packages with a key that it makes, and lets gpg, rpm, debsig-verify,
# apt and dnf accept them, and refuse what somebody has changed. apt, dnf and rpm run with
# separate root directories; the machine's sources and trusted keys are not touched.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/.." && pwd)
. "$top/contrib/e2e/lib.sh"
. "$top/contrib/e2e/story.sh"
[ "$(id -u)" = 0 ] || die "installing packages in a separate root directory needs root"
need gpg=gpg gpgv=gpgv rpm=rpm rpmkeys=rpm debsig-verify=debsig-verify createrepo_c=createrepo-c apt-get=apt dnf=dnf busybox=busybox-static
w=$(mktemp -d /tmp/berth-signed.XXXXXX)
trap 'GNUPGHOME=$w/gpg gpgconf --kill all; GNUPGHOME=$w/stranger gpgconf --kill all; rm -rf "$w"' EXIT

# new_key HOME PASSPHRASE: makes a key, as a maintainer would.
new_key() {
	install -d -m 700 "$1"
	GNUPGHOME=$1 gpg --batch --quiet --pinentry-mode loopback --passphrase "$2" --quick-generate-key 'berth test <test@berth.invalid>' rsa2048 sign 1y
	GNUPGHOME=$1 gpg --batch --quiet --pinentry-mode loopback --passphrase "$2" --armor --export-secret-keys >"$1/private.asc"
}
say "keys"
new_key "$w/gpg" 'a test' 2>/dev/null
new_key "$w/stranger" '' 2>/dev/null
export GNUPGHOME=$w/gpg
key=$(gpg --batch --with-colons --list-keys 2>/dev/null | awk -F: '$1 == "fpr" {print $10; exit}')

go build -C "$here" -o "$w/packaging" .
packaging() { (cd "$here" && exec "$w/packaging" -version "${VERSION:?}" -commit "${COMMIT:?}" -date "${DATE:?}" -machines "amd64,s390x" -out "$w/dist" "$@"); }
# refuses WHAT MESSAGE OPTION...: the build ends with one line that contains the message.
refuses() {
	local what=$1 message=$2
	shift 2
	! packaging "$@" >"$w/log" 2>&1 || die "$what was accepted"
	[ "$(wc -l <"$w/log")" = 1 ] && grep -qF -- "$message" "$w/log" || { cat "$w/log"; die "$what: want one line with: $message"; }
	echo "ok: $what is refused"
}
refuses "a missing passphrase" "the key has a passphrase: set SIGNING_PASSPHRASE or -passphrase-file" -key "$w/gpg/private.asc"
SIGNING_PASSPHRASE=wrong refuses "a wrong passphrase" "cannot be decrypted" -key "$w/gpg/private.asc"
gpg --armor --export >"$w/public.asc"
refuses "a public key" "must contain exactly one OpenPGP private key" -key "$w/public.asc"
refuses "a file that is no key" "not an OpenPGP private key" -key "$here/main.go"
refuses "a passphrase without a key" "only with -key" -passphrase-file "$w/public.asc"

say "building signed packages"
echo 'a test' >"$w/passphrase"
want "the build says who signed" grep -q "are signed with the key $key" <(packaging -key "$w/gpg/private.asc" -passphrase-file "$w/passphrase")
packages=$w/dist/packages repository=$w/dist/repository
deb=$(ls "$packages"/berth_*_amd64.deb)
rpm=$(ls "$packages"/berth-*.x86_64.rpm)

# changed FILE TEXT NEW: copies a file to $w/changed with the first occurrence of a text replaced.
changed() {
	rm -rf "$w/changed" && mkdir "$w/changed"
	cp "$1" "$w/changed/"
	sed -i "0,/$2/s/$2/$3/" "$w/changed/${1##*/}"
	! cmp -s "$1" "$w/changed/${1##*/}" || die "$2 is not in $1"
}
# flipped FILE: changes one byte in the last part of a file.
flipped() {
	local at=$(($(stat -c %s "$1") * 3 / 4)) byte
	byte=$(dd if="$1" bs=1 skip=$at count=1 status=none | od -An -tu1)
	printf "\\x$(printf %x $((byte ^ 255)))" | dd of="$1" bs=1 seek=$at conv=notrunc status=none
}
quiet() { "$@" >"$w/log" 2>&1 || { cat "$w/log"; return 1; }; }
# fails PATTERN COMMAND...: the command fails, and its output says why.
fails() {
	local pattern=$1
	shift
	! "$@" >"$w/log" 2>&1 && grep -qE -- "$pattern" "$w/log" || { cat "$w/log"; return 1; }
}

say "SHA256SUMS.asc"
gpg --dearmor <"$repository/berth.asc" >"$w/berth.gpg"
verify() { quiet gpgv --keyring "$w/berth.gpg" "$packages/SHA256SUMS.asc" "$1"; }
want "gpg verifies the checksums" verify "$packages/SHA256SUMS"
want "and they are those of the packages" sh -c "cd '$packages' && sha256sum --check --quiet SHA256SUMS"
changed "$packages/SHA256SUMS" amd64 arm64
want "other checksums are refused" not verify "$w/changed/SHA256SUMS" >/dev/null

say "the signature in the deb"
mkdir -p "$w/debsig"/{policies,keyrings}/"${key: -16}"
cp "$w/berth.gpg" "$w/debsig/keyrings/${key: -16}/"
cat >"$w/debsig/policies/${key: -16}/berth.pol" <<-P
	<?xml version="1.0"?>
	<!DOCTYPE Policy SYSTEM "https://www.debian.org/debsig/1.0/policy.dtd">
	<Policy xmlns="https://www.debian.org/debsig/1.0/">
	<Origin Name="berth" id="${key: -16}" Description="berth"/>
	<Selection><Required Type="origin" File="berth.gpg" id="${key: -16}"/></Selection>
	<Verification MinOptional="0"><Required Type="origin" File="berth.gpg" id="${key: -16}"/></Verification>
	</Policy>
P
debsig() { debsig-verify --policies-dir "$w/debsig/policies" --keyrings-dir "$w/debsig/keyrings" "$@"; }
want "debsig-verify accepts the deb" quiet debsig "$deb"
cp "$deb" "$w/flipped.deb" && flipped "$w/flipped.deb"
want "and refuses a changed one" fails 'Failed verification|BADSIG|BAD signature' debsig "$w/flipped.deb"

say "the signature in the rpm"
r=$w/rpm
mkdir -p "$r"
quiet rpm --root "$r" --initdb
check() { rpmkeys --root "$r" --define '_pkgverify_level all' --checksig "$@"; }
want "rpm refuses the package without the key" fails 'SIGNATURES NOT OK' check "$rpm"
want "rpm imports the key" quiet rpmkeys --root "$r" --import "$repository/berth.asc"
want "rpm accepts the package" quiet check "$rpm"
want "because of its signature" grep -q 'signatures OK' "$w/log"
cp "$rpm" "$w/flipped.rpm" && flipped "$w/flipped.rpm"
want "rpm refuses a changed package" fails 'NOT OK' check "$w/flipped.rpm"

# root DIR: a root directory with a shell for the scripts of the packages.
root() {
	mkdir -p "$1"/{bin,dev,usr/bin,usr/lib/systemd/system,tmp,etc/apt/apt.conf.d,etc/apt/preferences.d,etc/apt/sources.list.d,var/lib/dpkg/info,var/lib/dpkg/updates,var/lib/apt/lists/partial,var/cache/apt/archives/partial,var/log/apt}
	mknod -m 666 "$1/dev/null" c 1 3
	: >"$1/var/lib/dpkg/status"
	ln -s usr/lib "$1/lib"
	cp "$(command -v busybox)" "$1/bin/busybox"
	for a in sh cat mkdir rm ln echo test env readlink getent groupadd; do ln -s busybox "$1/bin/$a"; done
	printf '#!/bin/sh\nexit 0\n' | tee "$1/usr/bin/systemd-sysusers" >"$1/usr/bin/getent"
	chmod +x "$1"/usr/bin/*
}

say "apt"
r=$w/apt
root "$r"
cp -r "$repository/apt" "$w/served"
echo "deb [signed-by=$w/berth.gpg] file:$w/served stable main" >"$r/etc/apt/sources.list"
apt_get() {
	DEBIAN_FRONTEND=noninteractive APT_CONFIG=/dev/null apt-get -y -o Dir="$r" -o Dir::State::status="$r/var/lib/dpkg/status" \
		-o APT::Sandbox::User=root -o APT::Architecture=amd64 -o APT::Architectures::=amd64 -o APT::Install-Recommends=false \
		-o DPkg::Options::=--root="$r" -o DPkg::Options::=--log=/dev/null -o APT::Update::Error-Mode=any "$@"
}
again() { # again: the repository as it was built, and apt without its lists
	rm -rf "$w/served" "$r/var/lib/apt/lists" "$r/var/cache/apt/archives"
	mkdir -p "$r"/var/{lib/apt/lists,cache/apt/archives}/partial
	cp -r "$repository/apt" "$w/served"
}
want "apt-get update" quiet apt_get update
want "apt-get install berth" quiet apt_get install berth
want "the program is installed" chroot "$r" /usr/bin/berthd --version
again
rm "$w/served/dists/stable/InRelease"
want "apt-get update with Release.gpg" quiet apt_get update
again
sed -i 's/^Label: berth/Label: other/' "$w/served/dists/stable/InRelease"
want "changed metadata are refused" fails 'BADSIG' apt_get update
again
rm "$w/served/dists/stable/InRelease" "$w/served/dists/stable/Release.gpg"
want "metadata without a signature are refused" fails 'is not signed' apt_get update
again
for f in "$w"/served/dists/stable/main/binary-amd64/Packages*; do echo >>"$f"; done
want "a changed list of packages is refused" fails 'Hash Sum mismatch|unexpected size' apt_get update
again
flipped "$w"/served/pool/main/b/berth/*_amd64.deb
want "the metadata are accepted" quiet apt_get update
want "a changed package is refused" fails 'Hash Sum mismatch|unexpected size' apt_get install --reinstall berth
again
GNUPGHOME=$w/stranger gpg --export >"$w/stranger.gpg"
sed -i "s|signed-by=[^]]*|signed-by=$w/stranger.gpg|" "$r/etc/apt/sources.list"
want "a signature of somebody else is refused" fails 'NO_PUBKEY' apt_get update

say "dnf"
r=$w/dnf
mkdir -p "$r"/{repos,log}
again_rpm() {
	rm -rf "$w/served" "$r/cache"
	cp -r "$repository/rpm" "$w/served"
}
: >"$r/dnf.conf"
cat >"$r/repos/berth.repo" <<-R
	[berth]
	name=berth
	baseurl=file://$w/served
	gpgkey=file://$repository/berth.asc
	gpgcheck=1
	repo_gpgcheck=1
R
dnf_() {
	dnf -y --installroot="$r" --releasever=40 --forcearch=x86_64 --setopt=reposdir="$r/repos" --setopt=cachedir="$r/cache" --setopt=persistdir="$r/persist" \
		--setopt=logdir="$r/log" --setopt=varsdir="$r/vars" --setopt=install_weak_deps=False --setopt=pluginpath="$r/none" --config="$r/dnf.conf" "$@"
}
again_rpm
want "dnf verifies the metadata" quiet dnf_ makecache
# No package provides the shell here, so dnf does not install it; rpm has verified the package.
want "dnf finds berth" grep -q '^berth-' <(dnf_ -q repoquery berth)
again_rpm
sed -i 's/<revision>/<revision>1/' "$w/served/repodata/repomd.xml"
want "changed metadata are refused" fails 'Bad (GPG|PGP) signature' dnf_ makecache
again_rpm
rm "$w/served/repodata/repomd.xml.asc"
want "metadata without a signature are refused" fails '(GPG|PGP) signature is not available' dnf_ makecache

say "all signatures passed"
