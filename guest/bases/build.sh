#!/usr/bin/env bash
# Builds a base root file system from its recipe, or finds it in the cache.
#
#   guest/bases/build.sh [--refresh] NAME     the path of the directory is the last line of stdout
#
# Installed as ${SPORE_CACHE:-$HOME/.cache/spore}/bases/<name>-<hash>/{rootfs.ext4,base.json};
# `bases/<name>` points at the newest call's result. The hash covers the recipe, its files, these
# scripts, the versions of the tools and of the host's packages it takes from, what else it takes
# from the host (lib/host.sh), and the agent's binary.
#
# A recipe with `bootstrap` also depends on what the archive holds today. To know that costs the
# network, so it is asked only when something above changed, and with --refresh: then the name has a
# second hash, over the packages' versions, and the same versions are the same base.
#
# A recipe is NAME/recipe in one of the directories in SPORE_BASES (separated by colons), in
# ${XDG_CONFIG_HOME:-~/.config}/spore/bases, or beside this script; the first one found is taken.
# Environment: SPORE_BASES, SPORE_CACHE, SPORE_AGENT, TMPDIR, CARGO_TARGET_DIR. Needs neither root nor
# mounts, only packages; as root it installs those that are missing.
#
# A recipe is lines of words. lib/recipe.sh has the list; docs/bases.md explains them.
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SPORE_CACHE:-$HOME/.cache/spore}/bases
format_version=1
# Files that no package brought, and the file system itself, are of one instant: builds of the same
# inputs are alike.
epoch=1704067200

# stdout is for the one path the caller wants.
exec 3>&1 1>&2

# shellcheck source=lib/recipe.sh
source "$here/lib/recipe.sh"
# shellcheck source=lib/host.sh
source "$here/lib/host.sh"
# shellcheck source=lib/bootstrap.sh
source "$here/lib/bootstrap.sh"

inputs_digest() { # agent, what the host gives
	{
		printf 'format %s\n' "$format_version"
		host_package_versions
		tool_versions
		sha256sum <"$1"
		digests_below "$here" build.sh assemble.sh lib
		digests_below "${recipe%/*}" .
		digests_below "$2" .
	} | sha256sum | cut -c1-64
}
digests_below() { # directory, what in it
	local file directory=$1
	shift
	while read -r file; do
		printf '%s %s\n' "$file" "$(sha256sum <"$directory/$file")"
	done < <(cd "$directory" && find -L "$@" -type f | sort)
}

describe() { # agent, image, digest of the inputs, lines of packages and versions
	local package version separator= manager
	manager=$(optional package-manager)
	printf '{\n  "name": "%s",\n  "formatVersion": %s,\n  "packageManager": %s,\n  "packages": {' \
		"$name" "$format_version" "$([[ -z $manager ]] && echo null || printf '"%s"' "$manager")"
	while read -r package version; do
		printf '%s\n    "%s": "%s"' "$separator" "$package" "$version"
		separator=,
	done <"$4"
	printf '\n  },\n  "agent": {\n    "build": "%s",\n    "sha256": "%s"\n  },\n' \
		"$("$1" --version)" "$(sha256sum <"$1" | cut -d' ' -f1)"
	printf '  "rootfs": {\n    "sizeBytes": %s\n  },\n  "inputsSha256": "%s"\n}\n' \
		"$(stat -c %s "$2")" "$3"
}

in_cache() { # prints the name of the directory that serves, if there is one
	local current found
	if [[ -z $(optional bootstrap) ]]; then
		[[ ! -f $cache/$key/base.json ]] || printf '%s\n' "$key"
		return
	fi
	current=$(readlink "$cache/$name" || true)
	if [[ $current == "$key"-* && -f $cache/$current/base.json ]]; then
		printf '%s\n' "$current"
		return
	fi
	found=$(find "$cache" -path "$cache/$key-*/base.json" -printf '%T@ %h\n' | sort -n | tail -n 1)
	[[ -z $found ]] || printf '%s\n' "${found##*/}"
}

point() { # name of the directory
	ln -sfn "$1" "$cache/.$name.$$"
	mv -T "$cache/.$name.$$" "$cache/$name"
	printf '%s\n' "$cache/$1" >&3
}

refresh=
if [[ ${1-} == --refresh ]]; then
	refresh=yes
	shift
fi
(($# == 1)) || die "usage: $0 [--refresh] NAME, one of: $(recipe_names | paste -sd ' ')"
recipe=$(find_recipe "$1") || die "there is no recipe for $1, only for: $(recipe_names | paste -sd ' ')"
check_recipe
name=$(value name)
[[ $name == "$1" ]] || die "$recipe says that its name is $name"

install_packages
mkdir -p "$cache"
# One build of a base at a time; the second finds the first one's result. Whatever work lies here then
# is of one that was killed.
exec 9>"$cache/.$name.lock"
flock 9
find "$cache" -mindepth 1 -maxdepth 1 -type d -regextype posix-extended \
	-regex ".*/\.${name//./\\.}\.[A-Za-z0-9]{6}" -exec rm -rf {} +
work=$(mktemp -d "$cache/.$name.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/out" "$work/root" "$work/host"
collect_from_host "$work/host"
agent=${SPORE_AGENT:-$("$here/agent.sh")}
inputs=$(inputs_digest "$agent" "$work/host")
key=$name-${inputs:0:16}
if [[ -z $refresh || -z $(optional bootstrap) ]]; then
	result=$(in_cache)
	if [[ -n $result ]]; then
		say "$result is in the cache"
		point "$result"
		exit
	fi
fi
say "building $key"
[[ -z $(optional bootstrap) ]] || bootstrap "$work/host" "$work/bootstrap.tar"
run_as_root "$here/assemble.sh" "$recipe" "$work" "$agent" "$epoch"
e2fsck -fn "$work/out/rootfs.ext4" >/dev/null 2>&1 || die "the new file system is not clean"
describe "$agent" "$work/out/rootfs.ext4" "$inputs" "$work/packages" >"$work/out/base.json"
result=$key
[[ -z $(optional bootstrap) ]] || result=$key-$(sha256sum <"$work/packages" | cut -c1-8)
if [[ -f $cache/$result/base.json ]]; then
	say "nothing is newer than in $result"
	point "$result"
	exit
fi
chmod 0444 "$work"/out/*
sync "$work"/out/*
# Whatever has this name and no base.json was never published.
rm -rf "${cache:?}/$result"
mv -T "$work/out" "$cache/$result"
say "$(du -h "$cache/$result/rootfs.ext4" | cut -f1) on disk, $(value size-mib) MiB for the guest"
point "$result"
