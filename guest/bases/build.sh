#!/usr/bin/env bash
# Builds a base root file system from its recipe, or finds it in the cache.
#
#   guest/bases/build.sh busybox     the path of the directory is the last line of stdout
#
# Installed as ${SPORE_CACHE:-$HOME/.cache/spore}/bases/<name>-<hash>/{rootfs.ext4,base.json};
# `bases/<name>` points at the newest call's result. The hash covers the recipe, its files, this
# script, the versions of the packages and of e2fsprogs, and the agent's binary.
# Environment: SPORE_CACHE, TMPDIR, CARGO_TARGET_DIR. Needs neither root nor mounts, only the
# packages; as root it installs those that are missing.
#
# A recipe is lines of words:
#   name, size-mib, inodes, uuid, hash-seed, label    of the file system, one value each
#   package NAME...             Debian packages of the host that the recipe takes from
#   dir MODE PATH...            directories
#   file MODE PATH...           files, from files/PATH beside the recipe
#   host-file MODE FROM PATH    a file of the host, that is, of a package named above
#   link TARGET PATH            a symbolic link
#   applets PATH                a link to PATH for each of its applets (PATH is a BusyBox)
#   agent PATH                  the agent, built static from this repository
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
cache=${SPORE_CACHE:-$HOME/.cache/spore}/bases
format_version=1
# All files and the file system itself are of one instant: builds of the same inputs are alike.
epoch=1704067200

# stdout is for the one path the caller wants.
exec 3>&1 1>&2

say() { printf 'base: %s\n' "$*"; }
die() { say "error: $*"; exit 1; }

