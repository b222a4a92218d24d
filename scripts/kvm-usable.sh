#!/usr/bin/env bash
# Succeeds if this user can open /dev/kvm. What this KVM can do is for `spore doctor` to say.
set -euo pipefail

# The test comes first: opening for writing would make an ordinary file where no device is.
[[ -c /dev/kvm ]] && { : <>/dev/kvm; } 2>/dev/null
