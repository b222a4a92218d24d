#!/usr/bin/env bash
# Adds up the `test result:` lines of cargo test in a log.
#
#   scripts/tally.sh LOG     prints: N passed, N failed[, N skipped]
#
# Skipped are ignored tests, and those that passed only to say "SKIPPED" (shown by --show-output).
set -euo pipefail

awk '
	/^---- .* stdout ----$/ { in_test = 1 }
	in_test && /^SKIPPED/ { said++; in_test = 0 }
	/^test result: / { passed += $4; failed += $6; ignored += $8; in_test = 0 }
	END {
		printf "%d passed, %d failed", passed - said, failed
		if (ignored + said) printf ", %d skipped", ignored + said
		print ""
	}
' "$1"
