#!/usr/bin/env bash
# Builds the Spore guest kernel from Debian's linux-source, or finds it in the cache.
#
#   guest/kernel/build.sh          the path of the vmlinux is the last line of stdout
#
# Installed as ${SPORE_CACHE:-$HOME/.cache/spore}/kernel/<hash>/{vmlinux,config,version,System.map};
# `kernel/current` points at the newest call's result. The hash covers everything the
# result depends on, so an unchanged kernel is never built twice and a changed one never reused.
# Environment: SPORE_CACHE, TMPDIR (needs about 2 GiB), JOBS (default: number of CPUs).
set -euo pipefail
# Only the inputs hashed below may reach the build.
unset ARCH CROSS_COMPILE MAKEFLAGS MAKEOVERRIDES KBUILD_OUTPUT KCONFIG_CONFIG KCONFIG_ALLCONFIG \
	LOCALVERSION KCFLAGS KCPPFLAGS KAFLAGS CFLAGS CPPFLAGS LDFLAGS HOSTCFLAGS HOSTLDFLAGS \
	CC LD AS AR NM STRIP OBJCOPY OBJDUMP HOSTCC CDPATH
export LC_ALL=C TZ=UTC
umask 022

source_package=linux-source-6.1
source_tarball=/usr/src/$source_package.tar.xz
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SPORE_CACHE:-$HOME/.cache/spore}/kernel

# stdout is for the one path the caller wants.
exec 3>&1 1>&2

say() { printf 'kernel: %s\n' "$*"; }
die() { say "error: $*"; exit 1; }

install_packages() {
	local package missing=()
	for package in "$source_package" gcc make bc flex bison libelf-dev libssl-dev xz-utils patch; do
		dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
			missing+=("$package")
	done
	((${#missing[@]})) || return 0
	((EUID == 0)) || die "missing packages, install them as root: apt-get install ${missing[*]}"
	say "installing ${missing[*]}"
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${missing[@]}"
}

inputs_digest() {
	local file
	{
		dpkg-query -W -f='${Package} ${Version}\n' "$source_package"
		gcc --version | sed -n 1p
		ld --version | sed -n 1p
		for file in "$here"/config "$here"/build.sh "$here"/patches/*.patch; do
			printf '%s %s\n' "${file#"$here"/}" "$(sha256sum <"$file")"
		done
	} | sha256sum | cut -c1-64
}

# Kconfig drops what it cannot honour without a word; we do not.
check_config() { # fragment, result
	local line option lost=0
	while IFS= read -r line; do
		case $line in
		CONFIG_*=*)
			grep -qxF -- "$line" "$2" || { say "option did not survive: $line"; lost=1; }
			;;
		'# CONFIG_'*' is not set')
			option=${line#\# } option=${option%% *}
			! grep -q "^$option=" "$2" || { say "option did not survive: $line"; lost=1; }
			;;
		esac
	done <"$1"
	((lost == 0)) || die "fix $1: an option needs another one, or is selected by one"
}

build() { # source directory, directory to fill
	local patch make=(make -C "$1" -j"${JOBS:-$(nproc)}")
	say "unpacking $source_tarball"
	tar -C "$1" --strip-components=1 -xf "$source_tarball"
	for patch in "$here"/patches/*.patch; do
		say "applying ${patch##*/}"
		patch -d "$1" -p1 --no-backup-if-mismatch --fuzz=0 <"$patch"
	done
	export KBUILD_BUILD_TIMESTAMP='2024-01-01 00:00:00 UTC' KBUILD_BUILD_VERSION=1 \
		KBUILD_BUILD_USER=spore KBUILD_BUILD_HOST=spore
	# GCC sets memory in __init functions with "rep stosb", small but one byte at a
	# time where kernel code is interpreted. memset() and memcpy() choose well everywhere.
	export KCFLAGS=-mstringop-strategy=libcall
	"${make[@]}" -s tinyconfig >/dev/null
	cat "$here/config" >>"$1/.config"
	"${make[@]}" -s olddefconfig 2>&1 | grep -v 'override: reassigning' || true
	check_config "$here/config" "$1/.config"
	say "compiling"
	"${make[@]}" -s vmlinux
	# Symbols stay: the RIP of an emulation failure is looked up in them.
	objcopy --strip-debug "$1/vmlinux" "$2/vmlinux"
	readelf -n "$2/vmlinux" | grep -q Xen || die "the PVH entry note is missing from vmlinux"
	cp "$1/.config" "$2/config"
	cp "$1/System.map" "$2/System.map"
	{
		printf 'release %s\n' "$("${make[@]}" -s kernelrelease)"
		printf 'source %s\n' "$(dpkg-query -W -f='${Package} ${Version}' "$source_package")"
		printf 'compiler %s\n' "$(gcc --version | sed -n 1p)"
		printf 'inputs %s\n' "$hash"
		printf 'vmlinux %s\n' "$(sha256sum <"$2/vmlinux" | cut -c1-64)"
	} >"$2/version"
}

point_current_at() { # hash
	[[ $(readlink "$cache/current" 2>/dev/null || true) != "$1" ]] || return 0
	ln -sfn "$1" "$cache/.current.$$"
	mv -T "$cache/.current.$$" "$cache/current"
}

install_packages
hash=$(inputs_digest)
mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9
if [[ ! -s $cache/$hash/vmlinux ]]; then
	work=$(mktemp -d "${TMPDIR:-/tmp}/spore-kernel.XXXXXXXX")
	trap 'rm -rf "$work" "$cache/.new.$hash"' EXIT
	rm -rf "$cache/.new.$hash" # left by a build that was killed
	mkdir "$work/linux" "$cache/.new.$hash"
	start=$SECONDS
	build "$work/linux" "$cache/.new.$hash"
	sync -f "$cache"
	mv -T "$cache/.new.$hash" "$cache/$hash"
	say "built in $((SECONDS - start)) s"
fi
point_current_at "$hash"
printf '%s\n' "$cache/$hash/vmlinux" >&3
