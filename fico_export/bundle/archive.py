"""A bundle as one file: a plain tar whose every byte was checked against the manifest, on the way in and on the way out.

Not compressed: weights are noise to a compressor (gzip takes 8 % off the demo's FP16 weights, at the speed of one core), while a
plain tar is written as fast as the disk takes it, can be read in part, and is what every board's `tar` unpacks.
Order, owners, rights and times follow from the bundle alone: packed twice, it is the same file.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fico_export.bundle import engines, files
from fico_export.bundle.engines import Build
from fico_export.bundle.manifest import FILE_NAME, File, Manifest
from fico_export.errors import BundleError, ConfigError, DiskError
from fico_export.progress import Progress, Silent

_PIECE_BYTES = 2**20
_SPOILED = "copy the archive again, or pack the bundle again where it is whole"


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
    if out.is_dir() or (out.exists() and not overwrite):
        raise ConfigError(f"{out} exists", fix="give --overwrite to replace it, or --out another file")
    total = sum(file.size for file in listed.values())
    files.require_space(
        out.parent,
        total + 4096 * len(listed),
        what="the archive needs",
        fix="free some space, or give --out a file on another disk",
    )
    progress.stage("pack", total)
    with _written_whole(out) as raw:
        archive = _Hashed(raw)
        # A stream is written to and no more, whatever the type says.
        with tarfile.open(fileobj=archive, mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
            for name, file in listed.items():
                _add(tar, bundle / name, _header(folder.name, name, file, manifest), file, progress)
    return Packed(out, len(listed), archive.size, archive.digest.hexdigest(), _targets(listed))


def unpack(
    archive: Path, out: Path | None = None, *, overwrite: bool = False, progress: Progress | None = None
) -> Packed:
    """Write the bundle that an archive holds to a folder: all of it, checked against its manifest, or nothing.

    An archive of any `tar` will do, as long as it holds one folder with plain files.

    Args:
        archive: the file.
        out: the bundle's folder; the archive's own folder, here, by default.
        overwrite: replace a bundle that is there.
        progress: told of each step.

    Raises:
        BundleError: it is no archive of a bundle, or it was truncated or edited.
        ConfigError: `out` exists, or cannot be written to.
        DiskError: it does not fit on the disk.
    """
    progress = progress or Silent()
    with _opened(archive) as tar:
        top, members = _members(archive, tar)
        folder = out or Path(top)
        total = sum(member.size for member in members.values())
        fix = "free some space, or give --out a folder on another disk"
        files.require_space(folder, total, fix=fix)
        progress.stage("unpack", total)
        with files.written_whole(folder, overwrite=overwrite) as partial:
            found = {
                name: _extract(tar, member, partial / name, progress) for name, member in members.items()
            }
            manifest = _checked(archive, partial, found)
            for name, file in manifest.files.items():
                if file.mtime_ns is not None:  # its content was checked: it need not be hashed again
                    os.utime(partial / name, ns=(file.mtime_ns, file.mtime_ns))
    return Packed(folder, len(found), total, found[FILE_NAME].sha256, _targets(found))


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
        listed |= _engines_of(Build.load(bundle, path.parent.name), place)
    return listed


def _of(path: Path) -> File:
    return File(sha256=files.sha256(path), size=path.stat().st_size)


def _engines_of(build: Build, place: str) -> dict[str, File]:
    return {f"{place}/{e.file}": File(sha256=e.sha256, size=e.size) for e in build.engines.values()}


def _targets(names: dict[str, File]) -> tuple[str, ...]:
    paths = (PurePosixPath(name) for name in names)
    return tuple(p.parts[1] for p in paths if p.parts[0] == engines.FOLDER and p.name == engines.FILE_NAME)


def _require_size(bundle: Path, name: str, file: File) -> None:
    """Refuse in a second what reading all of it would refuse in minutes."""
    path = bundle / name
    found = path.stat().st_size if path.is_file() else None
    if found != file.size:
        says = "is missing" if found is None else f"has {found} bytes, not {file.size}"
        raise BundleError(f"{name} {says}: {bundle} is damaged, and was not packed", fix=files.DAMAGED)


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
    try:
        return int(datetime.fromisoformat(manifest.created).timestamp())
    except ValueError as error:
        raise BundleError(f"{FILE_NAME} is damaged: created: {error}", fix=files.DAMAGED) from error


@contextmanager
def _written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file beside `path`, renamed to it at the end; on any failure nothing remains."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        if files.disk_is_full(error):
            raise DiskError(
                f"the disk of {path.parent} filled up; nothing was kept",
                fix="free some space, or give --out a file on another disk",
            ) from error
        raise ConfigError(f"cannot write {path}: {error}", fix="give --out another file") from error
    finally:
        partial.unlink(missing_ok=True)


# ---- reading


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(archive, mode="r:") as tar:
            yield tar
    except tarfile.TarError as error:
        raise BundleError(
            f"{archive} is no plain tar, or was truncated: {error}",
            fix=f"{_SPOILED}; one that is compressed: gunzip it first",
        ) from error
    except FileNotFoundError as error:
        if error.filename != str(archive):
            raise
        raise BundleError(f"no archive {archive}", fix="make one with `fico pack BUNDLE`") from error


def _members(archive: Path, tar: tarfile.TarFile) -> tuple[str, dict[str, tarfile.TarInfo]]:
    """The name of the one folder, and its files by their path within it."""
    found: dict[str, tarfile.TarInfo] = {}
    tops = set()
    for member in tar:
        raw = member.name.removeprefix("./")
        path = PurePosixPath(raw)
        if path.is_absolute() or ".." in path.parts or "\\" in raw or ":" in raw or "\0" in raw:
            raise _edited(archive, f"{member.name!r} leads out of its folder")
        if member.isdir():
            continue
        if not member.isreg():
            kind = "a link" if member.islnk() or member.issym() else "no plain file"
            raise _edited(archive, f"{member.name!r} is {kind}; `tar --hard-dereference` packs none")
        if len(path.parts) < 2:
            raise _edited(archive, f"{member.name!r} is in no folder")
        name = "/".join(path.parts[1:])
        if name in found:
            raise _edited(archive, f"{member.name!r} is in it twice")
        tops.add(path.parts[0])
        found[name] = member
    if FILE_NAME not in found or len(tops) != 1:
        raise BundleError(
            f"{archive} does not hold one bundle: a folder with its {FILE_NAME}",
            fix="make one with `fico pack BUNDLE`",
        )
    return tops.pop(), found


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, progress: Progress) -> File:
    path.parent.mkdir(parents=True, exist_ok=True)
    content: Any = tar.extractfile(member)
    digest = hashlib.sha256()
    with path.open("xb") as file:
        while piece := content.read(_PIECE_BYTES):
            file.write(piece)
            digest.update(piece)
            progress.advance(len(piece))
    return File(sha256=digest.hexdigest(), size=path.stat().st_size)


def _checked(archive: Path, folder: Path, found: dict[str, File]) -> Manifest:
    """The manifest of what was unpacked, all of whose files are there and are what it says, and no others."""
    manifest = Manifest.load(folder)
    expected = dict(manifest.files)
    for target in _targets(found):
        expected |= _engines_of(Build.load(folder, target), f"{engines.FOLDER}/{target}")
    unknown = {FILE_NAME, *expected, *(f"{engines.FOLDER}/{t}/{engines.FILE_NAME}" for t in _targets(found))}
    for name in sorted(found.keys() - unknown):
        raise _edited(archive, f"{name} is not in its manifest")
    for name, file in expected.items():
        if name not in found:
            raise _edited(archive, f"{name} is missing")
        if (found[name].sha256, found[name].size) != (file.sha256, file.size):
            raise _edited(archive, f"{name} does not have the SHA-256 that the manifest says")
    return manifest


def _edited(archive: Path, what: str) -> BundleError:
    return BundleError(f"{archive} was truncated or edited: {what}; nothing was unpacked", fix=_SPOILED)
