"""The files of a bundle: described with their hashes, and checked before they are trusted."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from fico_export.bundle.belongings import every_file, left_by_commands
from fico_export.bundle.external import external_files
from fico_export.bundle.manifest import FILE_NAME, READ_BY_NAME, File, Manifest
from fico_export.errors import BundleError, ConfigError, DiskError

# Hashing the weights of a 7B bundle takes longer than answering a question, so `run` hashes what is small
# (graphs, tokenizer, configs) and compares the sizes of the rest; `verify` and `inspect --check` hash everything.
QUICK_LIMIT_BYTES = 64 * 2**20
DAMAGED = "copy or export the bundle again: a damaged graph would answer wrongly without a word"
# Large: a thread that hashes waits for the interpreter after each piece, while another traces graphs.
_PIECE_BYTES = 16 * 2**20
_STATE = ("st_dev", "st_ino", "st_size", "st_mtime_ns")


def sha256(path: Path, stop: threading.Event | None = None) -> str:
    """SHA-256 of a file, read in pieces; what it returns after `stop` was set means nothing."""
    digest, buffer = hashlib.sha256(), bytearray(_PIECE_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while (count := file.readinto(buffer)) and not (stop and stop.is_set()):
            digest.update(view[:count])
    return digest.hexdigest()


@contextmanager
def hashed_aside(paths: Iterable[Path]) -> Iterator[Future[dict[Path, File]]]:
    """Describe hard-linked files on a thread of its own, which ends with the block."""
    stop = threading.Event()

    def describe_all() -> dict[Path, File]:
        return {path: _describe(path, stop, linked=True) for path in paths}

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(describe_all)
        finally:
            stop.set()


def require_unchanged(before: Mapping[Path, os.stat_result]) -> None:
    """Refuse what was made of files that changed meanwhile.

    Args:
        before: the state of each file when the work began.

    Raises:
        ConfigError: a file is missing, was written to, or is another one now.
    """
    for path, then in before.items():
        try:
            now = path.stat()
        except OSError:
            now = None
        if now is None or any(getattr(then, key) != getattr(now, key) for key in _STATE):
            raise ConfigError(
                f"{path} changed while it was read: nothing was kept", fix="give the same command again"
            )


def describe(folder: Path, linked: Mapping[Path, File]) -> dict[str, File]:
    """Every file below a bundle's folder but its manifest, by POSIX path; those in `linked` are hashed already."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != FILE_NAME)
    return {p.relative_to(folder).as_posix(): linked.get(p) or _describe(p) for p in found}


def _describe(path: Path, stop: threading.Event | None = None, *, linked: bool = False) -> File:
    stat = path.stat()  # before it is hashed: a change meanwhile shows the next time
    return File(sha256=sha256(path, stop), size=stat.st_size, mtime_ns=stat.st_mtime_ns if linked else None)


def check(folder: Path, manifest: Manifest, *, full: bool) -> None:
    """Compare a bundle's files with its manifest; without `full`, large files by size alone.

    A file of the checkpoint that is linked is hashed when it was touched since the export; a copy of it, which a copied bundle
    has, gets the time of the original if its content is right, so that this is done once.

    Raises:
        BundleError: a file is missing, of another size or content, or outside of the bundle; or there is one that would be read
            though the manifest does not list it.
    """
    for name in READ_BY_NAME:
        if os.path.lexists(folder / name):
            manifest.require(name)
    root = folder.resolve()
    for name, expected in manifest.files.items():
        path = folder / name
        _require_inside(folder, root, name)
        if not path.is_file():
            raise BundleError(f"{name} is missing from the bundle {folder}", fix=_damaged(False))
        stat = path.stat()
        touched = expected.mtime_ns is not None and stat.st_mtime_ns != expected.mtime_ns
        # Others have the file too: it is the checkpoint's own.
        shared = expected.mtime_ns is not None and stat.st_nlink > 1
        whose = (
            ", a hard link to the checkpoint's own file, which has changed since the export:"
            if shared
            else ""
        )
        if stat.st_size != expected.size:
            raise BundleError(
                f"{name}{whose} has {stat.st_size} bytes, the manifest says {expected.size}",
                fix=_damaged(shared),
            )
        if full or touched or stat.st_size <= QUICK_LIMIT_BYTES:
            if sha256(path) != expected.sha256:
                raise BundleError(
                    f"{name}{whose} does not have the SHA-256 that the manifest says", fix=_damaged(shared)
                )
            if touched and not shared and expected.mtime_ns is not None:
                with suppress(OSError):  # a bundle that may only be read is hashed every time
                    os.utime(path, ns=(stat.st_atime_ns, expected.mtime_ns))
    for graph in manifest.graphs.values():
        for location in sorted(external_files(folder / graph.file)):
            manifest.require(
                (PurePosixPath(graph.file).parent / location).as_posix(), f"weights of {graph.file}"
            )


def unlisted(folder: Path, manifest: Manifest) -> list[str]:
    """Files of a bundle's folder that its manifest says nothing of, by POSIX path; what commands left there is left out."""
    known = {FILE_NAME, *manifest.files}
    found = (name for name in every_file(folder) if name not in known and not left_by_commands(name))
    return [os.fsencode(name).decode("utf-8", "replace") for name in found]  # a name may be no Unicode


def _require_inside(folder: Path, root: Path, name: str) -> None:
    try:
        inside = (folder / name).resolve().is_relative_to(root)
    except (OSError, RuntimeError):
        inside = False
    if not inside:
        raise BundleError(
            f"{name} is a link that leads out of the bundle {folder}",
            fix=f"copy the bundle with its content: cp -rL {folder} {folder}-copy",
        )


def _damaged(shared: bool) -> str:
    if shared:
        return "restore the checkpoint's file, or export again; with --copy-weights the bundle has weights of its own"
    return DAMAGED


_SMALLER_BUNDLE = (
    "free some space, give --out a folder on another disk (on the checkpoint's own, weights that need no "
    "conversion are linked, not written), or choose --precision fp16"
)


def require_space(
    folder: Path, needed: int, *, what: str = "the bundle needs", fix: str = _SMALLER_BUNDLE
) -> None:
    """Refuse work whose output would not fit on the disk of `folder`.

    Raises:
        DiskError: fewer than `needed` bytes are free.
    """
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DiskError(
            f"{what} {needed / 1e9:.1f} GB, the disk of {existing} has {free / 1e9:.1f} GB free",
            fix=fix,
        )