(($# == 1)) || die "usage: $0 NAME, one of: $(cd "$here" && echo */ | tr -d /)"
recipe=$here/$1/recipe
[[ -f $recipe ]] || die "there is no recipe $recipe"

value() { # of a word that has one
	local found
	found=$(awk -v word="$1" '$1 == word { print $2 }' "$recipe")
	[[ -n $found ]] || die "the recipe has no $1"
	printf '%s\n' "$found"
}
words() { awk -v word="$1" '$1 == word { for (i = 2; i <= NF; i++) print $i }' "$recipe"; }

install_packages() {
	local package missing=()
	for package in e2fsprogs $(words package); do
		dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
			missing+=("$package")
	done
	((${#missing[@]})) || return 0
	((EUID == 0)) || die "missing packages, install them as root: apt-get install ${missing[*]}"
	say "installing ${missing[*]}"
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${missing[@]}"
}

package_versions() { # as lines
	local packages
	mapfile -t packages < <(words package)
	((${#packages[@]} == 0)) || dpkg-query -W -f='${Package} ${Version}\n' "${packages[@]}"
}

inputs_digest() { # agent
	local file
	{
		printf 'format %s\n' "$format_version"
		package_versions
		dpkg-query -W -f='${Package} ${Version}\n' e2fsprogs
		sha256sum <"$1"
		while read -r file; do
			printf '%s %s\n' "$file" "$(sha256sum <"$here/$file")"
		done < <(cd "$here" && find build.sh "$name" -type f | sort)
	} | sha256sum | cut -c1-64
}

# Only the recipe decides about modes, and nothing about times.
make_tree() { # root, agent
	local root=$1 agent=$2 word rest mode path from target
	while read -r word rest; do
		case $word in
		dir)
			read -r mode rest <<<"$rest"
			for path in $rest; do install -d -m "$mode" "$root$path"; done
			;;
		file)
			read -r mode rest <<<"$rest"
			for path in $rest; do install -m "$mode" "$here/$name/files$path" "$root$path"; done
			;;
		host-file)
			read -r mode from path <<<"$rest"
			install -m "$mode" "$from" "$root$path"
			;;
		link)
			read -r target path <<<"$rest"
			ln -s "$target" "$root$path"
			;;
		applets)
			while read -r path; do
				# What the recipe places itself goes first.
				[[ $path == sbin/init || -e $root/usr/${path#usr/} ]] || ln -s "$rest" "$root/usr/${path#usr/}"
			done < <("$root$rest" --list-full | grep -E '^(usr/)?s?bin/')
			;;
		agent) install -m 0755 "$agent" "$root$rest" ;;
		'' | '#'* | name | size-mib | inodes | uuid | hash-seed | label | package) ;;
		*) die "unknown word in the recipe: $word" ;;
		esac
	done <"$recipe"
	find "$root" -exec touch -h -d "@$epoch" {} +
}

# - A small journal: disks of running guests are frozen at any instant and cold-booted later
#   without their memory (finalizeMemoryMB), so the file system must survive a power cut. 16 MiB
#   is the least that keeps builds from waiting for it, and is replayed in a moment.
# - No metadata checksums: an interpreted guest kernel needs milliseconds for each block's CRC,
#   and images are content-addressed: a wrong byte is found before the guest sees it.
# - Nothing lazy: a guest must not spend its first minutes, and its copy-on-write pages, on
#   initialising inode tables.
# - No reserved blocks: everything in a sandbox is root anyway.
make_image() { # root, image
	local root=$1 image=$2 features=has_journal,^metadata_csum,^metadata_csum_seed,^uninit_bg,^orphan_file
	truncate -s "$(value size-mib)M" "$image"
	E2FSPROGS_FAKE_TIME=$epoch mke2fs -q -F -t ext4 -b 4096 -I 256 -m 0 -N "$(value inodes)" -J size=16 \
		-O "$features" -L "$(value label)" -U "$(value uuid)" \
		-E "hash_seed=$(value hash-seed),root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0" \
		-d "$root" "$image"
	# mke2fs copied what the recipe does not decide: the owner, who is the builder, and the time
	# of the last change, which nobody can set on the builder's own files.
	find "$root" -mindepth 1 -printf 'sif "/%P" uid 0\nsif "/%P" gid 0\nsif "/%P" ctime '"@$epoch"'\n' |
		E2FSPROGS_FAKE_TIME=$epoch debugfs -w -f - "$image" >/dev/null 2>&1
	e2fsck -fn "$image" >/dev/null 2>&1 || die "the new file system is not clean"
}

describe() { # agent, image, digest of the inputs
	local package version separator=
	printf '{\n  "name": "%s",\n  "formatVersion": %s,\n  "packageManager": null,\n  "packages": {' \
		"$name" "$format_version"
	while read -r package version; do
		printf '%s\n    "%s": "%s"' "$separator" "$package" "$version"
		separator=,
	done < <(package_versions)
	printf '\n  },\n  "agent": {\n    "build": "%s",\n    "sha256": "%s"\n  },\n' \
		"$("$1" --version)" "$(sha256sum <"$1" | cut -d' ' -f1)"
	printf '  "rootfs": {\n    "sizeBytes": %s\n  },\n  "inputsSha256": "%s"\n}\n' \
		"$(stat -c %s "$2")" "$3"
}

point() { # name of the directory
	ln -sfn "$1" "$cache/.$name.$$"
	mv -T "$cache/.$name.$$" "$cache/$name"
	printf '%s\n' "$cache/$1" >&3
}

install_packages
name=$(value name)
[[ $name == "$1" ]] || die "the recipe in $1 is called $name"
agent=$("$here/agent.sh")
inputs=$(inputs_digest "$agent")
result=$name-${inputs:0:16}

mkdir -p "$cache"
# One build of a base at a time; the second finds the first one's result.
exec 9>"$cache/.$name.lock"
flock 9
if [[ -f $cache/$result/base.json ]]; then
	say "$result is in the cache"
	point "$result"
	exit
fi
work=$(mktemp -d "$cache/.$result.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "building $result"
mkdir "$work/out" "$work/root"
make_tree "$work/root" "$agent"
make_image "$work/root" "$work/out/rootfs.ext4"
describe "$agent" "$work/out/rootfs.ext4" "$inputs" >"$work/out/base.json"
chmod 0444 "$work"/out/*
sync "$work"/out/*
# Whatever has this name and no base.json was never published.
rm -rf "${cache:?}/$result"
mv -T "$work/out" "$cache/$result"
say "$(du -h "$cache/$result/rootfs.ext4" | cut -f1) on disk, $(value size-mib) MiB for the guest"
point "$result"
