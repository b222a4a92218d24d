#!/usr/bin/env bash
# Calls a daemon with what its own description allows and what it does not (schemathesis): no server error, no hang, and
# no answer that the description does not have.
#
#   SPORE_SOCKET=PATH scripts/api-fuzz.sh      SPORE_FUZZ_EXAMPLES requests a call (20), of SPORE_FUZZ_SEED (1)
#
# With SPORE_FUZZ_SANDBOX and SPORE_FUZZ_IMAGE most calls are about these, which are there (api_fuzz_hooks.py). Nothing is
# deleted or paused then, which would take them away from all other calls. With SPORE_FUZZ_EXPENDABLE as well, only that is
# called, and all that the daemon has may be lost.
#
# First the description itself is checked (openapi-spec-validator).
#
# The calls go through a loopback port, since the tool does not speak to Unix sockets. Sandboxes and builds that it makes
# are the caller's to remove. Draining is left out: what is refused then is a 503, and that is a finding.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools=(schemathesis==4.32.5 openapi-spec-validator==0.9.0)
work=$PWD/${CARGO_TARGET_DIR:-target}/api-fuzz
[[ ${CARGO_TARGET_DIR:-} != /* ]] || work=$CARGO_TARGET_DIR/api-fuzz
mkdir -p "$work"
if [[ $(cat "$work/venv/.spore" 2>/dev/null) != "${tools[*]}" ]]; then
	if ! scripts/registry-usable.sh; then
		printf '\n*** SKIPPED: no package registry: the interface is not fuzzed.\n\n'
		exit 0
	fi
	rm -rf "$work/venv"
	python3 -m venv "$work/venv"
	"$work/venv/bin/pip" install --quiet --disable-pip-version-check "${tools[@]}"
	printf '%s\n' "${tools[*]}" >"$work/venv/.spore"
fi

# Prints its port, then copies both ways until it is ended. The file of an earlier run would name another's.
rm -f "$work/port"
"$work/venv/bin/python" scripts/socket-proxy.py "$SPORE_SOCKET" >"$work/port" &
proxy=$!
trap 'kill "$proxy" 2>/dev/null || true' EXIT
for ((i = 0; i < 100; i++)); do [[ ! -s $work/port ]] || break; sleep 0.1; done

curl -sS --fail --unix-socket "$SPORE_SOCKET" http://spore/v1/openapi.json >"$work/openapi.json"
"$work/venv/bin/openapi-spec-validator" "$work/openapi.json"

hooks=$PWD/scripts/api_fuzz_hooks.py
only=() patience=60
if [[ -n ${SPORE_FUZZ_SANDBOX:-} ]]; then
	# A boot and a checkpoint of it, where guests are interpreted.
	patience=300
	only=(--exclude-method DELETE --exclude-path-regex '/pause$')
	[[ -z ${SPORE_FUZZ_EXPENDABLE:-} ]] || only=(--include-method DELETE --include-path-regex '/(pause|resume)$')
fi
checks=not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance
# What it may not be asked is refused.
checks+=,negative_data_rejection
cd "$work"
: >met
SCHEMATHESIS_HOOKS=$hooks "$work/venv/bin/st" run "http://127.0.0.1:$(cat port)/v1/openapi.json" \
	--phases coverage,fuzzing --max-examples "${SPORE_FUZZ_EXAMPLES:-20}" --request-timeout "$patience" \
	--checks "$checks" --seed "${SPORE_FUZZ_SEED:-1}" \
	--exclude-path /v1/events --exclude-path /v1/host/drain "${only[@]}" --no-color >log 2>&1 || {
	cat log
	exit 1
}
printf 'the interface, fuzzed: %s\n' "$(grep -E '^ +[0-9]+ generated' log | sed 's/^ *//')"
if [[ -n ${SPORE_FUZZ_EXPENDABLE:-} ]]; then
	sort met | uniq -c
	# DELETE of five kinds, pause and resume.
	(($(sort -u met | wc -l) == 7)) || { printf 'Not each call was about something that was there.\n'; exit 1; }
fi
