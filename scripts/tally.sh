#!/usr/bin/env bash
# Adds up what test runners say at their end in a log: the `test result:` lines of cargo test, the
# counts of Node.js, and the last line of pytest.
#
#   scripts/tally.sh LOG     prints: N passed, N failed[, N skipped]
#
# Skipped are ignored tests, and those that passed only to say "SKIPPED" (shown by --show-output).
set -euo pipefail

awk '
	/^---- .* stdout ----$/ { in_test = 1 }
	in_test && /^SKIPPED/ { said++; in_test = 0 }
	/^(ℹ|#) pass [0-9]+$/ { passed += $3 }
	/^(ℹ|#) (fail|cancelled) [0-9]+$/ { failed += $3 }
	/^(ℹ|#) (skipped|todo) [0-9]+$/ { ignored += $3 }
	/^=+ .* in [0-9.]+s( \([0-9:]+\))? =+$/ {
		for (i = 2; i < NF; i++) {
			if ($(i + 1) ~ /^passed/) passed += $i
			if ($(i + 1) ~ /^(failed|errors?)/) failed += $i
			if ($(i + 1) ~ /^skipped/) ignored += $i
		}
	}
	/^test result: / { passed += $4; failed += $6; ignored += $8; in_test = 0 }
	END {
		printf "%d passed, %d failed", passed - said, failed
		if (ignored + said) printf ", %d skipped", ignored + said
		print ""
	}
' "$1"
