#!/usr/bin/env bash
# Sets up a virtual environment and passes every check: format, lint, types, layers, tests, and a device's install.
# Python is all that it needs. Tests of `fico deploy` and of pages in a browser are skipped where there are no openssh-server,
# rsync and Chromium; the summary says which were, and what installs them. FICO_REQUIRE_SSH=1 and FICO_REQUIRE_CHROMIUM=1 fail
# there instead. FICO_EXHAUSTIVE=1 adds tests that take minutes and seldom find what the rest does not (tests/exhaustive.py).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
make_venv dev,rtx

ruff format --check .
ruff check .
scripts/check_runtime.sh &  # it waits for installs, and leaves a core to what follows
runtime=$!
trap 'kill "$runtime" 2>/dev/null || true' EXIT
mypy
lint-imports
wait "$runtime"
trap - EXIT
# A process for each core, and in each one thread: torch's own would take each other's time.
export OMP_NUM_THREADS=1
# Last, so that its closing line is the run's: N passed. In the order of the folders: by the number of tests, those modules come last
# whose few tests take minutes, and one process waits for the other.
pytest --numprocesses "${FICO_TEST_PROCESSES:-2}" --dist loadscope --no-loadscope-reorder "$@"
