#!/usr/bin/env bash
# Checks the Python SDK: lint, formatting, types, tests. All that it makes is in the build directory (CARGO_TARGET_DIR, or
# target).
#
#   scripts/sdk-python.sh
#
# With SPORE_SOCKET and SPORE_TEST_IMAGE there are tests with that real daemon, with SPORE_TEST_BASE one of them builds an
# image on it, and with SPORE_OPENAPI (a file) the SDK's types are compared with what the daemon says of itself.
# SPORE_PYTHON is the Python it runs on, python3 unless it says otherwise.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

skip() {
	printf '\n*** SKIPPED: %s: the Python SDK is not tested.\n\n' "$*"
	exit 0
}

work=${CARGO_TARGET_DIR:-target}/sdk-python
mkdir -p "$work"
work=$(cd "$work" && pwd -P)
python=${SPORE_PYTHON:-python3}
"$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' 2>/dev/null ||
	skip "no Python 3.9 or newer with venv"

export PYTHONDONTWRITEBYTECODE=1 PIP_CACHE_DIR=$work/pip PIP_DISABLE_PIP_VERSION_CHECK=1
export RUFF_CACHE_DIR=$work/ruff MYPY_CACHE_DIR=$work/mypy
venv=$work/venv

# Tools are installed anew only when another list of them is wanted, or Python is another.
wanted="$(sha256sum <sdk/python/requirements-dev.txt) $("$python" -c 'import sys; print(sys.executable, sys.version)')"
if [[ $(cat "$venv/.spore" 2>/dev/null) != "$wanted" ]]; then
	scripts/registry-usable.sh || skip "no package registry"
	rm -rf "$venv"
	"$python" -m venv "$venv"
	"$venv/bin/pip" install --quiet --no-deps -r sdk/python/requirements-dev.txt
	"$venv/bin/pip" check
	printf '%s\n' "$wanted" >"$venv/.spore"
fi
# As a user would get it, and not by a path to its source.
"$venv/bin/pip" install --quiet --no-deps --no-build-isolation --no-index --force-reinstall sdk/python

cd sdk/python
tests=(pytest -p no:cacheprovider --basetemp="$work/tmp")
if [[ -z ${SPORE_SOCKET:-} || -z ${SPORE_TEST_IMAGE:-} ]]; then
	printf '\n*** SKIPPED: SPORE_SOCKET and SPORE_TEST_IMAGE name no daemon and image: the SDK meets only its own test server.\n\n'
	tests+=(-m "not daemon")
fi
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy" --strict src tests examples
# -X dev: what is left open is an error.
"$venv/bin/python" -X dev -m "${tests[@]}"
rm -rf "$work/tmp"
