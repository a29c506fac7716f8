#!/bin/sh
# Resolve the base install for aarch64 Linux, wheels alone: fails where a dependency has none. Installs nothing but uv, in a folder of its own.
#
#   scripts/check_aarch64.sh [PYTHON_VERSION …]     # by default 3.11, as Raspberry Pi OS 12 has it, 3.10 as JetPack 6, and 3.13
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet uv
[ $# -gt 0 ] || set -- 3.11 3.10 3.13
for version; do
    "$work/venv/bin/uv" pip compile pyproject.toml --python-version "$version" --python-platform aarch64-manylinux_2_28 \
        --only-binary :all: --no-header --no-annotate --quiet >"$work/found"
    grep -q '^onnxruntime==' "$work/found" || { echo "no onnxruntime for aarch64 and Python $version" >&2; exit 1; }
    echo "Python $version on aarch64: $(grep -c == "$work/found") wheels"
done
