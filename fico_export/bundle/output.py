"""Files and folders that commands write: refused before the work where they cannot be, and whole or not there.

Nothing that someone else put in the place meanwhile is replaced; with --overwrite, only what is ours.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from fico_export import extras
from fico_export.bundle.belongings import is_ours, require_bundle, require_only
from fico_export.bundle.scratch import NEW, TakenError, clear_abandoned, move_in, scratch, swap_in
from fico_export.errors import ConfigError, DiskError

# No space, no quota, and no larger file: a limit of the shell or of the file system (4 GB on FAT32).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ANOTHER_FOLDER = "give --out another folder"
_ANOTHER_FILE = "give --out another file"


# ---- files


def require_writable(
    path: Path,
    suffixes: str | tuple[str, ...],
    inputs: Iterable[Path] = (),
    *,
    ours: Callable[[Path], bool] = is_ours,
) -> None:
    """Refuse a place for a file before the work for it is done.

    Args:
        path: where the file would go; one of ours that is there is replaced.
        suffixes: one of which its name must end in.
        inputs: files that are read, which it must not replace.
        ours: whether a file that is there may be replaced.

    Raises:
        ConfigError: it is a folder or a file of someone else, has another suffix, is one of the inputs, or its folder is missing
            or cannot be written to.
    """
    known = (suffixes,) if isinstance(suffixes, str) else suffixes
    if path.is_dir():
        raise ConfigError(
            f"--out {path} is a folder", fix=f"give --out a file in it, such as {path / ('out' + known[0])}"
        )
    if path.suffix.lower() not in known:
        raise ConfigError(
            f"--out {path} does not end in {' or '.join(known)}",
            fix=f"give --out {path.with_suffix(known[0])}",
        )
    if any(path.resolve() == given.resolve() for given in inputs):
        raise ConfigError(f"--out {path} is also given to be read", fix=_ANOTHER_FILE)
    if not path.parent.is_dir():
        raise ConfigError(
            f"there is no folder {path.parent} for --out", fix=f"mkdir -p {path.parent}, or {_ANOTHER_FILE}"
        )
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--out: the folder {path.parent} may not be written to", fix=_ANOTHER_FILE)
    if os.path.lexists(path):
        _require_ours(resolved(path), path, ours)


def require_matplotlib(what: str) -> None:
    """Refuse what takes matplotlib before the work that comes before it.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError(f"{what} need matplotlib, which is not installed", fix=extras.install("report"))


def anything(_: Path) -> bool:
    """Allow any file to be replaced: one that is known by its name to be an earlier result."""
    return True


@contextmanager
def written_file(path: Path, *, ours: Callable[[Path], bool] | None = is_ours) -> Iterator[Path]:
    """A file to write, moved to `path` at the end; on any failure nothing remains.

    Args:
        path: its place; a link stays, what it points at is replaced.
        ours: whether a file that is there may be replaced, by default one that bears this package's mark; None replaces none.

    Raises:
        ConfigError: it cannot be written there, or someone else's file is there.
        DiskError: the disk filled up.
    """
    place = resolved(path)
    full = "free some space, or give --out a file on another disk"
    with _explained(path, full, _ANOTHER_FILE), scratch(place) as folder:
        yield folder / NEW
        if ours is None:
            move_in(folder / NEW, place)
            return
        if os.path.lexists(place):
            _require_ours(place, path, ours)
        swap_in(folder, place, partial(_require_ours, shown=path, ours=ours))


def _require_ours(found: Path, shown: Path, ours: Callable[[Path], bool]) -> None:
    if found.is_symlink() or not found.is_file():
        raise ConfigError(f"{shown} is no plain file", fix=_ANOTHER_FILE)
    try:
        replaceable = ours(found)
    except OSError as error:
        raise ConfigError(f"cannot read {shown}, which is there: {error}", fix=_ANOTHER_FILE) from error
    if not replaceable:
        raise ConfigError(
            f"{shown} exists, and is not an earlier result of this command: it was not replaced",
            fix=f"{_ANOTHER_FILE}, or move {shown.name} away",
        )


