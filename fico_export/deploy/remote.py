"""Another machine, by the system's ssh: one connection that all commands share, and what its refusals mean."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fico_export.errors import ConfigError, DeployError

# ssh finds out that the other side has gone: after 10 s when it connects, and after 60 s later on.
_PATIENCE = ("ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=4")
_LINGER_SECONDS = 60  # that the connection outlives a fico which was killed outright
_SSH_FAILED = 255
# Neither part may pass for an option, nor hold what a shell gives a meaning: ssh fills both into a ProxyCommand of its
# configuration. An address of IPv6 may stand in brackets, as rsync has it.
_NAME = re.compile(
    r"([A-Za-z0-9_.][A-Za-z0-9_.+-]*@)?"
    r"([A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9a-fA-F]*:[0-9a-fA-F:.]+(%[A-Za-z0-9_.]+)?\]|[0-9a-fA-F]*:[0-9a-fA-F:.]+(%[A-Za-z0-9_.]+)?)"
)

# Ends the command when the connection ends: without a terminal, sshd leaves what it started running.
_TIED = """
exec 3<&0
"$@" </dev/null 3<&- & work=$!
(while read -r _; do :; done <&3; kill $work) >/dev/null 2>&1 & watch=$!
wait $work; code=$?
kill $watch 2>/dev/null
exit $code
"""


@dataclass(frozen=True)
class Host:
    """Where to log in.

    Attributes:
        name: `user@host`, a host, or a name of ~/.ssh/config.
        port: None for ssh's own choice.
        identity: file of a private key; None for ssh's own choice.
        config: file of ssh's configuration; None for the user's own.
    """

    name: str
    port: int | None = None
    identity: Path | None = None
    config: Path | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            fix = "such as --host me@192.168.55.1, and the port by --port"
            raise ConfigError(
                f"--host {self.name!r} is not user@host, of letters, digits, dots, dashes and underscores",
                fix=fix,
            )
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ConfigError(f"--port {self.port} is no port", fix="give --port a number from 1 to 65535")
        for flag, file in (("--identity", self.identity), ("--ssh-config", self.config)):
            if file is not None and not file.is_file():
                raise ConfigError(f"no file {file}", fix=f"{flag} FILE, or drop it for ssh's own choice")

    @property
    def _chosen(self) -> list[str]:
        given = ["-F", str(self.config)] if self.config is not None else []
        given += ["-p", str(self.port)] if self.port is not None else []
        return [*given, "-i", str(self.identity)] if self.identity is not None else given

    @property
    def flags(self) -> list[str]:
        """For ssh."""
        alone = ("IdentitiesOnly=yes",) if self.identity is not None else ()
        return [*self._chosen, *(part for option in (*_PATIENCE, *alone) for part in ("-o", option))]

    @property
    def login(self) -> str:
        """The name as ssh takes it: an IPv6 address without brackets."""
        return self.name.replace("[", "").replace("]", "")

    @property
    def by_hand(self) -> str:
        """The command that connects by hand."""
        return shlex.join(["ssh", *self._chosen, self.login])


@dataclass(frozen=True)
class Done:
    """A command that ended, and what it said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Remote:
    """A machine to which there is a connection."""

    host: Host
    socket: Path

    @property
    def ssh(self) -> list[str]:
        """The command that goes through the connection, without the machine's name; it asks nothing."""
        shared = ["-o", "ControlMaster=no", "-o", f"ControlPath={self.socket}", "-o", "BatchMode=yes"]
        return ["ssh", *shared, *self.host.flags]

    def run(self, command: Sequence[str], log: Callable[[str], None] | None = None) -> Done:
        """Run a command to its end; it ends with the connection.

        Args:
            command: its words, of any characters.
            log: told each line of its stderr as it comes.

        Raises:
            DeployError: the connection broke.
        """
        words = shlex.join(["sh", "-c", _TIED, "sh", *command])
        # Files, not pipes: what is printed on one side may be long, and is read line by line on the other.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as out:
            process = subprocess.Popen(
                [*self.ssh, self.host.login, words],
                stdin=subprocess.PIPE,  # held open: its end is the command's
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=environment(),
            )
            with ended(process):
                lines = []
                for line in process.stderr or ():
                    lines.append(line)
                    if log is not None and line.strip():
                        log(line.rstrip())
                code = process.wait()
            out.seek(0)
            done = Done(code, out.read(), "".join(lines))
        if done.code == _SSH_FAILED:
            raise refused(self.host, done.err)
        return done


