#!/bin/sh
# Builds the pause programs that are embedded in berthd, always to the same
# bytes: build.sh [DIR]. Needs gcc on amd64 and the cross compilers that are named below
# (Debian: gcc and gcc-TRIPLET). Beside them it writes built-from: what they were built
# from and with, by which the test knows whether they must come out the same.
set -eu
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/..}
version=1 # the tag of pause.Ref

build() {
	"$2gcc" -Os -static -nostdlib -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables -fno-pie -no-pie \
		-Wall -Wextra -Werror -DVERSION="\"$version\"" -s \
		-Wl,--build-id=none -Wl,-z,norelro -Wl,-z,noexecstack -Wl,-z,noseparate-code \
		-o "$out/pause-$1" "$here/pause.c"
	"$2objcopy" --remove-section=.comment --remove-section=.note.gnu.property "$out/pause-$1"
	echo "$1 gcc $("$2gcc" -dumpfullversion), $("$2ld" --version | head -n 1)" >>"$out/built-from"
}
(cd "$here" && sha256sum pause.c build.sh) >"$out/built-from"
build amd64 ""
build arm64 aarch64-linux-gnu-
build arm arm-linux-gnueabihf-
build s390x s390x-linux-gnu-
build ppc64le powerpc64le-linux-gnu-
build riscv64 riscv64-linux-gnu-
