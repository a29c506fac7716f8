"""What a bundle meets on the other side: its folder, the disk, rsync, and a fico with its verbs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from fico_export.deploy.remote import Remote
from fico_export.errors import DeployError, DiskError

_MARK = "fico-probe "  # some shells greet even those who have not come to talk
# A shell that is not logged into has a short PATH: these are looked at besides. docs/jetson.md installs into the first.
_PLACES = ("fico", "$HOME/fico/venv/bin/fico", "$HOME/.local/bin/fico")

_SCRIPT = f"""
say() {{ printf '{_MARK}%s=%s\\n' "$1" "$2"; }}
dir=$1; shift
say machine "$(uname -sm)"
say rsync "$(command -v rsync)"
if why=$(mkdir -p -- "$dir" 2>&1) && [ -w "$dir" ]; then
  say dir "$(cd -- "$dir" && pwd)"
  say free "$(df -Pk -- "$dir" | awk 'NR == 2 {{ print $4 }}')"
else
  say refused "${{why:-it belongs to another user}}"
fi
for fico in "$@"; do
  if found=$(command -v "$fico"); then say fico "$found"; break; fi
done
"""


@dataclass(frozen=True)
class Place:
    """A folder on another machine, and the fico there.

    Attributes:
        machine: operating system and processor.
        folder: absolute.
        free: bytes of its disk.
        fico: the command's words.
        version: of fico_export there.
        verbs: that it has.
    """

    machine: str
    folder: str
    free: int
    fico: tuple[str, ...]
    version: str
    verbs: frozenset[str]


def look(remote: Remote, folder: str, *, fico: str | None, python: str | None) -> Place:
    """Make the folder, and find rsync and fico.

    Args:
        remote: the machine.
        folder: on it, relative to the home folder unless absolute; made if it is not there.
        fico: the command there; None to look where it may be.
        python: or an interpreter that has fico_export.

    Raises:
        DeployError: something is missing there; the fix says how to get it.
    """
    host = remote.host.name
    given = python or fico
    sought = (given,) if given else _PLACES
    words = shlex.quote(in_home(given)) if given else " ".join(f'"{place}"' for place in _PLACES)
    done = remote.run(["sh", "-c", f'set -- "$1" {words}\n{_SCRIPT}', "sh", folder])
    found = dict(
        line.removeprefix(_MARK).split("=", 1) for line in done.out.splitlines() if line.startswith(_MARK)
    )
    if "machine" not in found:
        said = " / ".join((done.err or done.out).strip().splitlines()[-3:])
        raise DeployError(
            f"{host} runs no command: {said}", fix=f"try it by hand: {remote.host.by_hand} uname"
        )
    if "refused" in found:
        raise DeployError(
            f"{folder} on {host} cannot be written to: {found['refused']}",
            fix="give --dir a folder that the user may write to",
        )
    if not found.get("rsync"):
        raise DeployError(f"{host} has no rsync", fix="install it there: sudo apt install rsync")
    if not found.get("fico"):
        looked = ", ".join(sought)
        raise DeployError(
            f"{host} has no fico (looked for {looked})",
            fix="install it there as docs/jetson.md says, or give --fico with its path, or --python with that of the "
            "interpreter it was installed for",
        )
    command = (found["fico"], "-m", "fico_export") if python else (found["fico"],)
    version, verbs = _fico(remote, command)
    return Place(found["machine"], found["dir"], int(found["free"]) * 1024, command, version, verbs)


def in_home(path: str) -> str:
    """A path without its `~/`: commands start in the home folder, and nothing that is quoted is filled in."""
    return f"./{path[2:]}" if path.startswith("~/") else path


def _fico(remote: Remote, command: Sequence[str]) -> tuple[str, frozenset[str]]:
    # One journey for both.
    done = remote.run(["sh", "-c", '"$@" --version && "$@" --help', "sh", *command])
    if done.code:
        said = " / ".join(done.err.strip().splitlines()[-3:])
        raise DeployError(
            f"{shlex.join(command)} on {remote.host.name} does not start: {said}",
            fix="install this machine's version of fico_export there, as docs/jetson.md says",
        )
    version, _, shown = done.out.partition("\n")
    verbs = re.findall(r"^  ([a-z][a-z-]*)(?:  |$)", shown.partition("Commands:")[2], re.MULTILINE)
    return version.strip(), frozenset(verbs)


def require_room(remote: Remote, place: Place, needed: int) -> None:
    """Refuse to send what the disk there cannot hold.

    Raises:
        DiskError: fewer than `needed` bytes are free.
    """
    if needed > place.free:
        raise DiskError(
            f"{needed / 1e9:.1f} GB are to be sent, the disk of {place.folder} on {remote.host.name} has "
            f"{place.free / 1e9:.1f} GB free",
            fix="free some space there, or give --dir on another disk",
        )
