# shellcheck shell=bash
# Peers of the benchmark. Sourced by bench.sh, after contrib/e2e/lib.sh.

cri_dockerd_version=v0.4.3

# peer_program NAME prints the program, or the directory of the programs, of a peer, which it builds if it is missing.
peer_program() {
	local found
	case $1 in
	containerd)
		found=$(containerd_programs) && [ -e "$found/.complete" ] || die "containerd cannot be built: its Go modules and libseccomp-dev are needed"
		;;
	cri-dockerd)
		found=$(cri_dockerd "$cri_dockerd_version") && [ -x "$found" ] || die "cri-dockerd cannot be built: its Go modules are needed"
		;;
	*) die "PEERS has $1: must be containerd or cri-dockerd; PEER=NAME=unix:///SOCKET measures any other runtime that runs" ;;
	esac
	echo "$found"
}

# snapshotter DIR prints the snapshotter that works there: overlayfs, as the Engine has, or native.
snapshotter() {
	local name=native
	mkdir -p "$1"/overlay/{lower,upper,work,merged}
	if mount -t overlay -o "lowerdir=$1/overlay/lower,upperdir=$1/overlay/upper,workdir=$1/overlay/work" none "$1/overlay/merged" 2>/dev/null; then
		name=overlayfs
		umount "$1/overlay/merged"
	fi
	rm -r "$1/overlay"
	echo "$name"
}

# start_containerd PROGRAMS DIR DOCKER: starts containerd with its CRI plugin, and copies the images from a Docker Engine.
start_containerd() {
	local dir=$2 plugin=io.containerd
	mkdir -p "$dir"
	cni_conf "$dir/net.d" 10.91.0.0/16 e2e3
	# Without CAP_SYS_RESOURCE oom_score_adj cannot be lowered. The NRI is not on the other sides' way either: no plugin is there.
	cat >"$dir/config.toml" <<-C
		version = 3
		root = "$dir/root"
		state = "$dir/state"
		[grpc]
		  address = "$dir/containerd.sock"
		[plugins."$plugin.internal.v1.opt"]
		  path = "$dir/opt"
		[plugins."$plugin.nri.v1.nri"]
		  disable = true
		[plugins."$plugin.cri.v1.images"]
		  snapshotter = "$(snapshotter "$dir")"
		  [plugins."$plugin.cri.v1.images".pinned_images]
		    sandbox = "berth.local/bench-pause:1"
		[plugins."$plugin.cri.v1.runtime"]
		  restrict_oom_score_adj = true
		  netns_mounts_under_state_dir = true
		  [plugins."$plugin.cri.v1.runtime".cni]
		    bin_dirs = ["$(cni_dir)"]
		    conf_dir = "$dir/net.d"
	C
	PATH=$1:$PATH containerd --config "$dir/config.toml" >"$dir/log" 2>&1 &
	pids+=($!)
	wait_for "$dir/containerd.sock"
	"$bench" --docker "unix://$3" --load-pause
	docker -H "unix://$3" tag berth.local/pause:1 berth.local/bench-pause:1 # berthd images copy leaves out that name
	for _ in $(seq 100); do # until its plugins are loaded
		if "$top/bin/berthd" images copy --docker-endpoint "unix://$3" --containerd-address "$dir/containerd.sock" \
			--to containerd berth.local/bench-pause:1 berth.local/bench:1 >"$dir/copy.log" 2>&1; then break; fi
		sleep 0.2
	done
	grep -q 'copied' "$dir/copy.log" || die "images cannot be copied to containerd: $(tail -n 1 "$dir/copy.log")"
	peer+=(--peer "containerd=unix://$dir/containerd.sock" --about "containerd=$("$1/containerd" --version | cut -d' ' -f1,3 | sed 's|.*/||'), $(grep -o 'overlayfs\|native' "$dir/config.toml"), $("$1/runc" --version | sed -n 1p)")
}

# start_cri_dockerd PROGRAM DIR: starts cri-dockerd with an Engine of its own, so that neither adapter gets events of the other's
# containers.
start_cri_dockerd() {
	local dir=$2
	engine "$dir/engine"
	cni_conf "$dir/net.d" 10.90.0.0/16 e2e2
	"$1" --container-runtime-endpoint "unix://$dir/cri.sock" --docker-endpoint "unix://$dir/engine/docker.sock" \
		--cri-dockerd-root-directory "$dir/root" --cni-conf-dir "$dir/net.d" --cni-bin-dir "$(cni_dir)" --cni-cache-dir "$dir/cache" \
		--network-plugin cni --streaming-bind-addr 127.0.0.1:0 --pod-infra-container-image berth.local/pause:1 >"$dir/log" 2>&1 &
	pids+=($!)
	wait_for "$dir/cri.sock"
	peer+=(--peer "cri-dockerd=unix://$dir/cri.sock" --peer-engine "cri-dockerd=unix://$dir/engine/docker.sock" --about "cri-dockerd=cri-dockerd $cri_dockerd_version")
}
