"""Single files that commands write: refused before the work where they cannot be, and whole or not there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from fico_export import extras
from fico_export.errors import ConfigError, DiskError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require_writable(path: Path, suffixes: str | tuple[str, ...], inputs: Iterable[Path] = ()) -> None:
    """Refuse a place for a file before the work for it is done.

    Args:
        path: where the file would go; one that is there is replaced.
        suffixes: one of which its name must end in.
        inputs: files that are read, which it must not replace.

    Raises:
        ConfigError: it is a folder, has another suffix, is one of the inputs, or its folder is missing or cannot be written to.
    """
    another = "give --out another file"
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
        raise ConfigError(f"--out {path} is also given to be read", fix=another)
    if not path.parent.is_dir():
        raise ConfigError(
            f"there is no folder {path.parent} for --out", fix=f"mkdir -p {path.parent}, or {another}"
        )
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--out: the folder {path.parent} may not be written to", fix=another)


def require_matplotlib(what: str) -> None:
    """Refuse what takes matplotlib before the work that comes before it.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError(f"{what} need matplotlib, which is not installed", fix=extras.install("report"))


@contextmanager
def written_file(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, renamed to it at the end; on any failure nothing remains.

    Raises:
        ConfigError: it cannot be written there.
        DiskError: the disk filled up.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        if error.errno in _FULL:
            raise DiskError(
                f"the disk of {path.parent} filled up; nothing was kept",
                fix="free some space, or give --out a file on another disk",
            ) from error
        raise ConfigError(
            f"cannot write {path}: {error.strerror or error}", fix="give --out a file that you may write"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()
