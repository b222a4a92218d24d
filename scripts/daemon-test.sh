#!/usr/bin/env bash
# Both SDKs and the fuzzing of the interface against a real daemon, which is started for it on a data directory of its
# own, and looked at afterwards; beside that what the documents tell their readers to do (docs-test.sh).
#
#   scripts/daemon-test.sh BINARIES      the directory with spore and spore-vm
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

binaries=$(cd "$1" && pwd -P)
# Short: a socket's path has at most 107 bytes.
work=$(mktemp -d "${TMPDIR:-/tmp}/spore-daemon-XXXXXX")
export SPORE_DATA=$work/data SPORE_SOCKET=$work/s SPORE_VM=$binaries/spore-vm
daemon= empty= build= docs=
finish() {
	local failed=$?
	[[ -z $build ]] || kill -TERM "$build" 2>/dev/null || true
	[[ -z $build ]] || wait "$build" 2>/dev/null || true
	# It has sandboxes and daemons of its own, and takes them along when it ends.
	[[ -z $docs ]] || kill -TERM "$docs" 2>/dev/null || true
	[[ -z $docs ]] || wait "$docs" 2>/dev/null || true
	[[ -z $empty ]] || kill -TERM "$empty" 2>/dev/null || true
	[[ -z $empty ]] || wait "$empty" 2>/dev/null || true
	# They would outlive it.
	[[ -z $daemon ]] || "$binaries/spore" rm --all >/dev/null 2>&1 || true
	[[ -z $daemon ]] || kill -TERM "$daemon" 2>/dev/null || true
	[[ -z $daemon ]] || wait "$daemon" 2>/dev/null || true
	((failed == 0)) || tail -n 100 "$work"/{log,empty.log} 2>/dev/null || true
	rm -rf --one-file-system "$work"
}
trap finish EXIT

# A daemon's socket is there when it can be talked to; what comes next says so if it is not.
await_socket() {
	local i
	for ((i = 0; i < 100; i++)); do [[ ! -S $1 ]] || return 0; sleep 0.1; done
}

# The interface of a daemon that has nothing: calls are answered at once, and there can be many of them. It needs no
# image, so that one is built meanwhile.
# It is started as systemd does that for its socket unit (sd_listen_fds(3)): with a socket that is there already.
python3 -c '
import os, socket, sys
path, *command = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(command[0], command)
' "$work/e" "$binaries/spore" --data "$work/empty" serve --socket "$work/not-used" 2>"$work/empty.log" &
empty=$!
printf '%s' '{"base":"busybox","name":"tiny","builderMemoryMB":512,"runtimeMemoryMB":512,"steps":[]}' >"$work/tiny.json"
"$binaries/spore" build --network none "$work/tiny.json" >"$work/build.log" 2>&1 &
build=$!
status=0
await_socket "$work/e"
SPORE_SOCKET=$work/e scripts/api-fuzz.sh || status=1
kill -TERM "$empty" || true
wait "$empty" || { status=1; cat "$work/empty.log"; }
empty=
# Who made it has it for the next.
if [[ ! -S $work/e || -e $work/not-used ]]; then
	printf 'the daemon did not keep to the socket it was given\n'
	status=1
fi
build_status=0
wait "$build" || build_status=$?
build=
cat "$work/build.log"
((build_status == 0)) || exit "$build_status"

# On a data directory of its own: both have one guest at a time at work, and there are more processors.
scripts/docs-test.sh "$binaries" >"$work/docs.log" 2>&1 &
docs=$!
"$binaries/spore" serve --openapi >"$work/openapi.json"
"$binaries/spore" serve --shells-per-template 1 --shells 1 2>"$work/log" &
daemon=$!
await_socket "$SPORE_SOCKET"
# What a process has open, and its threads, one a line and without numbers. Some of it goes while it is looked at.
holds() { # pid
	find "/proc/$1/fd" -mindepth 1 -printf 'descriptor %l\n' 2>/dev/null | sed -E 's/^(descriptor (socket|pipe)):.*/\1/' || true
	sed 's/^/thread /' "/proc/$1"/task/*/comm 2>/dev/null || true
}
# And what it may have more: with the first sandbox on a network it is one of those who use it, to its end (decision 0011).
{ holds "$daemon"; printf 'descriptor /run/spore/network/members\n'; } | sort >"$work/held"

export SPORE_TEST_IMAGE=tiny SPORE_TEST_BASE=busybox SPORE_OPENAPI=$work/openapi.json
field() { python3 -c "import json,sys; a=json.load(sys.stdin); print($1)"; }
call() { curl -sS --fail-with-body --unix-socket "$SPORE_SOCKET" "http://spore$1" "${@:2}"; }
scripts/sdk-python.sh || status=1
scripts/sdk-typescript.sh || status=1
# The interface of one that has something, where calls may copy and checkpoint VMs.
sandbox=$("$binaries/spore" create tiny --json | field 'a["id"]')
export SPORE_FUZZ_SANDBOX=$sandbox SPORE_FUZZ_IMAGE=tiny
SPORE_FUZZ_EXAMPLES=10 scripts/api-fuzz.sh || status=1
SPORE_FUZZ_EXAMPLES=3 SPORE_FUZZ_EXPENDABLE=1 scripts/api-fuzz.sh || status=1

# Whatever the tests left to the daemon goes: with the last sandbox the last promise, and with the last image what was kept
# warm of it. One may end by itself meanwhile, and what a sandbox was promised is free a moment after it was deleted.
for ((i = 0; i < 240; i++)); do
	for kind in sandboxes checkpoints images; do
		# An image's checkpoints go with it.
		for id in $(call "/v1/$kind" | field '*(each["id"] for each in a["'$kind'"] if each.get("kind") != "image")'); do
			call "/v1/$kind/$id" -X DELETE || true
		done
	done
	kept=$(call /v1/host | field 'a["memory"]["committedMB"], *map(a.get, ("sandboxes", "builds", "templates", "shells"))')
	[[ $kept != "0 0 0 0 0" ]] || break
	sleep 1
done
if [[ $kept != "0 0 0 0 0" ]]; then
	printf 'the daemon still promises memory, and counts sandboxes, builds, templates and shells: %s\n' "$kept"
	status=1
fi
# It has nothing open and no thread that it had not before all this. Nobody asks it meanwhile: a thread for calls ends when
# it had none for 10 s.
for ((i = 0; i < 40; i++)); do
	more=$(holds "$daemon" | sort | comm -13 "$work/held" -)
	[[ -n $more ]] || break
	sleep 1
done
if [[ -n $more ]]; then
	printf 'the daemon holds more than before the tests:\n%s\n' "$more"
	status=1
fi
kill -TERM "$daemon" || true
if ! wait "$daemon"; then
	printf 'the daemon did not stop well; it said:\n%s\n' "$(cat "$work/log")"
	status=1
fi
daemon=
left=$(ls "$SPORE_DATA/run")
if [[ -n $left ]]; then
	printf 'LEFT in the data directory: %s\n' "$left"
	status=1
fi
wait "$docs" || status=1
docs=
cat "$work/docs.log"
exit "$status"
