#!/usr/bin/env bash
# All that only a GPU can show, in one run of at most eight minutes: the gpu tests, then ONNX Runtime CUDA, TensorRT-RTX and TensorRT
# with all visual tokens against K = 64. Results go to engines/gpu_day.json; `python scripts/gpu_day.py --docs FILE` makes
# docs/gpu.md of them.
# Usage: scripts/gpu_day.sh [--rehearse] [--parts tests,ort,…] [--size demo|1b|7b] [--out FILE]
#   --rehearse   everything but the device: no GPU is needed, the demo answers on the CPU, and the results say so
# PYTHON names the interpreter (default: python, of the active environment).
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" scripts/gpu_day.py "$@"
