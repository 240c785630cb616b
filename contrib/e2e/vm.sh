#!/usr/bin/env bash
# vm.sh SCRIPT [FILE...]: boots Debian 13 from a clean disk, with systemd, cgroup v2, Docker
# 26.1 and all capabilities, in a virtual machine without a network. After the boot SCRIPT is
# run as root in a directory with the files; its argument is the
# number of the boot. If SCRIPT exits with 42, the machine reboots and SCRIPT is run again.
# Its output is printed, and its last exit code is that of vm.sh.
#
# The processor is emulated: a boot takes about 45 s. VM_MEM is in MiB, VM_DISK a size
# for truncate, VM_LIMIT the timeout of one boot in seconds.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || die "building a disk image with files of root needs root"
if [ "${1:-}" != --inside ]; then
	need debootstrap=debootstrap mke2fs=e2fsprogs
	exec unshare --mount --propagation private "$0" --inside "$@"
fi
shift
[ $# -gt 0 ] || die "usage: vm.sh SCRIPT [FILE...]"
vm=$cache/vm
mkdir -p "$vm"

# Debian 12's QEMU 7.2 crashes this kernel at random; 10.0 from Debian 13 does not.
if [ ! -e "$vm/root-qemu.complete" ]; then
	say "installing QEMU of Debian trixie"
	rm -rf "$vm/root-qemu"
	debootstrap --variant=minbase --include=qemu-system-x86 trixie "$vm/root-qemu" >/dev/null
	touch "$vm/root-qemu.complete"
fi
packages=systemd-sysv,dbus,udev,kmod,procps,linux-image-cloud-amd64,initramfs-tools,docker.io,docker-cli,iptables,iproute2,conntrack,ca-certificates,busybox-static,containernetworking-plugins,ethtool,socat,apparmor,docker-registry,openssl,curl,sudo,criu
if [ "$(cat "$vm/root.complete" 2>/dev/null)" != "$packages" ]; then
	say "installing Debian trixie"
	rm -rf "$vm/root" "$vm/root.complete" "$vm/base.img"
	debootstrap --variant=minbase --include="$packages" trixie "$vm/root" >/dev/null
	add_criu "$vm/root"
	echo "$packages" >"$vm/root.complete"
fi
boot=$vm/root/usr/local/sbin/vm-boot
cat >"$vm/boot.new" <<'B'
#!/bin/bash
exec >/dev/console 2>&1 </dev/null
if [ ! -e /root/vm/boot ]; then
	mkdir -p /root/vm
	tar -C /root/vm -xf /dev/vdb
	echo 0 >/root/vm/boot
fi
n=$(($(cat /root/vm/boot) + 1))
echo $n >/root/vm/boot
cd /root/vm
echo
echo "=== boot $n"
bash ./script $n
code=$?
sync
echo "=== end $code"
case $code in
42) systemctl reboot ;;
*) systemctl poweroff ;;
esac
B
if ! cmp -s "$vm/boot.new" "$boot" || [ ! -e "$vm/base.img" ]; then
	say "building the disk image"
	install "$vm/boot.new" "$boot"
	printf '[Unit]\nAfter=multi-user.target docker.service\n[Service]\nType=oneshot\nExecStart=/usr/local/sbin/vm-boot\n[Install]\nWantedBy=multi-user.target\n' >"$vm/root/etc/systemd/system/vm.service"
	ln -sf ../vm.service "$vm/root/etc/systemd/system/multi-user.target.wants/vm.service"
	ln -sf /dev/null "$vm/root/etc/systemd/system/serial-getty@ttyS0.service"
	echo vm >"$vm/root/etc/hostname"
	printf '127.0.0.1 localhost vm\n' >"$vm/root/etc/hosts"
	echo '/dev/vda / ext4 defaults 0 1' >"$vm/root/etc/fstab"
	rm -f "$vm/base.img"
	truncate -s "${VM_DISK:-12G}" "$vm/base.new"
	mke2fs -q -F -t ext4 -d "$vm/root" "$vm/base.new"
	mv "$vm/base.new" "$vm/base.img"
fi

q=$vm/root-qemu
w=$(mktemp -d "$q/tmp/vm.XXXXXX")
trap 'rm -rf "$w"' EXIT
cp --sparse=always "$vm/base.img" "$w/disk"
cp "$vm"/root/boot/vmlinuz-* "$w/vmlinuz"
cp "$vm"/root/boot/initrd.img-* "$w/initrd"
mkdir "$w/files"
cp "$1" "$w/files/script"
shift
[ $# = 0 ] || cp -r "$@" "$w/files/"
tar -C "$w/files" -cf "$w/files.tar" .
truncate -s %4096 "$w/files.tar"
mount --rbind /proc "$q/proc"
mount --rbind /dev "$q/dev"
in=/tmp/$(basename "$w")
for n in 1 2 3 4 5 6 7 8 9; do
	timeout --foreground "${VM_LIMIT:-1500}" chroot "$q" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m "${VM_MEM:-4096}" \
		-display none -serial stdio -monitor none -nic none -no-reboot \
		-kernel "$in/vmlinuz" -initrd "$in/initrd" -append "root=/dev/vda rw console=ttyS0 quiet loglevel=2 systemd.show_status=false panic=-1" \
		-drive "file=$in/disk,format=raw,if=virtio" -drive "file=$in/files.tar,format=raw,if=virtio,readonly=on" \
		</dev/null | stdbuf -oL tr -d "\r" | tee "$w/log"
	end=$(sed -n 's/^=== end //p' "$w/log" | tail -1)
	case $end in
	42) ;;
	'') die "boot $n ended before the script did, or after VM_LIMIT" ;;
	*) exit "$end" ;;
	esac
done
die "the script still exits with 42 after 9 boots"
