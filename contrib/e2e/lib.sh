# shellcheck shell=bash
# Functions shared by the scripts in this directory. Sourced, not run.
set -euo pipefail

e2e=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$e2e/../.." && pwd)
cache=${BERTH_E2E_DIR:-/var/cache/berth-e2e} # artifacts that later runs reuse
kube_default=1.37.2
kube_version=${KUBE:-$kube_default}
kube_minor=$(cut -d. -f2 <<<"$kube_version")
kube_dir=$cache/kube # kubelet, kube-apiserver and kubectl
[ "$kube_version" = "$kube_default" ] || kube_dir+=-$kube_version

say() { printf '\n==> %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need PROGRAM=PACKAGE ... installs the packages of missing programs.
need() {
	local missing=() pair
	for pair in "$@"; do
		PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	say "installing ${missing[*]}"
	[ "$(id -u)" = 0 ] || die "root is needed to install ${missing[*]}"
	command -v apt-get >/dev/null || die "install these and try again: ${missing[*]}"
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# cni_dir prints the directory of the CNI plugins.
cni_dir() {
	local d
	for d in /opt/cni/bin /usr/lib/cni /usr/libexec/cni; do
		if [ -x "$d/bridge" ]; then echo "$d"; return; fi
	done
	return 1
}

need_engine() { need dockerd=docker.io docker=docker.io iptables=iptables ip=iproute2; }
need_cni() {
	cni_dir >/dev/null || need no-such-program=containernetworking-plugins
	cni_dir >/dev/null || die "no CNI plugins in /opt/cni/bin, /usr/lib/cni or /usr/libexec/cni"
}

# may_lower_oom: whether an Engine on this machine can lower oom_score_adj (CAP_SYS_RESOURCE).
may_lower_oom() {
	local caps
	caps=$(awk '/^CapEff:/ {print $2}' /proc/self/status)
	[ $((0x$caps >> 24 & 1)) = 1 ]
}

# engine_root SUITE: installs another Debian release into the cache, for its Docker.
engine_root() {
	local root=$cache/root-$1 scripts=/usr/share/debootstrap/scripts packages=docker.io,docker-cli,iptables,ca-certificates
	if [ "$(cat "$root/.complete" 2>/dev/null)" != "$packages" ]; then
		need debootstrap=debootstrap
		say "installing Docker of Debian $1" >&2
		rm -rf "$root"
		[ -e "$scripts/$1" ] || ln -s sid "$scripts/$1"
		debootstrap --variant=minbase --include="$packages" "$1" "$root" >/dev/null
		echo "$packages" >"$root/.complete"
	fi
	add_criu "$root" >&2
	echo "$root"
}

# add_criu ROOT: installs CRIU into the root of another Debian release unless it is there. It is not among the packages of
# engine_root, so that a root of an earlier version of this script, which an Engine may be using, is not built again.
#
# CRIU sets hardware breakpoints and waits for them, in some virtual machines for ever: they have none. With fault 130
# (FI_NO_BREAKPOINTS in its source) it traces system calls instead, everywhere.
add_criu() {
	printf '#!/bin/sh\nCRIU_FAULT=130 exec /usr/sbin/criu "$@"\n' >"$1/usr/local/sbin/criu.new"
	chmod 755 "$1/usr/local/sbin/criu.new"
	mv "$1/usr/local/sbin/criu.new" "$1/usr/local/sbin/criu"
	[ ! -x "$1/usr/sbin/criu" ] || return 0
	say "installing CRIU into $1"
	# The index of a testing release may have expired. The mounts are in a namespace of their own.
	unshare --mount sh -euc '
		for m in proc dev; do mount --rbind "/$m" "$1/$m"; done
		for m in hosts resolv.conf; do touch "$1/etc/$m"; mount --bind "/etc/$m" "$1/etc/$m"; done
		chroot "$1" apt-get -o Acquire::Check-Valid-Until=false update -qq
		DEBIAN_FRONTEND=noninteractive chroot "$1" apt-get install -y -qq --no-install-recommends criu >/dev/null' - "$1"
}

# install_engine: installs the Engine that ENGINE selects into the cache, if it is not that of this machine.
install_engine() {
	case ${ENGINE:-} in
	'') ;;
	trixie | forky) engine_root "$ENGINE" >/dev/null ;;
	*) "$e2e/engine.sh" "$ENGINE" ;;
	esac
}

