"""A bundle out of the one file that `fico pack` made of it: all headers are read first, and content only when they fit.

The manifest says which files there are, how large, and what is in them: nothing is written before an archive holds exactly
those. What tarfile reads of the headers goes through a reader with a budget, since a header may claim to be 8 GB long.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fico_export.bundle import bounds, engines, files, manifest
from fico_export.bundle.archive import Packed, engines_of, targets_of
from fico_export.bundle.engines import Build
from fico_export.bundle.manifest import FILE_NAME, File, Manifest
from fico_export.bundle.output import written_folder
from fico_export.errors import BundleError, FicoError
from fico_export.progress import Progress, Silent

_PIECE_BYTES = 2**20
_HEADER_BYTES = 2**16  # of one header with its extensions: a path has 512 characters at most
_ALL_HEADERS_BYTES = 64 * 2**20
_MAX_MEMBERS = 2 * bounds.MAX_FILES  # folders have entries too
_PADDING_BYTES = 2**20  # zeros after the end, to a multiple of what tar calls a record
_SPOILED = "copy the archive again, or pack the bundle again where it is whole"
_NOT_ONE = "make one with `fico pack BUNDLE`"
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
    b"PK\x03\x04": "unzip",
}

Members = dict[str, tarfile.TarInfo]


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
    with _opened(archive) as file:
        tar, top, members = _headers(archive, file)
        made, expected = _listed(archive, tar, members)
        folder = out or Path(_own_name(archive, top))
        total = sum(member.size for member in members.values())
        fix = "free some space, or give --out a folder on another disk"
        with written_folder(folder, overwrite=overwrite) as partial:
            files.require_space(partial, total, fix=fix)
            progress.stage("unpack", total)
            for name, member in members.items():
                sha256 = _extract(tar, member, partial / name, progress)
                if sha256 != expected[name].sha256:
                    raise _edited(archive, f"{name} does not have the SHA-256 that the manifest says")
            for name, listed in made.files.items():
                if listed.mtime_ns is not None:  # its content was checked: it need not be hashed again
                    os.utime(partial / name, ns=(listed.mtime_ns, listed.mtime_ns))
    return Packed(folder, len(members), total, expected[FILE_NAME].sha256, targets_of(members))


@contextmanager
def _opened(archive: Path) -> Iterator[IO[bytes]]:
    if archive.is_dir():
        a_bundle = (archive / FILE_NAME).is_file()
        fix = f"it is a bundle already: fico run {archive}" if a_bundle else "give the FILE.tar in it"
        raise BundleError(f"{archive} is a folder, not an archive", fix=fix)
    if not archive.exists():
        raise BundleError(f"no archive {archive}", fix=_NOT_ONE)
    if not archive.is_file():
        raise BundleError(f"{archive} is no plain file", fix="copy it to a file first")
    try:
        file = archive.open("rb")
    except OSError as error:
        raise BundleError(f"cannot read {archive}: {error}", fix=_SPOILED) from error
    with file:
        start = file.read(8)
        for magic, command in _COMPRESSED.items():
            if start.startswith(magic):
                raise BundleError(f"{archive} is no plain tar: it is compressed", fix=f"{command} {archive}")
        file.seek(0)
        yield file


class _Bounded:
    """A file as tarfile reads it while it looks for members: it seeks over their content, and reads headers within a budget."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, _ALL_HEADERS_BYTES
        self.seek, self.tell = file.seek, file.tell
        self.bounded = True

    def read(self, count: int = -1) -> bytes:
        if self.bounded:
            self._left -= count
            if not 0 <= count <= _HEADER_BYTES or self._left < 0:
                raise tarfile.ReadError(f"a header of {count} bytes")
        return self._file.read(count)


def _headers(archive: Path, file: IO[bytes]) -> tuple[tarfile.TarFile, str, Members]:
    """The open archive, the name of the one folder in it, and its files by their path within it."""
    bounded: Any = _Bounded(file)
    try:
        tar = tarfile.open(fileobj=bounded, mode="r:")  # noqa: SIM115  # it holds nothing open of its own
        top, members = _members(archive, tar)
        _require_end(archive, file, tar.offset)
    except FicoError:
        raise
    except (
        Exception
    ) as error:  # of what hostile bytes make of tarfile's parser, TarError is only the politest
        raise BundleError(
            f"{archive} is no plain tar, or was truncated or edited: {error}", fix=_SPOILED
        ) from error
    bounded.bounded = False
    return tar, top, members


