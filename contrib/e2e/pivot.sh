#!/bin/sh
# pivot.sh ROOT COMMAND...: runs a command with ROOT as the root of its mount
# namespace, which must be its own. A chroot would not do: what enters a
# container's mount namespace later, as docker exec does, would find itself
# outside of it.
set -eu
cd "$1"
shift
mkdir -p .outside
pivot_root . .outside
umount -l /.outside
exec "$@"
