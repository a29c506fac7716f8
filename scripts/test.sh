#!/usr/bin/env bash
# Sets up a virtual environment and passes every check: format, lint, types, layers, tests, and a device's install.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
make_venv dev,rtx

ruff format --check .
ruff check .
mypy
lint-imports
scripts/check_runtime.sh
# `fico deploy` is tested against a real sshd where there are openssh-server and rsync (apt install them), and skipped where
# not; FICO_REQUIRE_SSH=1 fails there instead.
# A process for each core, and in each one thread: torch's own would take each other's time.
export OMP_NUM_THREADS=1
# Last, so that its closing line is the run's: N passed.
pytest --numprocesses "${FICO_TEST_PROCESSES:-2}" --dist loadscope "$@"