# start_engine DIR [dockerd flags]: starts a private Docker Engine at
# unix://DIR/docker.sock. Its process is $engine_pid. With ENGINE=SUITE it is
# that of another Debian release, with ENGINE=VERSION the one that engine.sh builds: 23.0
# and 24.0 use the containerd and runc of this machine, 25.0 and 27.5 those of
# Debian 13, 29 its own, and its own client: that of 20.10 is too old for it. box.sh has installed it (install_engine). Engines other than this machine's run only in the
# namespaces of box.sh. Unless the flags name a configuration file it is
# DIR/daemon.json, which a test may change. With ENGINE_RESTARTS=1 the Engine is restarted
# whenever it ends, until the file DIR/over exists.
start_engine() {
	local dir=$1 flags=() enter=() root='' m config='{}'
	shift
	mkdir -p "$dir"
	case ${ENGINE:-} in
	'') ;;
	23.0 | 24.0 | 29)
		[ -e "$cache/engine-$ENGINE/.complete" ] || die "Docker $ENGINE is not in $cache"
		export PATH=$cache/engine-$ENGINE:$PATH
		;;
	25.0 | 27.5) root=$cache/root-trixie ;;
	*) root=$cache/root-$ENGINE ;;
	esac
	if [ -n "$root" ]; then
		mount --bind "$root" "$root" # Docker can unpack layers below mount points only
		case $ENGINE in
		25.0 | 27.5) mount --bind "$cache/engine-$ENGINE/dockerd" "$root/usr/sbin/dockerd" ;;
		esac
		for m in proc sys dev run tmp; do mount --rbind "/$m" "$root/$m"; done
		for m in hosts resolv.conf; do touch "$root/etc/$m"; mount --bind "/etc/$m" "$root/etc/$m"; done
		mkdir -p /etc/docker "$root/etc/docker"
		mount --rbind /etc/docker "$root/etc/docker"
		enter=(unshare --mount --propagation unchanged "$e2e/pivot.sh" "$root")
	fi
	if ! may_lower_oom; then
		m=$dir/runc-clamp
		[ -z "$root" ] || m=/usr/local/bin/runc-clamp
		local new
		mkdir -p "$root${m%/*}"
		new=$(mktemp "$root$m.XXXXXX") # by a rename: the other part of LIVE_SHARDS may be here too, with the same PID, or run it
		install "$cache/bin/runc-clamp" "$new"
		mv "$new" "$root$m"
		config='{"default-runtime": "clamp", "runtimes": {"clamp": {"path": "'$m'"}}}'
		[[ " $* " != *" --config-file "* ]] || flags+=(--add-runtime "clamp=$m" --default-runtime clamp)
	fi
	if [[ " $* " != *" --config-file "* ]]; then
		echo "$config" >"$dir/daemon.json"
		flags+=(--config-file "$dir/daemon.json")
	fi
	engine_enter=("${enter[@]}") # runs a command where the Engine runs
	local engine=("${enter[@]}" dockerd --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/pid"
		-H "unix://$dir/docker.sock" --bridge none --iptables=false --ip-masq=false "${flags[@]}" "$@")
	if [ -n "${ENGINE_RESTARTS:-}" ]; then
		while [ ! -e "$dir/over" ]; do
			PATH=$PATH:/usr/sbin:/sbin "${engine[@]}" >>"$dir/log" 2>&1 || sleep 0.5
		done &
	else
		PATH=$PATH:/usr/sbin:/sbin "${engine[@]}" >"$dir/log" 2>&1 &
	fi
	engine_pid=$!
	for _ in $(seq 300); do
		if docker -H "unix://$dir/docker.sock" version >/dev/null 2>&1; then return 0; fi
		kill -0 "$engine_pid" 2>/dev/null || break
		sleep 0.1
	done
	tail -20 "$dir/log" >&2
	die "the Docker Engine did not start; its log is printed above"
}

