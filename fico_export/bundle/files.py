"""The files of a bundle: written aside and renamed when whole, hashed, and checked before they are trusted."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from fico_export.bundle.manifest import FILE_NAME, File, Manifest
from fico_export.errors import BundleError, ConfigError, DiskError

# Hashing the weights of a 7B bundle takes longer than answering a question, so `run` hashes what is small
# (graphs, tokenizer, configs) and compares the sizes of the rest; `verify` and `inspect --check` hash everything.
QUICK_LIMIT_BYTES = 64 * 2**20
# No space, no quota, and no larger file: a limit of the shell or of the file system (4 GB on FAT32).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DAMAGED = "copy or export the bundle again: a damaged graph would answer wrongly without a word"
# Large: a thread that hashes waits for the interpreter after each piece, while another traces graphs.
_PIECE_BYTES = 16 * 2**20


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
        BundleError: a file is missing, of another size, or of another content.
    """
    for name, expected in manifest.files.items():
        path = folder / name
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


def _damaged(shared: bool) -> str:
    if shared:
        return "restore the checkpoint's file, or export again; with --copy-weights the bundle has weights of its own"
    return DAMAGED


@contextmanager
def written_whole(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `folder` to write into, renamed to it at the end; on any failure nothing remains.

    Raises:
        ConfigError: `folder` exists and is not to be overwritten, or is no bundle, or cannot be made.
        DiskError: the disk filled up while writing.
    """
    _clear_abandoned(folder.resolve())
    _require_free(folder, overwrite=overwrite)
    full = "free some space, or give --out a folder on another disk"
    with aside(folder, full=full, denied="give --out a folder that you may write to") as partial:
        yield partial
        replace(partial, folder)


@contextmanager
def aside(folder: Path, *, full: str, denied: str) -> Iterator[Path]:
    """A folder beside `folder` to write into, which is gone at the end; see `replace`.

    Args:
        folder: what it will replace, or a part of it.
        full: the fix for a disk that fills up.
        denied: the fix for a folder that may not be written to.

    Raises:
        ConfigError: it cannot be made.
        DiskError: the disk filled up while writing.
    """
    place = folder.resolve()
    _clear_abandoned(place)
    partial = place.parent / f".{place.name}.partial-{os.getpid()}"
    new_parents = [parent for parent in place.parents if not parent.exists()]
    try:
        _make(partial, folder, denied)
        yield partial
    except OSError as error:
        if error.errno in _FULL:
            raise DiskError(f"the disk of {folder.parent} filled up; nothing was kept", fix=full) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # not empty: the bundle is in it
            for parent in new_parents:
                parent.rmdir()


def replace(whole: Path, folder: Path) -> None:
    """Put a folder that is whole in the place of another; a link stays, what it points at is replaced."""
    _swap(whole, folder.resolve())


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


def _require_free(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not overwrite:
        raise ConfigError(f"{folder} exists", fix="give --overwrite to replace it, or --out another folder")
    if folder.is_dir() and not any(folder.iterdir()):
        return
    try:
        Manifest.load(folder)  # many a project has a manifest.json: it must be one of ours
    except BundleError as error:
        raise ConfigError(
            f"{folder} is not a bundle, so --overwrite will not delete it", fix="give --out another folder"
        ) from error


def _make(partial: Path, folder: Path, denied: str) -> None:
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}", fix=denied) from error


def _swap(partial: Path, folder: Path) -> None:
    aside = folder.parent / f".{folder.name}.old-{os.getpid()}"
    if folder.exists():
        folder.rename(aside)
    try:
        partial.rename(folder)
    except BaseException:
        if aside.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _clear_abandoned(folder: Path) -> None:
    """Clear away what exports of this folder left behind when they were killed outright.

    One that was killed between the two renames of `_swap` left the old bundle aside: it gets its name back.
    """
    if not folder.parent.is_dir():
        return
    for leftover in sorted(folder.parent.iterdir()):
        name, _, pid = leftover.name.rpartition("-")
        if name not in (f".{folder.name}.partial", f".{folder.name}.old") or not pid.isdigit():
            continue
        if int(pid) != os.getpid() and _alive(int(pid)):
            continue
        if name.endswith(".old") and not folder.exists():
            leftover.rename(folder)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(pid: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def disk_is_full(error: OSError) -> bool:
    """Whether that is what it says."""
    return error.errno in _FULL
