"""What is wrong with another machine is an error with its fix."""

import os
import shutil
import socket

import pytest
from stub_bundles import write_stub

from fico_export.deploy import probe, transfer
from fico_export.deploy.remote import Host, refused
from fico_export.errors import ConfigError


@pytest.fixture
def bundle(tmp_path):
    return write_stub(tmp_path / "bundle")


@pytest.fixture
def deploy(fico, bundle, board, stub_fico, tmp_path):
    """deploy(*flags, …) → Outcome; the board, the fico there and the folder are good unless given."""
    good = stub_fico({"doctor": (0, "{}", ""), "inspect": (0, "{}", "")})

    def run(*flags, login=(), config=board.config, port=board.port, there=good, folder=tmp_path / "there"):
        line = ["--host", board.name, "--port", port, "--ssh-config", config, *login, "--dir", folder]
        return fico("deploy", bundle, *line, *(["--fico", there] if there else []), *flags)

    return run


def edited(board, tmp_path, old, new):
    """The board's configuration of ssh, with a change."""
    text = board.config.read_text()
    assert old in text
    (tmp_path / "config").write_text(text.replace(old, new))
    return tmp_path / "config"


def test_a_key_that_is_not_known_there_is_refused(deploy, board, tmp_path, keygen):
    key = keygen(tmp_path / "other")
    config = edited(board, tmp_path, f"{board.key}", str(key))

    deploy(config=config).refuses("refused every key", "--identity", "ssh-copy-id", code=1)
    assert deploy(login=["--identity", board.key]).code == 0
    deploy(login=["--identity", tmp_path / "absent"]).refuses("no file", "--identity FILE")


def test_a_key_that_others_can_read_is_not_tried(deploy, board, tmp_path):
    key = shutil.copy(board.key, tmp_path / "open")
    key.chmod(0o644)

    config = edited(board, tmp_path, str(board.key), str(key))
    deploy(config=config).refuses("others can read", "chmod 600", code=1)


def test_a_host_that_is_not_known_is_not_trusted(deploy, board, tmp_path):
    (tmp_path / "none").touch()
    config = edited(board, tmp_path, "known_hosts", "absent_hosts")

    deploy(config=config).refuses("is not among the known hosts", "fingerprint", f"ssh -F {config}", code=1)
    assert not (board.folder / "absent_hosts").exists()


def test_a_host_whose_key_has_changed_is_not_trusted(deploy, board, tmp_path, keygen):
    other = keygen(tmp_path / "other").with_suffix(".pub").read_text().split()[1]
    (tmp_path / "hosts").write_text(f"[127.0.0.1]:{board.port} ssh-ed25519 {other}\n")
    config = edited(board, tmp_path, f"{board.folder}/known_hosts", str(tmp_path / "hosts"))

    deploy(config=config).refuses("another host key", f"ssh-keygen -R '[127.0.0.1]:{board.port}'", code=1)


def test_a_port_where_nothing_listens_is_named(deploy):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        deploy(port=port).refuses(f"refused a connection at port {port}", "--port", code=1)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-oProxyCommand=touch x",
        "me@-oProxyCommand=x",
        "a b",
        "me@host:/tmp",
        "host;ls x",
        "me@a@b",
        "a;ls",
        "$(ls)",
        "`ls`@nano",
        "me@a|b",
        "me@a'b",
        "~",
        "me@#",
        "a>b",
        "$(id)",
        "a`id`",
        "me;id@host",
        "a|b",
        "a&b",
        "a'b",
        'a"b',
        "a\\b",
        "a\nb",
        "a\tb",
        "%h",
        "a%b",
        "{a,b}",
        "a*",
        "[::1",
        "::1]",
        "é",
    ],
)
def test_what_is_no_host_is_not_given_to_ssh(fico, bundle, name):
    fico("deploy", bundle, f"--host={name}").refuses("is not user@host", "me@192.168.55.1")


@pytest.mark.parametrize(
    "name", ["nano", "me@nano", "me@192.168.55.1", "me@[fe80::1%eth0]", "me@::1", "::1", "a.b-c"]
)
def test_names_and_addresses_are_hosts(name):
    assert Host(name).login == name.replace("[", "").replace("]", "")


