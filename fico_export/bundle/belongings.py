"""What may be replaced: a bundle that holds nothing but a bundle's files, and files that this package made."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from fico_export import documents
from fico_export.errors import BundleError, ConfigError

MADE_BY = "made by fico_export"
"""Stands near the beginning or the end of every drawing and page that this package writes."""

_MANIFEST = "manifest.json"
_FIX = "give --out another folder"
_EDGE_BYTES = 65536  # of a file, where MADE_BY is looked for
_SHOWN = 3
# What the commands leave in a bundle, beside the files that its manifest lists.
_LEFT_BY_COMMANDS = re.compile(
    r"""
    manifest\.json | profile\.json
    | trt/[^/]+/(build\.json | [^/]+\.engine | timing\.cache | build\.sh | profile\.sh | trtexec/[^/]+)
    | trt/\.[^/]+\.partial-[0-9a-f]{8}/.+
    | deploy/[^/]+/[^/]+\.(json|log) | deploy/[^/]+\.png
    | (.+/)?\.fico-partial/.+ | (.+/)?\.DS_Store
    """,
    re.VERBOSE,
)


def require_bundle(folder: Path, shown: Path) -> None:
    """Refuse to replace what is no bundle, or holds anything else.

    Args:
        folder: where it lies now.
        shown: its name for errors.

    Raises:
        ConfigError: it is not an empty folder, nor one that holds a bundle of any version and no file besides.
    """
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        return
    manifest = _manifest(folder)
    if manifest is None:
        raise ConfigError(f"{shown} is not a bundle, so --overwrite will not delete it", fix=_FIX)
    require_only(folder, shown, set(manifest["files"]), "the bundle")


def require_only(folder: Path, shown: Path, listed: set[str], what: str, *, within: str = "") -> None:
    """Refuse to replace a folder of a bundle that holds files which no command of this package left there.

    Args:
        folder: where it lies now.
        shown: its name for errors.
        listed: files that belong there beside those, by POSIX path in the bundle.
        what: names it in errors.
        within: its POSIX path in the bundle; empty for the bundle itself.

    Raises:
        ConfigError: it holds such files; they are named.
    """
    foreign = [
        name
        for name in every_file(folder)
        if (path := f"{within}/{name}" if within else name) not in listed and not left_by_commands(path)
    ]
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise ConfigError(
            f"{shown} holds {', '.join(map(repr, foreign[:_SHOWN]))}{more}, no part of {what}: nothing was replaced",
            fix="move what is yours out of it, or give --out another folder",
        )


def every_file(folder: Path) -> list[str]:
    """Every file and link below a folder, by POSIX path; links are not followed."""
    found = []
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        found += [(Path(root) / name).relative_to(folder).as_posix() for name in (*names, *links)]
    return sorted(found)


def left_by_commands(name: str) -> bool:
    """Whether a path in a bundle is one where commands leave results, such as engines and profiles."""
    return _LEFT_BY_COMMANDS.fullmatch(name) is not None


def is_ours(path: Path) -> bool:
    """Whether a file is empty, or bears the mark of this package's drawings and pages."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        edges = file.read(_EDGE_BYTES)
        file.seek(max(0, size - _EDGE_BYTES))
        edges += b"\n" + file.read(_EDGE_BYTES)
    return not size or MADE_BY.encode() in edges


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a bundle of any version; None where there is none."""
    path = folder / _MANIFEST
    if folder.is_symlink() or not path.is_file():
        return None
    try:
        content = documents.read_object(path, error=BundleError, fix=_FIX)
    except BundleError:
        return None
    kinds = {"schema_version": int, "files": dict, "graphs": dict, "model": dict, "reduction": dict}
    ours = all(isinstance(content.get(key), kind) for key, kind in kinds.items())
    return content if ours else None
