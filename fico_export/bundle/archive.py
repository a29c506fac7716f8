"""A bundle as one file: a plain tar whose every byte was checked against the manifest, on the way in and on the way out.

Not compressed: weights are noise to a compressor (gzip takes 8 % off the demo's FP16 weights, at the speed of one core), while a
plain tar is written as fast as the disk takes it, can be read in part, and is what every board's `tar` unpacks.
Order, owners, rights and times follow from the bundle alone: packed twice, it is the same file.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO

from fico_export.bundle import engines, files, output
from fico_export.bundle.engines import Build
from fico_export.bundle.manifest import FILE_NAME, File, Manifest
from fico_export.bundle.output import written_file
from fico_export.errors import BundleError, ConfigError
from fico_export.progress import Progress, Silent

_BEGINNING_BYTES = 65536  # of an archive: its first member's header, with extensions


@dataclass(frozen=True)
class Packed:
    """What was packed or unpacked.

    Attributes:
        path: of the archive, or of the bundle's folder.
        files: that it holds.
        size: of the archive in bytes, or of the files together.
        sha256: of the archive as it was written; of the manifest, where one was unpacked.
        engines: targets whose engines are in it.
    """

    path: Path
    files: int
    size: int
    sha256: str
    engines: tuple[str, ...]


def pack(
    bundle: Path,
    out: Path | None = None,
    *,
    with_engines: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Packed:
    """Write a bundle to one archive; hard links into the checkpoint become content.

    Args:
        bundle: its folder.
        out: the archive; the bundle's name with .tar beside it by default.
        with_engines: also what `fico build` made, which fits the machine it was made on alone.
        overwrite: replace an archive that is there.
        progress: told of each step.

    Raises:
        BundleError: a file is missing, or is not what its hash says: nothing was packed.
        ConfigError: `out` exists, or cannot be written to.
        DiskError: it does not fit on the disk.
    """
    progress = progress or Silent()
    folder = bundle.resolve()
    manifest = Manifest.load(bundle)
    listed = contents(bundle, manifest, with_engines=with_engines)
    for name, file in listed.items():
        _require_size(bundle, name, file)
    out = out or folder.with_name(folder.name + ".tar")
    if out.resolve().is_relative_to(folder):
        raise ConfigError(f"{out} is inside the bundle", fix="give --out a file outside of it")
    _require_place(out, overwrite=overwrite)
    total = sum(file.size for file in listed.values())
    files.require_space(
        out.parent,
        total + 4096 * len(listed),
        what="the archive needs",
        fix="free some space, or give --out a file on another disk",
    )
    progress.stage("pack", total)
    with written_file(out, ours=is_archive if overwrite else None) as partial, partial.open("xb") as raw:
        archive = _Hashed(raw)
        # A stream is written to and no more, whatever the type says.
        with tarfile.open(fileobj=archive, mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
            for name, file in listed.items():
                _add(tar, bundle / name, _header(folder.name, name, file, manifest), file, progress)
    return Packed(out, len(listed), archive.size, archive.digest.hexdigest(), targets_of(listed))


def contents(bundle: Path, manifest: Manifest, *, with_engines: bool = False) -> dict[str, File]:
    """The files that make a bundle, by POSIX path, the manifest first; with their hashes, the manifest's own included.

    Raises:
        BundleError: there are no engines, or a build.json is damaged.
    """
    listed = {FILE_NAME: _of(bundle / FILE_NAME), **dict(sorted(manifest.files.items()))}
    if not with_engines:
        return listed
    builds = sorted((bundle / engines.FOLDER).glob(f"*/{engines.FILE_NAME}"))
    if not builds:
        raise BundleError(
            f"{bundle} has no engines", fix=f"fico build {bundle}, or pack without --with-engines"
        )
    for path in builds:
        place = path.parent.relative_to(bundle).as_posix()
        listed[f"{place}/{engines.FILE_NAME}"] = _of(path)
        listed |= engines_of(Build.load(bundle, path.parent.name), place)
    return listed


def _of(path: Path) -> File:
    return File(sha256=files.sha256(path), size=path.stat().st_size)


def engines_of(build: Build, place: str) -> dict[str, File]:
    """The engines that a build.json in the folder `place` lists, by their path in the bundle."""
    return {f"{place}/{e.file}": File(sha256=e.sha256, size=e.size) for e in build.engines.values()}


def targets_of(names: Iterable[str]) -> tuple[str, ...]:
    """The targets whose build.json is among paths in a bundle."""
    paths = (PurePosixPath(name) for name in names)
    ends = (engines.FOLDER, engines.FILE_NAME)
    return tuple(p.parts[1] for p in paths if len(p.parts) == 3 and (p.parts[0], p.parts[2]) == ends)


def _require_size(bundle: Path, name: str, file: File) -> None:
    """Refuse in a second what reading all of it would refuse in minutes."""
    path = bundle / name
    found = path.stat().st_size if path.is_file() else None
    if found != file.size:
        says = "is missing" if found is None else f"has {found} bytes, not {file.size}"
        raise BundleError(f"{name} {says}: {bundle} is damaged, and was not packed", fix=files.DAMAGED)


def is_archive(path: Path) -> bool:
    """Whether a file is empty, or a tar that begins with the manifest of a bundle: what --overwrite may replace."""
    if not path.stat().st_size:
        return True
    with path.open("rb") as file:
        beginning = io.BytesIO(file.read(_BEGINNING_BYTES))
    # Exception: a file of any kind may be there, and tarfile's parser raises more than TarError.
    with suppress(Exception), tarfile.open(fileobj=beginning, mode="r:") as tar:
        first = tar.next()
        return first is not None and PurePosixPath(first.name).name == FILE_NAME
    return False


def _require_place(out: Path, *, overwrite: bool) -> None:
    another = "give --out another file"
    if not os.path.lexists(output.resolved(out)):
        return
    if not out.is_file():
        raise ConfigError(f"{out} exists, and is no plain file", fix=another)
    if not is_archive(out):
        raise ConfigError(
            f"{out} exists, and is no archive of a bundle: --overwrite will not replace it", fix=another
        )
    if not overwrite:
        raise ConfigError(
            f"{out} exists", fix=f"give --overwrite to replace it, or {another.removeprefix('give ')}"
        )


# ---- writing


class _Hashed:
    """A file that is written to, and the hash of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)


