# shellcheck shell=bash
# A Debian root file system as a tar archive, made by mmdebstrap. Sourced; needs lib/recipe.sh.
#
# Not by root where it can be helped: then mmdebstrap works in a user namespace (which needs
# newuidmap and a range in /etc/subuid). It mounts, if at all, in a namespace of its own.

bootstrap() { # what the host gives, archive to be made
	local host=$1 archive=$2 files=${recipe%/*}/files suite now apt= option options=()
	suite=$(words bootstrap | tail -n 1)
	# As texts and not as files: in its user namespace mmdebstrap cannot read ours.
	# Programs of the base are not there yet.
	[[ ! -d $files/etc/apt/apt.conf.d ]] || apt=$(grep -hvE '^(//|Dir::Bin::)' "$files"/etc/apt/apt.conf.d/*)
	# mmdebstrap downloads first and installs then.
	apt+=$'\n'$(<"$host/apt.conf")$'\nAPT::Keep-Downloaded-Packages "true";'
	options+=(--aptopt="$apt")
	if [[ -d $files/etc/dpkg/dpkg.cfg.d ]]; then
		while read -r option; do
			options+=(--dpkgopt="$option")
		done < <(grep -hvE '^(#|$)' "$files"/etc/dpkg/dpkg.cfg.d/*)
	fi
	if has host-certificates && [[ -n $(ls "$host/certificates") ]]; then
		# By the package's own program: what it does now it does again when a step calls it.
		options+=(
			--customize-hook="copy-in $(printf '%s ' "$host"/certificates/*) /usr/local/share/ca-certificates"
			# shellcheck disable=SC2016 # the hook's variable
			--customize-hook='chroot "$1" sh -c "chown 0:0 /usr/local/share/ca-certificates/*; update-ca-certificates"'
		)
	fi
	# What is not older than this no package has brought. assemble.sh gives it the time of the base.
	now=$(date +%s)
	printf '%s\n' "$now" >"$work/started"
	say "bootstrapping $suite"
	SOURCE_DATE_EPOCH=$now DEBIAN_FRONTEND=noninteractive mmdebstrap --quiet --mode=auto --variant=apt --format=tar \
		--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --include="$(words include | paste -sd ,)" \
		"${options[@]}" --customize-hook="$(<"$here/lib/pyc.hook")" \
		"$suite" "$archive" - <"$host/sources.list"
}
