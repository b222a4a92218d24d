#!/usr/bin/env bash
# Fuzzes what a hostile guest, file or manifest can reach, with the targets in fuzz/.
#
#   scripts/fuzz.sh                   every target, SPORE_FUZZ_SECONDS (5) each
#   scripts/fuzz.sh TARGET...         these
#
# cargo-fuzz is found in the cache, or built into it once. Without a sanitizer the stable compiler does; set
# SPORE_FUZZ_SANITIZER=address for ASan, which needs what only a nightly has (RUSTC_BOOTSTRAP says it is one).
# Inputs that found something new stay in SPORE_CACHE/fuzz/<target> and are where the next run begins. An input
# that breaks something is in fuzz/artifacts/<target>, and the run fails and says how to repeat it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=0.13.2
cache=${SPORE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/spore}
seconds=${SPORE_FUZZ_SECONDS:-5}
sanitizer=${SPORE_FUZZ_SANITIZER:-none}
tools=$cache/tools/cargo-fuzz-$version
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
# What the tests are given for cargo is given to every cargo (--locked).
read -ra flags <<<"${CARGOFLAGS:-}"

say() { printf 'fuzz: %s\n' "$*"; }

[[ -x $tools/bin/cargo-fuzz ]] ||
	CARGO_TARGET_DIR=$CARGO_TARGET_DIR/tools cargo install --quiet --locked --root "$tools" --version "$version" cargo-fuzz
export PATH=$tools/bin:$PATH
[[ $sanitizer == none ]] || export RUSTC_BOOTSTRAP=1

# cargo-fuzz hands no flags on: that the lock file is good is seen before.
((${#flags[@]} == 0)) || cargo metadata "${flags[@]}" --manifest-path fuzz/Cargo.toml --format-version 1 >/dev/null
cargo fuzz build --sanitizer "$sanitizer" --codegen-units 16
host=$(rustc -vV | sed -n 's/^host: //p')

targets=("$@")
((${#targets[@]})) || mapfile -t targets < <(cargo fuzz list)
runs=0 failed=0
for target in "${targets[@]}"; do
	corpus=$cache/fuzz/$target
	artifacts=fuzz/artifacts/$target
	mkdir -p "$corpus" "$artifacts"
	log=$(mktemp)
	status=0
	"$CARGO_TARGET_DIR/$host/release/$target" -artifact_prefix="$artifacts/" -max_total_time="$seconds" \
		-timeout=10 -rss_limit_mb=1024 -print_final_stats=1 "$corpus" >"$log" 2>&1 || status=$?
	done=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
	runs=$((runs + ${done:-0}))
	if ((status == 0)); then
		say "$target: ${done:-0} runs in $seconds s, nothing found"
	else
		failed=$((failed + 1))
		tail -n 60 "$log"
		say "$target: BROKEN (status $status); to repeat: $CARGO_TARGET_DIR/$host/release/$target $artifacts/<file>"
	fi
	rm -f "$log"
done
say "${#targets[@]} targets, $runs runs, $failed broken"
((failed == 0))
