"""A real sshd on loopback, with keys and known hosts of its own; skipped where there is none."""

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_tools import in_this_process
from programs import lacking, require

ROOT = Path(__file__).parents[2]
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


# It takes ssh's options and runs the command here: what these tests are about begins where ssh ends.
SSH = """#!/bin/sh
while :; do case "$1" in
  -M|-O) exit 0 ;;
  -o|-F|-p|-i|-l) shift 2 ;;
  -*) shift ;;
  *) shift; exec sh -c "$*" ;;
esac; done
"""


@dataclass(frozen=True)
class Board:
    """An sshd, and how to log into it."""

    folder: Path
    port: int
    name: str = f"{getpass.getuser()}@127.0.0.1"

    @property
    def config(self):
        return self.folder / "config"

    @property
    def key(self):
        return self.folder / "key"

    @property
    def flags(self):
        return ["--host", self.name, "--port", self.port, "--ssh-config", self.config]


def new_key(path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@pytest.fixture
def keygen():
    """keygen(path) → path of a new private key."""
    return new_key


def serve(folder, **settings):
    """Start an sshd of the current user's on a free port; returns its process and how to log in."""
    new_key(folder / "host")
    new_key(folder / "key")
    shutil.copy(folder / "key.pub", folder / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {
        "ListenAddress": "127.0.0.1", "Port": port, "HostKey": folder / "host", "PidFile": "none", "UsePAM": "no",
        "AuthorizedKeysFile": folder / "authorized", "StrictModes": "no", "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no", "PermitRootLogin": "prohibit-password", **settings,
    }  # fmt: skip
    (folder / "sshd_config").write_text("".join(f"{k} {v}\n" for k, v in options.items()))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    host_key = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    (folder / "config").write_text(
        f"IdentityFile {folder}/key\nIdentitiesOnly yes\nIdentityAgent none\n"
        f"UserKnownHostsFile {folder}/known_hosts\nGlobalKnownHostsFile none\n"
    )
    with (folder / "sshd.log").open("w") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    board = Board(folder, port)
    for _ in range(100):
        with socket.socket() as probe:
            if process.poll() is not None or probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    return process, board


@pytest.fixture(scope="session")
def sshd(tmp_path_factory):
    """sshd(**settings) → a Board; each set of settings is served once a session."""
    require("ssh", "ssh", "ssh-keygen", "rsync")
    if SSHD is None:
        lacking("ssh", "there is no sshd")
    served = {}

    def start(**settings):
        key = repr(sorted(settings.items()))
        if key not in served:
            served[key] = serve(tmp_path_factory.mktemp("sshd"), **settings)
        process, board = served[key]
        if process.poll() is not None:
            lacking("ssh", f"sshd does not run here: {(board.folder / 'sshd.log').read_text()}")
        return board

    yield start
    for process, _ in served.values():
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def board(sshd):
    """A machine that lets this user in."""
    board = sshd()
    line = ["ssh", "-F", board.config, "-p", board.port, "-o", "BatchMode=yes", board.name, "true"]
    done = subprocess.run([*map(str, line)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = f"{done.stderr}{(board.folder / 'sshd.log').read_text()}"
        lacking("ssh", f"sshd lets {getpass.getuser()} not in: {said}")
    return board


@pytest.fixture
def ssh_to_here(tmp_path, monkeypatch):
    """Flags for a host that needs no sshd, and is quicker."""
    require("ssh", "rsync")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(SSH)
    (tmp_path / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return ["--host", "me@board"]


@pytest.fixture(scope="session")
def remote_fico(tmp_path_factory):
    """This package, as a command in a folder that must be quoted."""
    path = tmp_path_factory.mktemp("their tools") / "fico's"
    path.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} OMP_NUM_THREADS=1 exec {sys.executable} -m fico_export "$@"\n'
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def stub_fico(tmp_path):
    """stub_fico({verb: (exit code, stdout, stderr)}) → a fico of version 9.9 that says this; it writes down its words."""

    def make(verbs):
        script = [
            "#!/bin/sh",
            f"for w; do printf '[%s]' \"$w\"; done >> {shlex.quote(str(tmp_path / 'words'))}",
        ]
        script += [
            f"echo >> {shlex.quote(str(tmp_path / 'words'))}",
            'case "$1" in',
            "--version) echo 9.9 ;;",
        ]
        shown = "Commands:\n" + "".join(f"  {verb}  Does it.\n" for verb in verbs)
        script.append(f"--help) printf %s {shlex.quote(shown)} ;;")
        for verb, (code, out, err) in verbs.items():
            script.append(
                f"{verb}) printf %s {shlex.quote(err)} >&2; printf '%s\\n' {shlex.quote(out)}; exit {code} ;;"
            )
        (tmp_path / "fico").write_text("\n".join([*script, "esac"]) + "\n")
        (tmp_path / "fico").chmod(0o755)
        return tmp_path / "fico"

    return make


@pytest.fixture
def fico(capsys):
    """fico(*arguments) → Outcome."""
    return lambda *arguments: in_this_process(capsys, "fico", *arguments)
