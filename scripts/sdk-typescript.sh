#!/usr/bin/env bash
# Checks the TypeScript SDK: types, tests, lint, formatting. Works on a copy in the build directory (CARGO_TARGET_DIR,
# or target), so that nothing is left in the source tree.
#
#   scripts/sdk-typescript.sh
#
# With SPORE_SOCKET and SPORE_TEST_IMAGE the tests use a real daemon, with SPORE_TEST_BASE they build an image on it, and
# with SPORE_OPENAPI (a file) the SDK's types are compared with what the daemon says of itself.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

skip() {
	printf '\n*** SKIPPED: %s: the TypeScript SDK is not tested.\n\n' "$*"
	exit 0
}

scripts/node-usable.sh || skip "no Node.js 18.18 or newer with npm"

export SPORE_REPOSITORY=$PWD
work=${CARGO_TARGET_DIR:-target}/sdk-typescript
mkdir -p "$work"
find "$work" -mindepth 1 -maxdepth 1 ! -name node_modules -exec rm -rf {} +
tar -C sdk/typescript --exclude=./node_modules --exclude=./dist --exclude=./build -cf - . | tar -C "$work" -xf -
cd "$work"

# Packages are installed anew only when the lock file or Node.js is another.
wanted="$(sha256sum <package-lock.json) $(node --version)"
if [[ $(cat node_modules/.spore 2>/dev/null) != "$wanted" ]]; then
	"$SPORE_REPOSITORY/scripts/registry-usable.sh" || skip "no package registry"
	# No package here needs a script of its own to be installed.
	npm ci --ignore-scripts
	printf '%s\n' "$wanted" >node_modules/.spore
fi

[[ -n ${SPORE_SOCKET:-} && -n ${SPORE_TEST_IMAGE:-} ]] ||
	printf '\n*** SKIPPED: SPORE_SOCKET and SPORE_TEST_IMAGE name no daemon and image: the SDK meets only its own test server.\n\n'
npm test
npm run lint
