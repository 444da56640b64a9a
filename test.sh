#!/usr/bin/env bash
# Runs the tests on the CPU; sets up an environment first when there is none. About eleven minutes on two cores.
#   bash test.sh                     all tests
#   bash test.sh tests/models -x     arguments go to pytest
#   bash test.sh --lint              ruff and mypy first (what CI does)
set -euo pipefail
cd "$(dirname "$0")"
source utils/setup_env.sh
ensure_env dev

if [ "${1:-}" = "--lint" ]; then
  shift
  "$PYTHON" -m ruff check .
  "$PYTHON" -m ruff format --check .
  "$PYTHON" -m mypy
fi
# As many workers as the machine has cores, one torch thread each, so that workers do not fight over them; threads that
# a program asks for sleep while they wait.
workers=${TEST_WORKERS:-$(nproc)}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
# Files stay in the order that conftest.py gives them: the longest have few tests, and would come last by their number.
exec "$PYTHON" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@"
