#!/usr/bin/env bash
# Runs every benchmark of docs/benchmarks.md on this machine and prints its tables as Markdown.
#
#   bench/run.sh [DIR]    DIR keeps the raw results, one JSON file a benchmark; default: a new directory in /tmp
#
# Needs `make kernel base build-release`. SPORE names the program; COUNT, MANY and LIVE make it shorter or longer.
# What is in DIR already is not run again. A machine that does something else meanwhile gives other figures: the
# load before and after is in every result. BUSY_UP_TO waits before each benchmark until the load is below it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

spore=${SPORE:-${CARGO_TARGET_DIR:-$here/../target}/release/spore}
results=${1:-$(mktemp -d)}
count=${COUNT:-100}
many=${MANY:-500}
live=${LIVE:-20}
mkdir -p "$results"

# Waits until the machine is quiet, for at most ten minutes: then it is as it is.
quiet() {
	local tries
	for ((tries = 0; tries < 120; tries++)); do
		awk -v most="${BUSY_UP_TO:-1000}" '{ exit !($1 <= most) }' /proc/loadavg && return
		sleep 5
	done
	echo "bench: the load is still $(cut -d ' ' -f 1 /proc/loadavg)" >&2
}

# bench NAME ARGUMENTS...: into NAME.json. A benchmark in which a fork failed is kept, and says so.
bench() {
	local name=$1 status=0
	shift
	[[ -s $results/$name.json ]] && return
	quiet
	echo "bench: spore bench $*" >&2
	local first=()
	[[ $name != *-first ]] || first=(chrt --fifo 1)
	"${first[@]}" "$spore" --json bench "$@" >"$results/$name.part" || status=$?
	if [[ ! -s $results/$name.part ]]; then
		echo "bench: $name ended with status $status and no result" >&2
		rm -f "$results/$name.part"
		return
	fi
	mv "$results/$name.part" "$results/$name.json"
}

for arm in shell fork cold; do
	bench "$arm" fork --arm "$arm" --count "$count" --trace
done

only_forks=(--no-exec --no-memory --fan-outs 0)
bench alive fork --arm fork --count "$count" --keep "${only_forks[@]}"
bench many fork --arm fork --count "$many" --concurrency 2 "${only_forks[@]}"
# On a machine that does something else the guests wait for a processor; with a real-time priority they do not. Short,
# and without commands in the guests, because nothing else runs meanwhile.
if chrt --fifo 1 true 2>/dev/null; then
	for arm in shell fork cold; do
		bench "$arm-first" fork --arm "$arm" --count "$count" --trace "${only_forks[@]}"
	done
fi
bench live-fork live-fork --count "$live"
bench live-fork-2-vcpus live-fork --count "$live" --cpus 2
bench checkpoint checkpoint
bench grow grow

# The daemon, on a data directory of its own with a small image.
work= daemon=
finish() {
	# They would outlive it.
	[[ -z $daemon ]] || "$spore" rm --all --socket "$work/s" >/dev/null 2>&1 || true
	[[ -z $daemon ]] || kill -TERM "$daemon" 2>/dev/null || true
	[[ -z $daemon ]] || wait "$daemon" || true
	[[ -z $work ]] || rm -rf --one-file-system "$work"
}
trap finish EXIT
api() {
	local tries
	work=$(mktemp -d)
	local at=(--data "$work/data" --socket "$work/s")
	printf '%s' '{"base":"busybox","name":"bench","builderMemoryMB":512,"steps":[]}' >"$work/bench.json"
	"$spore" "${at[@]}" build --network none "$work/bench.json" >"$work/build.log" 2>&1 || {
		cat "$work/build.log" >&2
		return
	}
	"$spore" "${at[@]}" serve 2>"$work/serve.log" &
	daemon=$!
	for ((tries = 0; tries < 100; tries++)); do [[ ! -S $work/s ]] || break; sleep 0.1; done
	bench api api --image bench --count "$count" "${at[@]}"
}
[[ -s $results/api.json ]] || api

echo "bench: raw results in $results" >&2
"$here/tables.py" "$results"
