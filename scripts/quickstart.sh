#!/usr/bin/env bash
# Sets up a virtual environment, exports the embedded demo model at 64 of its 576 visual tokens and at all of them, and
# asks both about a scene: answers beside what the scene shows, time per stage, and the picture with the kept tokens drawn.
# The method is dpp, which answers this small model's questions as all 576 tokens do; docs/demo.md has the others.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
make_venv export

fico-export --model demo --keep 64 --method dpp --overwrite
fico-export --model demo --method none --overwrite
python scripts/ask_demo.py engines/demo-none-k576-fp32 engines/demo-dpp-k64-fp32
