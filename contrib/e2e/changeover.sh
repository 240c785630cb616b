#!/usr/bin/env bash
# changeover.sh [VERSION...]: make test-changeover: a node changes from a real cri-dockerd to
# berthd and back under running pods (TestChangeover). Each version is built from its
# module, which takes some minutes the first time. ENGINE is as for live.sh.
. "$(dirname "$0")/lib.sh"
need go=golang
[ $# -gt 0 ] || set -- v0.4.3
for version; do
	program=$cache/cri-dockerd/$version
	if [ ! -x "$program" ]; then
		say "building cri-dockerd $version"
		w=$(mktemp -d /tmp/berth-cri-dockerd.XXXXXX)
		trap 'rm -rf "$w"' EXIT
		source=$(cd "$w" && go mod init x >/dev/null 2>&1 && go mod download -json "github.com/Mirantis/cri-dockerd@$version" | sed -n 's/^.*"Dir": "\(.*\)".*$/\1/p')
		[ -n "$source" ] || die "cri-dockerd $version cannot be downloaded"
		cp -r "$source" "$w/source"
		chmod -R u+w "$w/source"
		mkdir -p "${program%/*}"
		(cd "$w/source" && CGO_ENABLED=0 go build -o "$program" .)
		rm -rf "$w"
	fi
	say "cri-dockerd $version"
	LIVE_ONLY=contrib/live LIVE_FLAGS="-v -run TestChangeover" LIVE_ARGS="-cri-dockerd $program" "$e2e/live.sh"
done
