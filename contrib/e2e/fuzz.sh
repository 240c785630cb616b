#!/usr/bin/env bash
# fuzz.sh [DURATION]: runs each fuzz target of the module for DURATION (default 1m), as go test's
# -fuzztime takes it. Inputs are minimized by few runs: those of FuzzServer take seconds, and a worker that
# does not stop within a second counts as hung. FUZZ=regular expression selects targets by PACKAGE.NAME.
. "$(dirname "$0")/lib.sh"
cd "$top"
failed=()
while IFS=: read -r file _ name; do
	dir=${file%/*}
	[[ "$dir.$name" =~ ${FUZZ:-.} ]] || continue
	say "$dir $name"
	go test "./$dir" -run '^$' -fuzz "^$name\$" -fuzztime "${1:-1m}" -fuzzminimizetime 10x || failed+=("$dir $name")
done < <(git grep -nE '^func Fuzz' -- '*_test.go' | sed -E 's/func (Fuzz[A-Za-z0-9_]*).*/\1/')
[ ${#failed[@]} = 0 ] || die "$(printf '%s; ' "${failed[@]}")"
