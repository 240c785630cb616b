# shellcheck shell=bash
# Functions of the scripts *-story.sh, most of which run in a virtual machine. Sourced, not
# run, by scripts that define a function die.
say() { printf '\n==> %s\n' "$*"; }
want() { # want WHAT COMMAND...
	local what=$1
	shift
	"$@" || die "$what"
	echo "ok: $what"
}
not() { ! "$@"; }
is() { [ "$1" = "$2" ] || { echo "got $1, want $2"; return 1; }; }

# as_written FILE HEADING N: runs the Nth block of commands below a heading. Prompts are
# answered with yes, and findings of berthd doctor do not end it.
as_written() {
	local block
	block=$(awk -v heading="$2" -v n="$3" '
		/^#/ { here = $0 == heading }
		!/^    / { inside = 0; next }
		here && !inside { inside = 1; blocks++ }
		here && blocks == n { print substr($0, 5) }' "$1")
	[ -n "$block" ] || die "no commands in $1 below $2"
	(
		berthd() { command berthd "$@" || echo "berthd $* exited with $?"; }
		apt() { DEBIAN_FRONTEND=noninteractive command apt -qy "$@"; }
		set -eux
		eval "$block"
	) || die "$1: $2"
}
