#!/usr/bin/env bash
# Installs the Debian packages that Spore needs and that are missing; without any missing it does nothing.
#
#   scripts/setup.sh         everything
#   scripts/setup.sh host    only what the Rust programs and their tests need, nothing for guests
set -euo pipefail
export LC_ALL=C

host=(
	gcc libc6-dev # the linker, and the C in zstd, liblzma and blake3
	g++ # libFuzzer
	make
	python3 # checks the content hash vectors a second time
	python3-venv # sdk/python and its tools, apart from the system's
	curl # scripts/daemon-test.sh
)
guest=(
	linux-source-6.1 flex bison bc libelf-dev libssl-dev xz-utils patch kmod cpio # guest/kernel
	busybox-static e2fsprogs mmdebstrap # guest/bases
	nftables iproute2 # network: its rules, and the hosts that its tests make
)

# sdk/typescript: any Node.js that is new enough will do, wherever it is from. Without a registry its packages could not
# be had.
scripts=$(dirname "${BASH_SOURCE[0]}")
if ! "$scripts/node-usable.sh" && "$scripts/registry-usable.sh"; then
	host+=(nodejs npm)
fi

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

case ${1:-all} in
all) wanted=("${host[@]}" "${guest[@]}") ;;
host) wanted=("${host[@]}") ;;
*) die "usage: $0 [host]" ;;
esac

for tool in "cargo" "cargo fmt" "cargo clippy"; do
	$tool --version >/dev/null 2>&1 ||
		die "no \`$tool\`: install Rust 1.95 or newer with the components rustfmt and clippy"
done
command -v dpkg-query >/dev/null || die "this is no Debian; what is needed is there called: ${wanted[*]}"

missing=()
for package in "${wanted[@]}"; do
	[[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

as_root=()
if ((EUID != 0)); then
	if command -v sudo >/dev/null && { [[ -t 0 ]] || sudo -n true 2>/dev/null; }; then
		as_root=(sudo)
	else
		die "packages are missing, install them as root: apt-get install ${missing[*]}"
	fi
fi
say "installing ${missing[*]}"
"${as_root[@]}" apt-get -qq update
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${missing[@]}"
