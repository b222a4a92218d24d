#!/usr/bin/env bash
# Makes the tree of a base and the file system of it. Called by build.sh, as root or under fakeroot:
# who owns what here owns it in the file system.
#
#   assemble.sh RECIPE WORK AGENT EPOCH
#
# Takes WORK/bootstrap.tar, if it is there, and WORK/host; makes WORK/root, WORK/packages (lines of
# names and versions) and WORK/out/rootfs.ext4.
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
recipe=$1 work=$2 agent=$3 epoch=$4
root=$work/root host=$work/host

# shellcheck source=lib/recipe.sh
source "$here/lib/recipe.sh"
# shellcheck source=lib/host.sh
source "$here/lib/host.sh"

# Device nodes are the kernel's business. What is left of the build is different each time, or tells
# of the host.
unpack_bootstrap() {
	tar -C "$root" --numeric-owner --xattrs --xattrs-include='*' -xpf "$work/bootstrap.tar" --exclude='./dev/*'
	rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
	rm -f "$root"/etc/{passwd,group,shadow,gshadow,subuid,subgid}- "$root"/etc/.pwd.lock
	rm -f "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old "$root"/var/cache/ldconfig/aux-cache
	rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb
	rm -f "$root"/etc/ssh/ssh_host_*_key*
	find "$root/var/log" "$root/run" "$root/tmp" -mindepth 1 ! -type d -delete
	# The day a password was set is the day the account was made, that is, today.
	sed -i -E "s/^([^:]*:[^:]*):[0-9]+:/\1:$((epoch / 86400)):/" "$root/etc/shadow"
	cp "$host/sources.list" "$root/etc/apt/sources.list"
	rm -f "$root"/etc/apt/sources.list.d/*
	[[ ! -s $host/apt.conf ]] || install -m 0644 "$host/apt.conf" "$root/etc/apt/apt.conf.d/90host"
}

add_user() { # name, uid
	local name=$1 uid=$2 home=/home/$1 shell=/bin/sh
	[[ $name =~ ^[a-z_][a-z0-9_-]*$ && $uid =~ ^[1-9][0-9]*$ ]] || die "not a user: $name $uid"
	! grep -qE "^$name:|^[^:]*:[^:]*:$uid:" "$root/etc/passwd" "$root/etc/group" || die "there is a user like $name already"
	[[ ! -x $root/bin/bash ]] || shell=/bin/bash
	printf '%s:x:%s:%s::%s:%s\n' "$name" "$uid" "$uid" "$home" "$shell" >>"$root/etc/passwd"
	printf '%s:x:%s:\n' "$name" "$uid" >>"$root/etc/group"
	printf '%s:*:%s:0:99999:7:::\n' "$name" "$((epoch / 86400))" >>"$root/etc/shadow"
	[[ ! -f $root/etc/gshadow ]] || printf '%s:!::\n' "$name" >>"$root/etc/gshadow"
	mkdir "$root$home"
	[[ ! -d $root/etc/skel ]] || cp -a "$root/etc/skel/." "$root$home"
	chmod 0755 "$root$home"
	chown -R "$uid:$uid" "$root$home"
}

make_tree() {
	local word rest mode path from target
	while read -r word rest; do
		case $word in
		dir)
			read -r mode rest <<<"$rest"
			for path in $rest; do install -d -m "$mode" "$root$path"; done
			;;
		file)
			read -r mode rest <<<"$rest"
			for path in $rest; do install -m "$mode" "${recipe%/*}/files$path" "$root$path"; done
			;;
		host-file)
			read -r mode from path <<<"$rest"
			install -m "$mode" "$from" "$root$path"
			;;
		link)
			read -r target path <<<"$rest"
			ln -s "$target" "$root$path"
			;;
		remove)
			# shellcheck disable=SC2086 # patterns
			for path in $rest; do
				[[ $path == /* && /$path/ != */../* ]] || die "not a path to remove: $path"
				(cd "$root" && rm -rf -- .$path)
			done
			;;
		user)
			# shellcheck disable=SC2086 # two words
			add_user $rest
			;;
		host-pip) cat "$host/pip.conf" >>"$root$rest" ;;
		applets)
			while read -r path; do
				# What the recipe places itself goes first.
				[[ $path == sbin/init || -e $root/usr/${path#usr/} ]] || ln -s "$rest" "$root/usr/${path#usr/}"
			done < <("$root$rest" --list-full | grep -E '^(usr/)?s?bin/')
			;;
		agent) install -m 0755 "$agent" "$root$rest" ;;
		esac
	done < <(set -f; cat "$recipe")
}

list_packages() {
	if [[ -d $root/var/lib/dpkg ]]; then
		# shellcheck disable=SC2016 # dpkg's variables
		dpkg-query --admindir="$root/var/lib/dpkg" -W -f='${Package} ${Version}\n' | sort
	else
		host_package_versions
	fi
}

# Nothing depends on when it was made. What a package brought keeps its time, by which Python knows its
# compiled modules.
set_times() {
	local started=0
	[[ ! -f $work/started ]] || started=$(<"$work/started")
	find "$root" -print0 >"$work/paths"
	if ((started)); then
		find "$root" -newermt "@$((started - 1))" -print0 >"$work/made"
	else
		cp "$work/paths" "$work/made"
	fi
	# In this order and from lists: to look through a directory is to change the time of its last reading.
	xargs -0 touch -h -m -d "@$epoch" <"$work/made"
	xargs -0 touch -h -a -d "@$epoch" <"$work/paths"
}

# - A small journal: disks of running guests are frozen at any instant and cold-booted later
#   without their memory (finalizeMemoryMB), so the file system must survive a power cut. 16 MiB
#   is the least that keeps builds from waiting for it, and is replayed in a moment.
# - No metadata checksums: an interpreted guest kernel needs milliseconds for each block's CRC,
#   and images are content-addressed: a wrong byte is found before the guest sees it.
# - Nothing lazy: a guest must not spend its first minutes, and its copy-on-write pages, on
#   initialising inode tables.
# - No reserved blocks: everything in a sandbox is root anyway.
# - Room for the group descriptors of a larger file system (grow-mib), so that it can grow while it is
#   mounted. By default that is room for a thousand times the size, at the start of every block group
#   with a copy of the superblock.
make_image() { # image
	local image=$1 features=has_journal,resize_inode,^metadata_csum,^metadata_csum_seed,^uninit_bg,^orphan_file
	local extended grow
	extended=hash_seed=$(value hash-seed),root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0
	grow=$(optional grow-mib)
	[[ -z $grow ]] || extended+=,resize=$((grow * 256))
	truncate -s "$(value size-mib)M" "$image"
	E2FSPROGS_FAKE_TIME=$epoch mke2fs -q -F -t ext4 -b 4096 -I 256 -m 0 -N "$(value inodes)" -J size=16 \
		-O "$features" -L "$(value label)" -U "$(value uuid)" -E "$extended" -d "$root" "$image"
	# mke2fs copied what nobody can set in a directory: the time of the last change to the inode.
	find "$root" -mindepth 1 -printf 'sif "/%P" ctime '"@$epoch"'\n' |
		E2FSPROGS_FAKE_TIME=$epoch debugfs -w -f - "$image" >/dev/null 2>&1
}

[[ ! -f $work/bootstrap.tar ]] || unpack_bootstrap
make_tree
list_packages >"$work/packages"
set_times
make_image "$work/out/rootfs.ext4"
