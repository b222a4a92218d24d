#!/usr/bin/env bash
# The tutorial and the scheduler's example, run as they stand in their documents, on daemons and a data directory of their
# own. What is compared with what is in docs_test.py.
#
#   scripts/docs-test.sh BINARIES      the directory with spore and spore-vm
set -euo pipefail

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
binaries=$(cd "$1" && pwd -P)
# Short: a socket's path has at most 107 bytes.
work=$(mktemp -d "${TMPDIR:-/tmp}/spore-docs-XXXXXX")
# As a reader has it, who has `spore` in PATH and spore-vm beside it.
export PATH=$binaries:$PATH SPORE_DATA=$work/data PYTHONDONTWRITEBYTECODE=1
unset SPORE_VM SPORE_SOCKET
daemons=() doing=
finish() {
	[[ -z $doing ]] || kill -TERM "$doing" 2>/dev/null || true
	[[ -z $doing ]] || wait "$doing" || true
	stop || true
	# Sandboxes outlive the daemon, and a tutorial that failed has deleted none.
	for data in "$work"/data "$work"/other; do
		compgen -G "$data/run/vm-*" >/dev/null || continue
		SPORE_DATA=$data serve "$work/e" || continue
		spore rm --all --socket "$work/e" >/dev/null || true
		stop || true
	done
	rm -rf --one-file-system "$work"
}
trap finish EXIT
# Not only when what it waits for has ended.
trap 'exit 143' TERM

# A daemon's socket is there when it can be talked to; what comes next says so if it is not.
serve() { # socket, options
	local i
	spore serve --socket "$@" 2>>"$work/log" &
	daemons+=($!)
	for ((i = 0; i < 100; i++)); do [[ ! -S $1 ]] || return 0; sleep 0.1; done
}

stop() {
	local pid status=0
	for pid in "${daemons[@]}"; do kill -TERM "$pid" || true; done
	for pid in "${daemons[@]}"; do wait "$pid" || status=1; done
	daemons=()
	((status == 0)) || cat "$work/log"
	return "$status"
}

docs() {
	python3 "$scripts/docs_test.py" "$@" &
	doing=$!
	wait "$doing"
	doing=
}

mkdir "$work/t"
cd "$work/t"
docs tutorial

# Two hosts: another one that has the image, and more memory to give, but its one sandbox already.
spore image show tools >/dev/null
cp -a "$SPORE_DATA" "$work/other"
serve "$work/a" --overcommit 1
SPORE_DATA=$work/other serve "$work/b" --overcommit 4 --max-sandboxes 1
spore create tools --socket "$work/b" >/dev/null
docs scheduler "$work/a" "$work/b"
spore rm --all --socket "$work/b" >/dev/null
stop
if compgen -G "$work/*/run/vm-*"; then
	printf 'LEFT in the data directories\n'
	exit 1
fi
