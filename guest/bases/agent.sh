#!/usr/bin/env bash
# Builds the agent as one static program; its path is the last line of stdout.
#
# There is no musl here, so it is glibc, which is static as long as nobody asks it for names,
# locales or character sets: the agent does not. Not position-independent: fewer relocations,
# fewer pages touched, and a fresh page is dear in the guest. Panics unwind: they end one
# connection, not PID 1.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
cd "$repository"
target=${CARGO_TARGET_DIR:-target}/agent
[[ $target == /* ]] || target=$repository/$target

# The build is known by its sources, so that the same sources give the same binary.
sources=$(find agent -name '*.rs' -o -name Cargo.toml | sort | xargs sha256sum | sha256sum | cut -c1-12)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
export SPORE_AGENT_BUILD="spore-agent $version ($sources)"

# Only what is set here may reach the build.
unset RUSTC_WRAPPER CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_RUSTFLAGS CARGO_BUILD_TARGET
remap="--remap-path-prefix=$repository=/spore --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
export RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static $remap"
export CARGO_PROFILE_RELEASE_OPT_LEVEL=s CARGO_PROFILE_RELEASE_LTO=fat CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 \
	CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_PROFILE_RELEASE_PANIC=unwind
cargo build --quiet --release -p spore-agent --target x86_64-unknown-linux-gnu --target-dir "$target" 1>&2
printf '%s\n' "$target/x86_64-unknown-linux-gnu/release/spore-agent"
