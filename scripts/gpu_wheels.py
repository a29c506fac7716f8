"""What to carry to a machine that cannot download: lists wheels, splits large ones, writes the script that installs them there.

Not a script: `gpu_day.py --wheels FOLDER --there FILE` calls it.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from fico_export import documents
from fico_export.errors import ConfigError

PART_BYTES = 60 << 20
# What the parts of the day need beside the base package; matplotlib and others of `dev` are not.
ROOT = "fico_export[export,rtx]"
TESTS = ("pytest", "pytest-xdist", "filelock", "hypothesis", "scikit-image", "scipy")
INSTALL = "install.sh"


def needed(there: Path | None = None) -> dict[str, str]:
    """Name → version of what this environment has and the day needs, without what the machine has.

    Args:
        there: what `pip freeze` or `pip list --format=freeze` says on that machine; any version of a package will do.

    Raises:
        ConfigError: the file cannot be read, or something is not installed here.
    """
    wanted: dict[str, str] = {}
    for root in (ROOT, *TESTS):
        _collect(Requirement(root), wanted)
    if there is None:
        return wanted
    text = documents.read_bytes(there, most=1 << 20, fix="give --there the output of `pip freeze`").decode(
        errors="replace"
    )
    has = {canonicalize_name(line.split("==")[0].strip()) for line in text.splitlines() if line.strip()}
    return {name: found for name, found in wanted.items() if name not in has}


def _collect(requirement: Requirement, wanted: dict[str, str], seen: set[str] | None = None) -> None:
    """A requirement and all that it requires, as installed here."""
    seen = set() if seen is None else seen
    if str(requirement) in seen:
        return
    seen.add(str(requirement))
    try:
        found = distribution(requirement.name)
    except PackageNotFoundError as error:
        raise ConfigError(
            f"{requirement.name} is not installed here",
            fix="run this where `pip install -e '.[dev,rtx]'` was run",
        ) from error
    wanted[canonicalize_name(requirement.name)] = found.version
    for text in found.requires or []:
        inner = Requirement(text)
        extras = requirement.extras or {""}
        if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
            _collect(inner, wanted, seen)


def prepare(folder: Path, wanted: dict[str, str], part_bytes: int = PART_BYTES) -> str:
    """Split what is larger than a part, write the script, and list what there is and what is missing.

    Args:
        folder: of the wheels, as `pip download` leaves them; of a wheel that is split only the parts stay.
        wanted: name → version.
        part_bytes: of the largest file that can be carried.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"no folder {folder}", fix=f"mkdir {folder}, and download wheels into it")
    for path in sorted(folder.glob("*.whl")):
        if path.stat().st_size > part_bytes:
            _split(path, part_bytes)
    sizes = _wheels(folder)
    rows = [(name, version, sizes.get((name, version))) for name, version in sorted(wanted.items())]
    here = [f"{name}=={version}" for name, version, size in rows if size is not None]
    missing = [f"{name}=={version}" for name, version, size in rows if size is None]
    _write_script(folder, here)
    lines = [
        f"{name:<28}{version:<16}{'missing' if size is None else f'{size:>14,}'}"
        for name, version, size in rows
    ]
    lines.append(
        f"{len(here)} of {len(rows)} wheels, {sum(size or 0 for *_, size in rows):,} bytes; {folder / INSTALL} installs them"
    )
    if missing:
        lines.append(
            f"to fetch the rest: pip download --no-deps --only-binary :all: -d {folder} {' '.join(missing)}"
        )
    return "\n".join(lines)


def _split(path: Path, part_bytes: int) -> None:
    """Parts beside a file, its digest, and no file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for number in range(-(-path.stat().st_size // part_bytes)):
            content = file.read(part_bytes)
            digest.update(content)
            path.with_name(f"{path.name}.part-{number:03}").write_bytes(content)
    path.with_name(f"{path.name}.sha256").write_text(f"{digest.hexdigest()}  {path.name}\n", encoding="utf-8")
    path.unlink()


def _wheels(folder: Path) -> dict[tuple[str, str], int]:
    """(name, version) → bytes, of whole wheels and of those in parts."""
    sizes: dict[tuple[str, str], int] = {}
    for path in folder.iterdir():
        name = path.name.partition(".part-")[0]
        try:
            package, version, *_ = parse_wheel_filename(name)
        except InvalidWheelFilename:
            continue
        key = (package, str(version))
        sizes[key] = sizes.get(key, 0) + path.stat().st_size
    return sizes


def _write_script(folder: Path, pinned: list[str]) -> None:
    """`install.sh`: joins the parts, compares digests, installs; no network."""
    script = folder / INSTALL
    script.write_text(
        f"""#!/usr/bin/env bash
# Joins the parts of large wheels, then installs all that lies beside this script, without a network.
# PYTHON names the interpreter (default: python3); TARGET, where set, the folder to install into, for PYTHONPATH.
set -euo pipefail
cd "$(dirname "$0")"
for sum in *.sha256; do
  [ -e "$sum" ] || continue
  wheel="${{sum%.sha256}}"
  [ -e "$wheel" ] || cat "$wheel".part-* > "$wheel"
  sha256sum --check --quiet "$sum"
  rm -f "$wheel".part-*
done
"${{PYTHON:-python3}}" -m pip install --quiet --no-index --no-deps --no-compile --find-links . ${{TARGET:+--target "$TARGET"}} {" ".join(pinned)}
""",
        encoding="utf-8",
    )
    script.chmod(0o755)
