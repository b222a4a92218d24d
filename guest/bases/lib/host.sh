# shellcheck shell=bash
# What a base takes from the host: tools, packages, apt's sources, trusted certificates, pip's index.
# None of it is in the repository. Sourced; needs lib/recipe.sh.

tools() { # packages of the host that the build itself needs
	echo e2fsprogs
	! has bootstrap || echo mmdebstrap
	! has bootstrap || ((EUID == 0)) || echo uidmap
	((EUID == 0)) || echo fakeroot
}
tool_versions() {
	local packages=(e2fsprogs)
	! has bootstrap || packages+=(mmdebstrap)
	# shellcheck disable=SC2016 # dpkg's variables
	dpkg-query -W -f='${Package} ${Version}\n' "${packages[@]}"
}

install_packages() {
	local package missing=()
	for package in $(tools) $(words package); do
		dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
			missing+=("$package")
	done
	((${#missing[@]})) || return 0
	((EUID == 0)) || die "missing packages, install them as root: apt-get install ${missing[*]}"
	say "installing ${missing[*]}"
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${missing[@]}"
}

host_package_versions() { # of those the recipe takes files from, as lines
	local packages
	mapfile -t packages < <(words package)
	# shellcheck disable=SC2016 # dpkg's variables
	((${#packages[@]} == 0)) || dpkg-query -W -f='${Package} ${Version}\n' "${packages[@]}"
}

# As root, or as what looks like root to those who ask for owners.
run_as_root() {
	if ((EUID == 0)); then "$@"; else fakeroot -- "$@"; fi
}

collect_from_host() { # directory
	if has bootstrap; then
		apt_sources "$(words bootstrap | tail -n 1)" >"$1/sources.list"
		apt_options >"$1/apt.conf"
	fi
	! has host-certificates || added_certificates "$1"
	! has host-pip || pip_index >"$1/pip.conf"
}

# apt itself reads its sources, of both formats. What other archives call `main` is not meant; what apt
# has not fetched yet has no origin. It is signed with Debian's keys, which are in every base in one file.
apt_sources() { # suite
	local found keys=/usr/share/keyrings/debian-archive-keyring.gpg
	# shellcheck disable=SC2016 # apt's variables
	found=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
		awk -v suite="$1" -v keys="$keys" '
			$1 ~ /^\$/ { $1 = "Debian" }
			$1 == "Debian" && $2 == "main" && ($3 == suite || $3 == suite "-updates" || $3 == suite "-security") {
				print "deb [signed-by=" keys "] " $4 " " $3 " main"
			}' | LC_ALL=C sort -u)
	grep -q " $1 main\$" <<<"$found" || die "apt on this host has no source for Debian $1, component main"
	without_secrets "apt's sources" "$found"
	printf '%s\n' "$found"
}

# How this host reaches its archive: proxies, and whether it may be an old snapshot.
apt_options() {
	local found
	found=$(apt-config dump | grep -E '^Acquire::(https?(::[^ ]+)?::(Proxy|Timeout)|http::Proxy|https::Proxy|Check-Valid-Until|Check-Date|Retries) ' || true)
	without_secrets "apt's proxy" "$found"
	[[ -z $found ]] || printf '%s\n' "$found"
}

# A base is copied into images, and images are given away.
without_secrets() { # what, text
	[[ ! $2 =~ ://[^/[:space:]\"]*@ ]] || die "$1 on this host has a password in its address, which would be in the base"
}

# What /etc/ssl/certs/ca-certificates.crt has beyond what the package brought: one file each.
added_certificates() { # directory
	local bundle=/etc/ssl/certs/ca-certificates.crt packaged=/usr/share/ca-certificates
	mkdir "$1/certificates"
	[[ -f $bundle ]] || return 0
	{
		[[ ! -d $packaged ]] || find "$packaged" -name '*.crt' -exec cat {} +
		echo '-----BEGIN ADDED-----'
		cat "$bundle"
	} | awk '
		{ sub(/\r$/, "") }
		/^-----BEGIN ADDED-----$/ { added = 1; next }
		/^-----BEGIN CERTIFICATE-----$/ { inside = 1; body = ""; next }
		/^-----END CERTIFICATE-----$/ {
			inside = 0
			key = body
			gsub(/\n/, "", key)
			if (added && !(key in seen))
				printf "-----BEGIN CERTIFICATE-----\n%s-----END CERTIFICATE-----\n%c", body, 0
			seen[key] = 1
			next
		}
		inside { body = body $0 "\n" }
	' | while IFS= read -r -d '' certificate; do
		printf '%s\n' "$certificate" >"$1/certificates/host-$(sha256sum <<<"$certificate" | cut -c1-16).crt"
	done
}

# Where pip on this host looks for packages, if it was told: lines for the section [global].
pip_index() {
	local found key
	command -v pip >/dev/null || return 0
	found=$(pip config list 2>/dev/null | sed -nE "s/^(global|install|:env:)\.(index-url|extra-index-url|trusted-host)='(.*)'\$/\2 \1 \3/p")
	for key in index-url extra-index-url trusted-host; do
		# The environment is over the files, and a section over [global].
		awk -v key="$key" '
			$1 == key { rank = $2 == ":env:" ? 3 : $2 == "install" ? 2 : 1
				if (rank > best) { best = rank; $1 = $2 = ""; sub(/^ +/, ""); gsub(/\\n/, " "); line = $0 } }
			END { if (best) print key " = " line }
		' <<<"$found"
	done >"$work/pip"
	without_secrets "pip's index" "$(cat "$work/pip")"
	cat "$work/pip"
}
