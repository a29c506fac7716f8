#!/usr/bin/env bash
# Sets up a virtual environment, exports the embedded demo model at 64 of 576 visual tokens, and asks it a question.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
make_venv export

python - <<'PY'
from PIL import Image, ImageDraw

picture = Image.new("RGB", (480, 320), (150, 190, 230))
draw = ImageDraw.Draw(picture)
draw.rectangle((0, 220, 480, 320), fill=(90, 140, 70))
draw.ellipse((60, 120, 180, 240), fill=(200, 40, 40))
draw.polygon([(300, 230), (380, 90), (460, 230)], fill=(240, 200, 40))
picture.save("engines/quickstart.png")
PY

fico-export --model demo --keep 64 --overwrite
fico-export --model demo --method none --overwrite
for bundle in engines/demo-ficoco-v-k64-fp32 engines/demo-none-k576-fp32; do
  echo "== $bundle"
  fico run "$bundle" --image engines/quickstart.png --prompt "What is in the picture?" --max-new-tokens 16
done
echo "The demo's weights are random: its words mean nothing, its graphs, token counts and timings are real."
