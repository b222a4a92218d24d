# shellcheck shell=bash
# Recipes: where they are and what they say. Sourced; expects `here`, and `recipe` once it is found.
#
# The words:
#   name, size-mib, inodes, uuid, hash-seed, label    of the file system, one value each
#   grow-mib MIB                how far the file system can grow while it is mounted
#   package-manager apt         what `apt_install` and `pip_install` steps may use; without it, none
#   package NAME...             Debian packages of the host that the recipe takes from
#   bootstrap mmdebstrap SUITE  start from a Debian of this suite, from the host's apt sources
#   include NAME...             packages in it, besides the essential ones and apt
#   host-certificates           what the host's administrator trusts is trusted
#   host-pip PATH               the host's package index for pip is added at the end of this file
#   dir MODE PATH...            directories
#   file MODE PATH...           files, from files/PATH beside the recipe
#   host-file MODE FROM PATH    a file of the host, that is, of a package named above
#   link TARGET PATH            a symbolic link
#   remove PATTERN...           whatever matches
#   user NAME UID               a user with a group and a home of his own, and no password
#   applets PATH                a link to PATH for each of its applets (PATH is a BusyBox)
#   agent PATH                  the agent, built static from this repository

say() { printf 'base: %s\n' "$*"; }
die() { say "error: $*"; exit 1; }

recipe_directories() {
	local IFS=:
	# shellcheck disable=SC2086 # it is a list
	printf '%s\n' ${SPORE_BASES-} "${XDG_CONFIG_HOME:-${HOME-}/.config}/spore/bases" "$here"
}
recipe_names() {
	local directory
	while read -r directory; do
		[[ ! -d $directory ]] || find -L "$directory" -mindepth 2 -maxdepth 2 -name recipe -type f -printf '%h\n'
	done < <(recipe_directories) | sed 's:.*/::' | sort -u
}
find_recipe() { # name
	local directory
	[[ $1 =~ ^[a-z0-9][a-z0-9._-]*$ ]] || return 1
	while read -r directory; do
		if [[ -f $directory/$1/recipe ]]; then
			(cd "$directory/$1" && printf '%s/recipe\n' "$PWD")
			return
		fi
	done < <(recipe_directories)
	return 1
}

words() { awk -v word="$1" '$1 == word { for (i = 2; i <= NF; i++) print $i }' "$recipe"; }
optional() { awk -v word="$1" '$1 == word { print $2; exit }' "$recipe"; }
has() { grep -qE "^$1([[:space:]]|\$)" "$recipe"; }
value() { # of a word that has one
	local found
	found=$(optional "$1")
	[[ -n $found ]] || die "the recipe has no $1"
	printf '%s\n' "$found"
}

# A word that nobody knows, and a value that would end up in a command or in JSON, is found here.
check_recipe() {
	local unknown word
	unknown=$(awk '$1 != "" && $1 !~ /^#/ && $1 !~ /^(name|size-mib|inodes|uuid|hash-seed|label|grow-mib|package-manager|package|bootstrap|include|host-certificates|host-pip|dir|file|host-file|link|remove|user|applets|agent)$/ { print $1; exit }' "$recipe")
	[[ -z $unknown ]] || die "$recipe has a word that nobody knows: $unknown"
	for word in size-mib inodes; do
		[[ $(value $word) =~ ^[1-9][0-9]*$ ]] || die "$recipe: $word is not a number"
	done
	[[ $(optional grow-mib) =~ ^[0-9]*$ ]] || die "$recipe: grow-mib is not a number"
	[[ $(optional package-manager) =~ ^(apt)?$ ]] || die "$recipe: package-manager can only be apt"
	if has bootstrap; then
		[[ $(words bootstrap | paste -sd ' ') =~ ^mmdebstrap\ [a-z]+$ ]] || die "$recipe: it is \`bootstrap mmdebstrap SUITE\`"
	else
		! has include || die "$recipe: include needs bootstrap"
	fi
	[[ ! $(words include) =~ [^a-z0-9.+$'\n'-] ]] || die "$recipe: include takes names of packages"
}
