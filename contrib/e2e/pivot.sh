#!/bin/sh
# pivot.sh ROOT COMMAND...: runs a command with ROOT as the root of its mount
# namespace, which must be private. A chroot is not sufficient: a process that enters a
# container's mount namespace later, as with docker exec, would be outside of the
# chroot.
set -eu
cd "$1"
shift
mkdir -p .outside
pivot_root . .outside
umount -l /.outside
exec "$@"