class _Read:
    """A file that is read for an archive: hashed, and its progress told."""

    def __init__(self, file: IO[bytes], progress: Progress) -> None:
        self._file, self._progress, self.digest = file, progress, hashlib.sha256()

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(count)
        self.digest.update(data)
        self._progress.advance(len(data))
        return data


def _add(tar: tarfile.TarFile, path: Path, header: tarfile.TarInfo, file: File, progress: Progress) -> None:
    with path.open("rb") as content:
        reader = _Read(content, progress)
        try:
            tar.addfile(header, reader)
        except OSError as error:
            if error.errno is None:  # tarfile's own, of a file that ends early
                raise BundleError(
                    f"{path} changed while it was read; nothing was packed", fix=files.DAMAGED
                ) from error
            raise
    if reader.digest.hexdigest() != file.sha256:
        raise BundleError(
            f"{path} does not have the SHA-256 that it should have; nothing was packed", fix=files.DAMAGED
        )


def _header(top: str, name: str, file: File, manifest: Manifest) -> tarfile.TarInfo:
    header = tarfile.TarInfo(f"{top}/{name}")
    header.size, header.mode = file.size, 0o644
    header.mtime = _time(manifest)
    if (
        file.mtime_ns is not None
    ):  # to the nanosecond: a linked file whose time has changed is hashed before it is used
        header.pax_headers = {"mtime": f"{file.mtime_ns // 10**9}.{file.mtime_ns % 10**9:09d}"}
    return header


def _time(manifest: Manifest) -> int:
    return int(datetime.fromisoformat(manifest.created).timestamp())