# ---- folders


@contextmanager
def written_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A bundle's folder to write into, moved to `folder` at the end; on any failure nothing remains.

    Raises:
        ConfigError: something is at `folder`, at the beginning or at the end, that is not to be overwritten or is no bundle; or
            it cannot be made.
        DiskError: the disk filled up while writing.
    """
    place = resolved(folder)
    clear_abandoned(place)  # first: a bundle that was set aside gets its name back, and is then seen
    if os.path.lexists(place):
        _require_replaceable(folder, place, overwrite=overwrite)
    full = "free some space, or give --out a folder on another disk"
    with _explained(folder, full, _ANOTHER_FOLDER), scratch(place) as work:
        (work / NEW).mkdir()
        yield work / NEW
        if not overwrite:
            move_in(work / NEW, place)
            return
        if os.path.lexists(place):
            require_bundle(place, folder)
        swap_in(work, place, partial(require_bundle, shown=folder))


@contextmanager
def working_folder(folder: Path, *, full: str, denied: str) -> Iterator[Path]:
    """A folder beside `folder` to work in, which is gone at the end; see `replace_engines`.

    Args:
        folder: what the results will replace.
        full: the fix for a disk that fills up.
        denied: the fix for a folder that may not be written to.

    Raises:
        ConfigError: it cannot be made.
        DiskError: the disk filled up while working.
    """
    with _explained(folder, full, denied), scratch(resolved(folder)) as work:
        (work / NEW).mkdir()
        yield work / NEW


def replace_engines(whole: Path, folder: Path) -> None:
    """Put a folder of engines that is whole in the place of another.

    Raises:
        ConfigError: there are files in it that no command of this package left there.
    """
    place = resolved(folder)

    def check(found: Path) -> None:
        require_only(found, folder, set(), "the engines", within=f"trt/{folder.name}")

    with scratch(place) as work:
        whole.rename(work / NEW)
        swap_in(work, place, check)


def resolved(path: Path) -> Path:
    """The place that a path leads to, links followed.

    Raises:
        ConfigError: the links lead round in a circle.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"--out {path} leads nowhere: {error}", fix="give --out another place") from error


def _require_replaceable(folder: Path, place: Path, *, overwrite: bool) -> None:
    try:
        _require_unprotected(folder, place)
        require_bundle(place, folder)
    except ConfigError as error:
        if overwrite:
            raise
        raise ConfigError(
            f"{folder} exists, and --overwrite cannot help: {error.what}", fix=error.fix
        ) from error
    if not overwrite:
        raise ConfigError(f"{folder} exists", fix="give --overwrite to replace it, or --out another folder")


def _require_unprotected(folder: Path, place: Path) -> None:
    """Refuse to replace what cannot be renamed, or what someone stands in, whatever it holds."""
    home = Path(os.path.expanduser("~")).resolve()  # noqa: PTH111  # Path.home() raises where there is none
    protected = {
        "the root folder": place == place.parent,
        "a mount point": os.path.ismount(place),
        "the home folder, or above it": home.is_relative_to(place),
        "the current folder, or above it": Path.cwd().resolve().is_relative_to(place),
    }
    for what, so in protected.items():
        if so:
            raise ConfigError(
                f"{folder} is {what}, which is never replaced", fix=f"give --out {place / 'bundle'}"
            )


@contextmanager
def _explained(path: Path, full: str, denied: str) -> Iterator[None]:
    """Turn errors of the system into ours."""
    try:
        yield
    except TakenError as error:
        kept = f"; what was there before is now {error.kept}" if error.kept else ""
        raise ConfigError(
            f"{path} appeared meanwhile: it was left as it is, and nothing was written{kept}", fix=denied
        ) from error
    except OSError as error:
        if error.errno in _FULL:
            raise DiskError(f"the disk of {path.parent} filled up; nothing was kept", fix=full) from error
        where = f" ({error.filename})" if error.filename else ""
        raise ConfigError(f"cannot write to {path}: {error.strerror or error}{where}", fix=denied) from error
