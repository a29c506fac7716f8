"""Files to another machine, by rsync: what is there is not sent again, nor the part of a file that an interruption left."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fico_export.deploy.remote import Remote, ended, environment, refused, require
from fico_export.errors import ConfigError, DeployError, DiskError
from fico_export.progress import Progress

PARTIAL = ".fico-partial"  # beside the file on the other side: what of it arrived
_OLDEST = (3, 1)  # of --info=progress2
_CONNECTION_LOST = {10, 12, 20, 30, 35, 255}


@dataclass(frozen=True)
class Sent:
    """What rsync did.

    Attributes:
        files: that were not there, or not as they are.
        size: of them in bytes.
        literal: bytes of them that had to be sent.
    """

    files: int
    size: int
    literal: int


def send(
    remote: Remote, folder: Path, names: Sequence[str], to: str, progress: Progress, *,
    thorough: bool = False, kilobytes_per_second: int | None = None,
) -> Sent:  # fmt: skip
    """Copy files of a folder to a folder on the other side; nothing there is deleted.

    Args:
        remote: the machine.
        folder: where the files are.
        names: of them, relative to it; links become content.
        to: the folder there, relative to the home folder unless absolute.
        progress: told of bytes.
        thorough: compare content, not size and time, to see what is there already.
        kilobytes_per_second: at most; None for all there is.

    Raises:
        ConfigError: this machine's rsync is too old, or a file is missing.
        DeployError: the connection broke, or the other side refused.
        DiskError: the other side's disk filled up.
    """
    command = _command(remote, thorough=thorough)
    if kilobytes_per_second is not None:
        command.append(f"--bwlimit={kilobytes_per_second}")
    command += [f"--partial-dir={PARTIAL}", "--info=progress2", *_ends(remote, folder, to)]
    told, last = 0, b""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    with ended(process):
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("\0".join(names).encode())
        process.stdin.close()
        said = b""
        while piece := process.stdout.read1(65536):  # type: ignore[attr-defined]  # a BufferedReader
            said += piece
            *lines, last = re.split(rb"[\r\n]", last + piece)
            for line in lines:
                if count := re.match(rb"\s*([\d,]+)\s+\d+%", line):
                    done = int(count[1].replace(b",", b""))
                    progress.advance(done - told)
                    told = done
        errors = process.stderr.read().decode(errors="replace")
        code = process.wait()
    if code:
        raise _failed(remote, to, code, errors)
    return _sent(said.decode(errors="replace"))


def missing(remote: Remote, folder: Path, names: Sequence[str], to: str, *, thorough: bool = False) -> Sent:
    """What `send` would have to do; `literal` is of no meaning."""
    command = [*_command(remote, thorough=thorough), "--dry-run", *_ends(remote, folder, to)]
    listed = "\0".join(names).encode()
    done = subprocess.run(command, input=listed, capture_output=True, env=environment(), check=False)
    if done.returncode:
        raise _failed(remote, to, done.returncode, done.stderr.decode(errors="replace"))
    return _sent(done.stdout.decode(errors="replace"))


def require_rsync() -> None:
    """Refuse an rsync that is missing here, or too old.

    Raises:
        ConfigError: it is.
    """
    said = subprocess.run([require("rsync"), "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"version v?(\d+)\.(\d+)", said)
    if version is None or (int(version[1]), int(version[2])) < _OLDEST:
        known = version[0] if version else "of no version that is known"
        raise ConfigError(f"this machine's rsync is {known}; 3.1 is needed", fix="install rsync 3.1 or later")


def _command(remote: Remote, *, thorough: bool) -> list[str]:
    require_rsync()
    shell = " ".join(_quoted(word) for word in remote.ssh)
    how = ["--checksum"] if thorough else []
    # --copy-links and no --hard-links: content. Times, by which the next run sees that nothing has changed.
    return [
        "rsync", *how, "--copy-links", "--times", "--chmod=D755,F644", "--protect-args", "--from0", "--files-from=-",
        "--no-human-readable", "--stats", "-e", shell,
    ]  # fmt: skip


def _ends(remote: Remote, folder: Path, to: str) -> list[str]:
    name = remote.host.name
    user, _, where = name.rpartition("@")
    if ":" in where and not where.startswith("["):
        name = f"{user}{'@' if user else ''}[{where}]"
    place = to if to.startswith("/") else f"./{to}"
    return ["--", f"{folder}/", f"{name}:{place}/"]


def _quoted(word: str) -> str:
    """A word of -e, which rsync splits by rules of its own: a quote within quotes is doubled."""
    return "'" + word.replace("'", "''") + "'"


def _sent(said: str) -> Sent:
    def number(label: str) -> int:
        found = re.search(rf"^{label}: ([\d,]+)", said, re.MULTILINE)
        return int(found[1].replace(",", "")) if found else 0

    return Sent(
        number("Number of regular files transferred"),
        number("Total transferred file size"),
        number("Literal data"),
    )


def _failed(remote: Remote, to: str, code: int, said: str) -> DeployError | DiskError:
    host = remote.host.name
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return DiskError(
            f"the disk of {host} filled up",
            fix="free some space there, or give --dir on another disk; the rest is kept",
        )
    if "Permission denied" in said or "Read-only file system" in said:
        return DeployError(
            f"{to} on {host} cannot be written to", fix="give --dir a folder that the user may write to"
        )
    again = "the same command again sends only what is missing"
    if code < 0:
        return DeployError(f"rsync to {host} was ended by signal {-code}", fix=again)
    if code in _CONNECTION_LOST:
        error = refused(remote.host, said)
        return DeployError(error.what, fix=f"{error.fix}; {again}")
    last = " / ".join(said.strip().splitlines()[-3:])
    return DeployError(
        f"rsync to {host} failed ({code}): {last}", fix="give the same command again, or --force"
    )
