#!/bin/sh
# Builds the pause programs that are embedded in berthd, always to the same
# bytes: build.sh [DIR]. Needs gcc and aarch64-linux-gnu-gcc (Debian: gcc,
# gcc-aarch64-linux-gnu).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/..}
build() {
	"$2" -Os -static -nostdlib -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables -fno-pie -no-pie \
		-Wall -Wextra -Werror -Wl,--build-id=none -Wl,-z,norelro -Wl,-z,noexecstack -Wl,-z,max-page-size=4096 -s \
		-o "$out/pause-$1" "$here/pause.c"
	"$3" --remove-section=.comment --remove-section=.note.gnu.property "$out/pause-$1"
}
build amd64 gcc objcopy
build arm64 aarch64-linux-gnu-gcc aarch64-linux-gnu-objcopy