def _members(archive: Path, tar: tarfile.TarFile) -> tuple[str, Members]:
    found: Members = {}
    tops, folders = set(), set()
    for number, member in enumerate(tar):
        if number == _MAX_MEMBERS:
            raise _edited(archive, f"it has more than {_MAX_MEMBERS} members")
        top, name = _path(archive, member)
        if member.isdir():
            folders.add(name)
            continue
        if not member.isreg() or member.issparse():
            kind = "a link" if member.islnk() or member.issym() else "no plain file"
            raise _edited(archive, f"{member.name!r} is {kind}; `tar --hard-dereference` packs none")
        if not name:
            raise _edited(archive, f"{member.name!r} is in no folder")
        if name in found:
            raise _edited(archive, f"{member.name!r} is in it twice")
        if member.size < 0:
            raise _edited(archive, f"{member.name!r} has {member.size} bytes")
        tops.add(top)
        found[name] = member
    for name in sorted(folders & found.keys()):
        raise _edited(archive, f"{name!r} is a file and a folder")
    if FILE_NAME not in found or len(tops) != 1:
        raise BundleError(f"{archive} does not hold one bundle: a folder with its {FILE_NAME}", fix=_NOT_ONE)
    return tops.pop(), found


def _path(archive: Path, member: tarfile.TarInfo) -> tuple[str, str]:
    """The folder that a member is in, and its path there; both empty for the archive's own."""
    raw = member.name.removeprefix("./").removesuffix("/")
    if raw in ("", "."):
        return "", ""
    parts = PurePosixPath(raw).parts
    if raw.startswith("/") or ".." in parts or set("\\:\0") & set(raw):
        raise _edited(archive, f"{member.name[:80]!r} leads out of its folder")
    top, _, name = raw.partition("/")
    try:
        if name:
            bounds.bundle_path(name)
    except ValueError as error:
        raise _edited(archive, str(error)) from error
    return top, name


def _require_end(archive: Path, file: IO[bytes], offset: int) -> None:
    """Refuse what comes after the last member, but for the zeros that end an archive."""
    size = file.seek(0, os.SEEK_END)
    if size - offset > _PADDING_BYTES:
        raise _edited(archive, f"{size - offset} bytes follow its end")
    file.seek(offset)
    if file.read(_PADDING_BYTES).strip(b"\0"):
        raise _edited(archive, "it goes on after its end, or has a header that is none")


def _own_name(archive: Path, top: str) -> str:
    try:
        return bounds.bundle_path(top)
    except ValueError as error:
        raise BundleError(
            f"the folder in {archive} has no plain name: {error}", fix="give --out a folder"
        ) from error


def _listed(archive: Path, tar: tarfile.TarFile, members: Members) -> tuple[Manifest, dict[str, File]]:
    """The manifest, and all files that an archive must hold: it holds those and no others, of their sizes."""
    text, own = _text(archive, tar, members[FILE_NAME], manifest.MAX_BYTES)
    made = Manifest.parse(text, f"{FILE_NAME} in {archive}")
    expected = {FILE_NAME: own, **made.files}
    for target in targets_of(members):
        place = f"{engines.FOLDER}/{target}"
        name = f"{place}/{engines.FILE_NAME}"
        text, expected[name] = _text(archive, tar, members[name], engines.MAX_BYTES)
        expected |= engines_of(Build.parse(text, f"{name} in {archive}", _SPOILED), place)
    for name in sorted(members.keys() - expected.keys()):
        raise _edited(archive, f"{name} is not in its manifest")
    for name, file in expected.items():
        if name not in members:
            raise _edited(archive, f"{name} is missing")
        if members[name].size != file.size:
            raise _edited(archive, f"{name} has {members[name].size} bytes, the manifest says {file.size}")
    return made, expected


def _text(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> tuple[str, File]:
    if member.size > most:
        raise _edited(archive, f"{member.name} is larger than {most >> 20} MiB")
    content: Any = tar.extractfile(member)
    data: bytes = content.read()
    try:
        return data.decode("utf-8"), File(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    except UnicodeDecodeError as error:
        raise _edited(archive, f"{member.name} is no UTF-8") from error


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, progress: Progress) -> str:
    """Write a file; the SHA-256 of what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content: Any = tar.extractfile(member)
    digest = hashlib.sha256()
    with path.open("xb") as file:
        while piece := content.read(_PIECE_BYTES):
            file.write(piece)
            digest.update(piece)
            progress.advance(len(piece))
    return digest.hexdigest()


def _edited(archive: Path, what: str) -> BundleError:
    return BundleError(f"{archive} was truncated or edited: {what}; nothing was unpacked", fix=_SPOILED)
