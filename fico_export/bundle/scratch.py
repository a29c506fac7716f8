"""Work beside its final place: in a folder of its own that is locked while its process lives, and moved in when it is whole.

A scratch folder `.NAME.partial-XXXXXXXX` lies beside what will be NAME, on the same file system. It holds `fico.lock`, `new`, and,
while NAME is being replaced, `old`. The system drops the lock when the process ends, however it ends: what is not locked was
abandoned, and whoever writes NAME next clears it. A process id would not tell: ids are used again, and two containers that
share a folder have the same ones.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

NEW = "new"
OLD = "old"
_LOCK = "fico.lock"
_ATTEMPTS = 20
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class TakenError(FileExistsError):
    """Someone else put something in a place that was free; `kept` is where what was there before it is now, if anything was."""

    def __init__(self, place: Path, kept: Path | None = None) -> None:
        super().__init__(errno.EEXIST, os.strerror(errno.EEXIST), str(place))
        self.kept = kept


@contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """A scratch folder for what will be `place`, which is gone at the end; parents that were made for it go if they are empty.

    Raises:
        OSError: it cannot be made.
    """
    missing = [parent for parent in place.parents if not parent.exists()]
    clear_abandoned(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        folder, lock = _make(place)
        try:
            yield folder
        finally:
            _settle(folder, place)
            os.close(lock)
    finally:
        with suppress(OSError):  # not empty: what was written is in it
            for parent in missing:
                parent.rmdir()


def move_in(source: Path, place: Path) -> None:
    """Rename a file or a folder to a name that is free: at once, and never onto what someone else put there meanwhile.

    Raises:
        TakenError: something is there.
        OSError: it cannot be renamed.
    """
    try:
        if os.name == "nt":  # refuses there by itself
            source.rename(place)
        elif source.is_dir():
            _folder_in(source, place)
        else:
            _file_in(source, place)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise TakenError(place) from error
        raise


def _folder_in(source: Path, place: Path) -> None:
    place.mkdir()  # refuses whatever is there, and reserves the name
    try:
        source.rename(place)  # replaces an empty folder and no other
    except BaseException:
        with suppress(OSError):
            place.rmdir()
        raise


def _file_in(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without hard links: the name is reserved by an empty file, which is replaced.
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        source.replace(place)
    else:
        source.unlink()


def swap_in(folder: Path, place: Path, check: Callable[[Path], None]) -> None:
    """Move the `new` of a scratch folder to `place`; what is there is set aside, and deleted if `check` lets it pass.

    Args:
        folder: the scratch folder.
        place: the final place.
        check: called on what was set aside; what it raises puts that back.

    Raises:
        TakenError: something else appeared at `place` meanwhile; it stays.
        OSError: it cannot be renamed.
    """
    new, old = folder / NEW, folder / OLD
    try:
        place.rename(old)
    except FileNotFoundError:
        move_in(new, place)
        return
    check(old)  # where it raises, the end of the scratch folder puts `old` back
    try:
        move_in(new, place)
    except TakenError as error:
        raise TakenError(place, _kept(folder, place)) from error


def _kept(folder: Path, place: Path) -> Path:
    """Give what was set aside a name that is seen, where its own was taken."""
    kept = place.with_name(f"{place.name}.kept-{folder.name[-8:]}")
    move_in(folder / OLD, kept)
    return kept


def clear_abandoned(place: Path) -> None:
    """Clear away what writers of `place` left behind when they were killed outright; what they had set aside is put back."""
    pattern = re.compile(rf"\.{re.escape(place.name)}\.partial-[0-9a-f]{{8}}")
    try:
        found = [path for path in place.parent.iterdir() if pattern.fullmatch(path.name)]
    except OSError:
        return
    for folder in found:
        if folder.is_symlink() or not folder.is_dir():
            continue
        lock = _lock(folder, os.O_RDWR)
        if lock is None:
            with suppress(OSError):  # without a lock it is ours only if it is empty
                folder.rmdir()
            continue
        try:
            _settle(folder, place)
        finally:
            os.close(lock)


def _make(place: Path) -> tuple[Path, int]:
    for _ in range(_ATTEMPTS):
        folder = place.parent / f".{place.name}.partial-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            lock = _lock(folder, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileNotFoundError:
            continue
        if lock is not None:
            return folder, lock
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(place))


def _lock(folder: Path, flags: int) -> int | None:
    """An open lock file of a scratch folder that no other process holds; None where there is none, or another holds it."""
    creates = bool(flags & os.O_CREAT)
    try:
        lock = os.open(folder / _LOCK, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError:
        if creates:
            raise
        return None
    try:
        held = _flock(lock) if sys.platform != "win32" else None
    except BaseException:
        os.close(lock)
        raise
    # Where the file system knows no locks, nothing is ever taken for abandoned. The file is gone if someone cleared it away
    # before it was locked.
    if (held or (held is None and creates)) and (folder / _LOCK).exists():
        return lock
    os.close(lock)
    return None


def _flock(file: int) -> bool | None:
    """Whether the lock is held now: False where another process has it, None where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _settle(folder: Path, place: Path) -> None:
    """Remove a scratch folder of ours. What was set aside is put back, unless the new is in its place."""
    new, old = folder / NEW, folder / OLD
    if os.path.lexists(old) and os.path.lexists(new):
        with suppress(OSError):
            move_in(old, place)
        if os.path.lexists(old):
            with suppress(OSError):
                _kept(folder, place)
        if os.path.lexists(old):
            return
    for path in (new, old):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
    with suppress(OSError):  # last: without it the rest would be nobody's
        (folder / _LOCK).unlink()
    with suppress(OSError):
        folder.rmdir()
