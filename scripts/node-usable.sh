#!/usr/bin/env bash
# Succeeds if there are Node.js 18.18 or newer, which sdk/typescript is for, and npm.
set -euo pipefail

node -e '
	const [major, minor] = process.versions.node.split(".").map(Number);
	process.exit(major > 18 || (major === 18 && minor >= 18) ? 0 : 1);
' 2>/dev/null && npm --version >/dev/null 2>&1