@pytest.mark.parametrize(
    ("said", "word", "fix"),
    [
        ("ssh: Could not resolve hostname nano: Name or service not known", "not known", "address"),
        ("ssh: connect to host 10.0.0.1 port 22: Connection timed out", "did not answer", "192.168.55.1"),
        ("ssh: connect to host 10.0.0.1 port 22: No route to host", "cannot be reached", "network"),
        ("Received disconnect: Too many authentication failures", "too many keys", "--identity"),
        ("kex_exchange_identification: read: Connection reset by peer", "reset by peer", "ssh me@nano"),
        ("", "without a word", "ssh me@nano"),
    ],
)
def test_what_ssh_says_has_a_fix(said, word, fix):
    error = refused(Host("me@nano"), said)

    assert word in error.what
    assert fix in error.fix


def test_a_machine_without_fico_is_told_how_to_get_it(deploy, tmp_path):
    deploy(there=tmp_path / "no fico").refuses(
        "has no fico", str(tmp_path / "no fico"), "docs/jetson.md", code=1
    )
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'No module named onnxruntime' >&2\nexit 1\n")
    broken.chmod(0o755)
    deploy(there=broken).refuses("does not start", "No module named onnxruntime", code=1)
    deploy("--python", "/usr/bin/python3").refuses("--fico and --python", "one of them")


def test_a_machine_without_rsync_is_told_how_to_get_it(sshd, fico, bundle, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "mkdir", "uname", "awk", "df"):
        (tools / name).symlink_to(shutil.which(name))
    bare = sshd(SetEnv=f"PATH={tools}")

    fico("deploy", bundle, *bare.flags, "--dir", tmp_path / "there").refuses(
        "has no rsync", "apt install rsync", code=1
    )


def test_a_folder_that_cannot_be_written_to_is_refused(deploy):
    deploy(folder="/dev/null/there").refuses("/dev/null/there", "cannot be written to", "--dir", code=1)


def test_a_full_disk_there_is_refused_before_anything_is_sent(deploy, monkeypatch, tmp_path):
    found = probe.look
    monkeypatch.setattr(probe, "look", lambda *a, **o: probe.Place(**{**vars(found(*a, **o)), "free": 1000}))

    deploy().refuses("are to be sent", "0.0 GB free", "--dir on another disk")
    assert not (tmp_path / "there" / "manifest.json").exists()


def test_an_old_rsync_is_refused(deploy, tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "rsync").write_text("#!/bin/sh\necho 'rsync  version 2.6.9  protocol version 29'\n")
    (tmp_path / "old" / "rsync").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'old'}:{os.environ['PATH']}")

    deploy().refuses("rsync is version 2.6; 3.1 is needed")


def test_without_ssh_or_rsync_here_nothing_is_tried(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ConfigError, match="has no rsync"):
        transfer.require_rsync()


def test_the_request_is_judged_before_this_machine(fico, bundle, monkeypatch, tmp_path):
    """It stays wrong when ssh and rsync have been installed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    host = ("--host", "me@nano")

    fico("deploy", tmp_path / "absent", *host).refuses("absent")
    fico("deploy", bundle, "--host", "a;b").refuses("is not user@host")
    fico("deploy", bundle, *host, "--identity", "absent").refuses("no file absent")
    fico("deploy", bundle, *host).refuses("this machine has no ssh", "sudo apt install openssh-client")
    (tmp_path / "ssh").touch(0o755)
    fico("deploy", bundle, *host).refuses("this machine has no rsync", "sudo apt install rsync")
    (bundle / "config.json").write_bytes(b"{x}")
    fico("deploy", bundle, *host).refuses("config.json", "copy or export the bundle again")


def test_a_damaged_bundle_is_not_sent(deploy, bundle, tmp_path):
    (bundle / "config.json").write_bytes(b"{x}")

    deploy().refuses("config.json", "copy or export the bundle again")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--skip", "biuld"], ["unknown step 'biuld'", "did you mean 'build'"]),
        (["--also", "--fast"], ["names no step"]),
        (["--also", "walk=1"], ["unknown step 'walk'"]),
        (["--also", "answer='1"], ["a quote without its pair"]),
        (["--port", "0"], ["--port"]),
        (["--limit", "0"], ["--limit"]),
        (["--identity", "absent"], ["no file absent"]),
        (["--target", "trt-10"], ["unknown target"]),
        (["--device", "orin-nano"], ["unknown device", "orin-nano-8gb"]),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused_before_connecting(flags, words, fico, bundle):
    fico("deploy", bundle, "--host", "nowhere.invalid", *flags).refuses(*words)
