#!/usr/bin/env bash
# Sets up a virtual environment, exports the embedded demo model at 64 of its 576 visual tokens and at all of them, and
# asks both about a scene: answers and time per stage side by side, and the picture with the kept tokens drawn on it.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
make_venv export

fico-export --model demo --keep 64 --overwrite
fico-export --model demo --method none --overwrite
python scripts/ask_demo.py engines/demo-none-k576-fp32 engines/demo-ficoco-v-k64-fp32
