#!/usr/bin/env bash
# Installs the base package alone, as a device does, and answers a question from a bundle: no torch, no transformers. What takes
# the exporter says so, as JSON too (tests/cli/test_base_install.py has every verb).
# Usage: scripts/check_runtime.sh [PYTHON ...]   interpreters to try, default the one that is active
set -euo pipefail
cd "$(dirname "$0")/.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

fico-export --model demo --keep 64 --no-verify --out "$work/bundle" 2>/dev/null
for python in "${@:-python}"; do
  "$python" -m venv --clear "$work/venv"
  "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check .
  "$work/venv/bin/python" - <<'PY'
import importlib.resources
import importlib.util
import sys

import fico_export.runtime.vlm

for package in ("torch", "transformers", "onnx", "safetensors"):
    if importlib.util.find_spec(package):
        sys.exit(f"{package} is installed: this checks nothing")
configs = importlib.resources.files("fico_export.models") / "configs"
if not (configs / "llava-1.5-7b" / "config.json").is_file():
    sys.exit("the aliases' config.json are not in the package")
PY
  answer="$("$work/venv/bin/fico" run "$work/bundle" --prompt "What is it?" --max-new-tokens 4 --json)"
  refusal="$("$work/venv/bin/fico" plan --json 2>/dev/null)" && { echo "fico plan works without torch" >&2; exit 1; }
  case "$refusal" in *"pip install '.[export]'"*) ;; *) echo "fico plan says: $refusal" >&2; exit 1 ;; esac
  echo "$("$work/venv/bin/python" --version): base install answers: ${answer:0:60}…"
done