# next_package DIR: builds a deb of the same program with a higher version, for upgrades.
next_package() {
	say "building a package with a higher version"
	(cd "$top/packaging" && go run . -machines amd64 -version 99.0.0 -commit upgrade -date 0 -out "$1" >/dev/null)
	mv "$1"/packages/*_amd64.deb "$1/"
	rm -r "$1/packages"
}

# cni_conf DIR SUBNET [BRIDGE]: writes the configuration of a bridge network for pods.
cni_conf() {
	mkdir -p "$1"
	cat >"$1/10-e2e.conflist" <<-C
		{"cniVersion": "1.0.0", "name": "e2e", "plugins": [
		  {"type": "bridge", "bridge": "${3:-e2e0}", "isGateway": true, "ipMasq": false,
		   "ipam": {"type": "host-local", "dataDir": "$1/../ipam", "ranges": [[{"subnet": "$2"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
		  {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]}
	C
}

# wait_for SOCKET: waits until the socket exists.
wait_for() {
	for _ in $(seq 600); do
		if [ -S "$1" ]; then return 0; fi
		sleep 0.1
	done
	die "socket $1 was not created within 60 s"
}

# cri_dockerd VERSION prints the path of a real cri-dockerd. It is built from its module, which
# takes some minutes the first time.
cri_dockerd() {
	local program=$cache/cri-dockerd/$1 w source
	if [ ! -x "$program" ]; then
		say "building cri-dockerd $1" >&2
		w=$(mktemp -d /tmp/berth-cri-dockerd.XXXXXX)
		source=$(cd "$w" && go mod init x >/dev/null 2>&1 && go mod download -json "github.com/Mirantis/cri-dockerd@$1" | sed -n 's/^.*"Dir": "\(.*\)".*$/\1/p')
		[ -n "$source" ] || die "cri-dockerd $1 cannot be downloaded"
		cp -r "$source" "$w/source"
		chmod -R u+w "$w/source"
		rm -rf "$w/source/vendor" # a module contains only modules.txt of it
		mkdir -p "${program%/*}"
		(cd "$w/source" && CGO_ENABLED=0 go build -o "$program" .)
		rm -rf "$w"
	fi
	echo "$program"
}

# containerd_programs prints the directory of containerd 2.3.4, its shim and runc: that of Docker 29 if engine.sh has built it,
# else one for them alone.
containerd_programs() {
	local out=$cache/engine-29
	if [ ! -e "$out/.complete" ]; then
		out=$cache/containerd-2.3.4
		if [ ! -e "$out/.complete" ]; then
			say "building containerd 2.3.4 into $out" >&2
			mkdir -p "$out"
			build_containerd "$out" >&2 && touch "$out/.complete"
		fi
	fi
	echo "$out"
}

# build_containerd DIR: builds containerd, its shim and runc from their modules, outside of this one.
build_containerd() (
	need gcc=build-essential pkg-config=pkg-config
	pkg-config --exists libseccomp || need no-such-program=libseccomp-dev
	export GOBIN=$1
	cd /
	go install -ldflags '-s -w' github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2}@v2.3.4 &&
		CGO_ENABLED=1 go install -ldflags '-s -w' -tags seccomp github.com/opencontainers/runc@v1.4.0
)

build_berthd() {
	make -s -C "$top" build
}

# prepare_engine_tests: installs and builds what the tests on a real Engine need.
prepare_engine_tests() {
	[ "$(id -u)" = 0 ] || die "tests on a real Docker Engine need root"
	need_engine
	need_cni
	need docker-registry=docker-registry busybox=busybox-static nginx=nginx-light openssl=openssl curl=curl gcc=build-essential
	"$e2e/busybox.sh"
	say "building berthd and tools"
	build_berthd
	build_tools
}

# build_tools: builds the tools of this module into $cache/bin.
build_tools() {
	mkdir -p "$cache/bin"
	(cd "$e2e" && CGO_ENABLED=0 go build -o "$cache/bin/" ./runc-clamp sigs.k8s.io/cri-tools/cmd/crictl)
	(cd "$e2e" && go test -c -o "$cache/bin/critest" .)
}
