#!/usr/bin/env bash
# Whether a test run left anything on this host.
#
#   scripts/leftovers.sh list                      what there is of ours now, one thing a line
#   scripts/leftovers.sh check BEFORE RUN TMP      fails, and says what, if more is there than was
#
# BEFORE is a file with what `list` said before the run, so things of other people and of earlier
# runs do not count. Processes are the run's if SPORE_TEST_RUN=RUN is in their environment; whoever
# called `check` must not have it. TMP was the run's own TMPDIR: nothing may be left in it.
set -euo pipefail
shopt -s nullglob
export LC_ALL=C

# Network devices and rules, network namespaces, mounts, loop devices, control groups and directories with our names.
list() {
	local path
	for path in /sys/class/net/{spore,sp-,st-}*; do printf 'network device %s\n' "${path##*/}"; done
	for path in /run/netns/spore*; do printf 'network namespace %s\n' "${path##*/}"; done
	awk '/spore/ { print "mount " $5 }' /proc/self/mountinfo
	for path in /sys/block/loop*/loop/backing_file; do
		awk -v loop="${path#/sys/block/}" '/spore/ { sub("/.*", "", loop); print "loop device /dev/" loop " of " $0 }' \
			"$path" 2>/dev/null || true # gone since the glob
	done
	{ nft list tables 2>/dev/null || true; } | awk '/spore/ { print "nftables " $0 }'
	find /sys/fs/cgroup -type d -path '*/spore-vms/*' -printf 'control group %p\n' 2>/dev/null || true
	for path in /tmp/spore-*; do printf 'temporary %s\n' "$path"; done
}

processes() { # run
	local path pid
	for path in $(grep -lzxF "SPORE_TEST_RUN=$1" /proc/[0-9]*/environ 2>/dev/null || true); do
		pid=${path#/proc/} pid=${pid%/environ}
		printf 'process %s: %s\n' "$pid" "$(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null || true)"
	done
}

inside() { # directory of the run
	local path
	for path in "$1"/* "$1"/.[!.]*; do printf 'temporary %s\n' "$path"; done
	awk -v tmp="$1/" 'index($5, tmp) == 1 { print "mount " $5 }' /proc/self/mountinfo
}

check() { # before, run, tmp
	local left try
	# A process that was just told to end may need a moment.
	for try in {1..50}; do
		left=$(
			processes "$2"
			inside "$3"
			comm -13 <(sort -u "$1") <(list | sort -u)
		)
		[[ -n $left ]] || return 0
		((try == 50)) || sleep 0.1
	done
	printf 'LEFT BEHIND by the test run:\n'
	printf '  %s\n' "${left//$'\n'/$'\n'  }"
	return 1
}

case $#:${1:-} in
1:list) list ;;
4:check) check "$2" "$3" "$4" ;;
*)
	sed -n '3,5s/^# *//p' "$0" >&2
	exit 2
	;;
esac