@contextmanager
def connected(host: Host, *, interactive: bool) -> Iterator[Remote]:
    """A connection, which ends with the block.

    Args:
        host: where to.
        interactive: whether there is a user whom ssh may ask for a passphrase, a password or to trust a new host.

    Raises:
        ConfigError: this machine has no ssh.
        DeployError: it could not be made; the fix says what to do.
    """
    require("ssh")
    with tempfile.TemporaryDirectory(prefix="fico-") as folder:  # for this user's eyes alone
        remote = Remote(host, Path(folder) / "ssh")
        flags = [*host.flags, "-o", f"BatchMode={'no' if interactive else 'yes'}"]
        shared = [
            "-M",
            "-N",
            "-f",
            "-o",
            f"ControlPath={remote.socket}",
            "-o",
            f"ControlPersist={_LINGER_SECONDS}",
        ]
        # What stays connected keeps its stderr open: a pipe would never end.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            code = subprocess.run(
                ["ssh", *shared, *flags, host.login],
                stdin=None if interactive else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment(),
                check=False,
            ).returncode
            log.seek(0)
            if code:
                raise refused(host, log.read())
        try:
            yield remote
        finally:
            subprocess.run(
                [*remote.ssh, "-O", "exit", host.login],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )


@contextmanager
def ended(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> Iterator[None]:
    """Whatever happens in the block, the process has ended after it."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.wait()


def environment() -> dict[str, str]:
    """For ssh and rsync: their messages are read, so they must not be translated."""
    return {**os.environ, "LC_ALL": "C"}


def require(program: str) -> str:
    """The path of a program of this machine.

    Raises:
        ConfigError: it is not installed.
    """
    path = shutil.which(program)
    if path is None:
        package = "openssh-client" if program == "ssh" else program
        raise ConfigError(f"this machine has no {program}", fix=f"sudo apt install {package}")
    return path


def refused(host: Host, said: str) -> DeployError:
    """What ssh said, as an error with its fix."""
    name, by_hand = host.name, host.by_hand
    where = host.login.rpartition("@")[2]
    entry = f"[{where}]:{host.port}" if host.port is not None else where
    reasons = {
        "REMOTE HOST IDENTIFICATION HAS CHANGED": (
            "has another host key than when it was last connected to",
            f"if the board was flashed anew: ssh-keygen -R '{entry}', then {by_hand} and compare the fingerprint",
        ),
        "Host key verification failed": (
            "is not among the known hosts",
            f"connect once by hand, compare the fingerprint that it shows with the board's, and accept it: {by_hand}",
        ),
        "UNPROTECTED PRIVATE KEY FILE": (
            "was not tried: others can read the private key",
            f"chmod 600 {host.identity or 'the key that ssh names'}",
        ),
        "Permission denied": (
            "refused every key that ssh offered",
            "give --identity FILE, or let it take your key with ssh-copy-id; a password can be asked for in a terminal only",
        ),
        "Too many authentication failures": ("refused too many keys", "give the right one alone: --identity FILE"),
        "Could not resolve hostname": ("is a name that is not known", "check it, or give the address: user@192.168.55.1"),
        "Connection refused": (
            f"refused a connection at port {host.port or 22}",
            "give sshd's port with --port, or start it there: sudo systemctl enable --now ssh",
        ),
        "timed out": ("did not answer", "is it on, and in this network? the USB cable of a developer kit is 192.168.55.1"),
        "No route to host": ("cannot be reached", "is it on, and in this network?"),
        "Network is unreachable": ("cannot be reached", "connect this machine to the network of the other"),
    }  # fmt: skip
    for sign, (what, fix) in reasons.items():
        if sign in said:
            return DeployError(f"{name} {what}", fix=fix)
    last = " / ".join(line.strip() for line in said.strip().splitlines()[-3:]) or "without a word"
    return DeployError(
        f"the connection to {name} broke: {last}",
        fix=f"try it by hand: {by_hand}",
    )
