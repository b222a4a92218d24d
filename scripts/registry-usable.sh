#!/usr/bin/env bash
# Succeeds if the archive that the host's apt is configured with can be reached: bases come from there, and so do the
# packages that a test installs in a guest.
set -euo pipefail

uri=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | head -n 1)
[[ $uri =~ ^https?://([^/:]+)(:([0-9]+))? ]] || exit 1
host=${BASH_REMATCH[1]} port=${BASH_REMATCH[3]:-80}
[[ $uri == https:* && -z ${BASH_REMATCH[3]} ]] && port=443
timeout 10 bash -c ": <>/dev/tcp/$host/$port" 2>/dev/null
