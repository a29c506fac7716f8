"""`fico deploy` against a real sshd: a bundle arrives, is looked through and asked; what was done is not done again."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cli_tools import command_line, copied, flip_a_bit, started
from stub_bundles import FILES, write_stub

from fico_export.deploy import remote, transfer
from fico_export.errors import DeployError
from fico_export.progress import Silent

BIG = 6_000_000
BLOCK = (
    10_000  # rsync knows again what arrived by blocks, of about the root of the size: the last is not whole
)


GOOD = {"doctor": (0, '{"ok": true, "findings": []}', ""), "inspect": (0, '{"files": {}}', "")}


@pytest.fixture
def bundle(tmp_path):
    """A bundle in a folder that must be quoted."""
    return write_stub(tmp_path / "it's a $HOME bundle")


@pytest.fixture
def there(tmp_path):
    """Where it goes."""
    return tmp_path / "their \"disk\" & 'more'" / "the bundle"


@pytest.fixture
def connection(board):
    with remote.connected(remote.Host(board.name, board.port, config=board.config), interactive=False) as it:
        yield it


def grown(bundle):
    """It has a file that takes a while."""
    write_stub(bundle, FILES | {"onnx/big": os.urandom(BIG)})
    return sum((bundle / name).stat().st_size for name in listed(bundle))


def listed(bundle):
    return ["manifest.json", *json.loads((bundle / "manifest.json").read_text())["files"]]


def by_name(outcome):
    return {o["step"]: o for o in outcome.json["outcomes"]}


def test_a_bundle_is_sent_checked_built_and_asked(
    fico, board, make_bundle, tiny_checkpoint, there, remote_fico, tmp_path
):
    made = make_bundle(tiny_checkpoint, 16, method="uniform", target="rtx", verify=False)
    bundle = copied(made, tmp_path / "it's a $HOME bundle")
    flags = [*board.flags, "--fico", remote_fico, "--dir", there, "--backend", "ort-cpu", "--json"]
    first = fico("deploy", bundle, *flags)

    steps = by_name(first)
    assert first.json["passed"], first.err
    assert list(steps) == ["doctor", "inspect", "build", "verify", "answer", "profile"]
    for name in listed(bundle):
        assert (there / name).read_bytes() == (bundle / name).read_bytes()
        assert (there / name).stat().st_nlink == 1
    assert first.json["sent_bytes"] == sum((bundle / name).stat().st_size for name in listed(bundle))
    results = Path(first.json["results"])
    assert results == bundle / "deploy" / f"{board.name}_{board.port}"
    kept = {name: json.loads((results / f"{name}.json").read_text()) for name in ("inspect", "answer")}
    assert kept["inspect"]["result"]["hashes_checked"] is True
    assert kept["answer"]["result"]["backend"] == "ort-cpu"
    assert kept["answer"]["result"]["visual_tokens"] == 16
    assert steps["verify"]["status"] == "skipped"
    assert "--checkpoint" in steps["verify"]["line"]
    verbs = remote_verbs(remote_fico)
    for verb in ("build", "profile"):
        if verb in verbs:
            assert steps[verb]["status"] == "done", steps[verb]
        else:
            assert steps[verb]["line"] == f"the fico there (0.1.0) has no `fico {verb}`"
    # Nothing of it again, but for the look at the machine itself.
    second = fico("deploy", bundle, *flags)
    assert second.json["sent_bytes"] == 0
    again = {name: step["status"] for name, step in by_name(second).items()}
    assert (again["doctor"], again["inspect"], again["answer"]) == ("done", "kept", "kept")
    # Nothing secret in what is kept.
    secret = board.key.read_text().splitlines()[1]
    text = "".join(p.read_text() for p in results.iterdir())
    assert secret not in text
    assert str(board.key) not in text


def remote_verbs(remote_fico):
    said = subprocess.run([remote_fico, "--help"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in said.partition("Commands:")[2].splitlines() if line.strip()}


def test_a_file_that_was_damaged_there_is_found_and_fixed_by_force(fico, board, bundle, there, remote_fico):
    flags = [*board.flags, "--fico", remote_fico, "--dir", there, "--json", "--skip", "doctor"]
    flags += [w for name in ("build", "answer", "profile") for w in ("--skip", name)]
    assert fico("deploy", bundle, *flags).json["passed"]
    stat = (there / "tokenizer.json").stat()
    flip_a_bit(there / "tokenizer.json")
    os.utime(there / "tokenizer.json", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    shutil.rmtree(bundle / "deploy")

    found = fico("deploy", bundle, *flags)
    fixed = fico("deploy", bundle, *flags, "--force")

    assert (found.code, found.json["passed"]) == (1, False)
    assert by_name(found)["inspect"]["status"] == "failed"
    assert "tokenizer.json does not have the SHA-256" in by_name(found)["inspect"]["line"]
    assert fixed.json["passed"]
    assert fixed.json["sent_bytes"] < 100
    assert (there / "tokenizer.json").read_bytes() == (bundle / "tokenizer.json").read_bytes()


def test_what_is_not_the_bundle_s_is_let_be(fico, ssh_to_here, bundle, there, stub_fico):
    (there / "onnx").mkdir(parents=True)
    (there / "onnx" / "mine").write_text("mine")
    (bundle / "mine").write_text("not the bundle's either")

    assert fico("deploy", bundle, *ssh_to_here, "--fico", stub_fico(GOOD), "--dir", there).code == 0
    assert (there / "onnx" / "mine").read_text() == "mine"
    assert not (there / "mine").exists()


def test_a_bundle_that_changed_is_taken_through_the_steps_again(fico, ssh_to_here, bundle, there, stub_fico):
    flags = [*ssh_to_here, "--fico", stub_fico(GOOD), "--dir", there, "--json"]
    assert by_name(fico("deploy", bundle, *flags))["inspect"]["status"] == "done"
    assert by_name(fico("deploy", bundle, *flags))["inspect"]["status"] == "kept"
    write_stub(bundle, FILES | {"config.json": b'{"other": 1}'})

    third = fico("deploy", bundle, *flags)

    assert by_name(third)["inspect"]["status"] == "done"
    assert (there / "config.json").read_bytes() == b'{"other": 1}'
    assert by_name(fico("deploy", bundle, *flags, "--force"))["inspect"]["status"] == "done"


def test_other_software_there_is_taken_through_the_steps_again(fico, ssh_to_here, bundle, there, stub_fico):
    flags = [*ssh_to_here, "--dir", there, "--json", "--fico"]
    said = '{"ok": true, "findings": [{"what": "TensorRT", "found": "%s", "status": "ok"}]}'
    states = []
    for version in ("10.3.0", "10.3.0", "10.16.1"):
        verbs = GOOD | {"doctor": (0, said % version, "")}
        states.append(by_name(fico("deploy", bundle, *flags, stub_fico(verbs)))["inspect"]["status"])

    assert states == ["done", "kept", "done"]


def arrived(there):
    """Bytes of the big file that are on the other side under a passing name."""
    sizes = []
    for path in there.glob("onnx/.*big*"):
        sizes += [p.stat().st_size for p in ([path] if path.is_file() else path.iterdir())]
    return max(sizes, default=0)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_transfer_that_was_interrupted_goes_on_where_it_stopped(fico, board, bundle, there, stub_fico):
    """Ctrl-C, the same command again: what had arrived is not sent twice, by rsync's own count."""
    total = grown(bundle)
    flags = [*board.flags, "--fico", stub_fico(GOOD), "--dir", there, "--json"]
    line = command_line("fico", "deploy", bundle, *flags, "--limit", 2000)
    process = started(line)
    wait_for(lambda: arrived(there) > BIG // 3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    wait_for(lambda: (there / "onnx" / transfer.PARTIAL / "big").exists())
    part = (there / "onnx" / transfer.PARTIAL / "big").stat().st_size

    assert process.returncode == 130
    assert "the same command goes on" in err
    assert not (there / "manifest.json").exists()
    assert part > BIG // 3
    resumed = fico("deploy", bundle, *flags)

    assert resumed.json["passed"], resumed.err
    assert resumed.json["sent_bytes"] <= total - part + BLOCK
    assert (there / "onnx" / "big").read_bytes() == (bundle / "onnx" / "big").read_bytes()
    assert not (there / "onnx" / transfer.PARTIAL).exists()


def test_an_rsync_that_is_killed_says_how_to_go_on_and_is_resumed(connection, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "big").write_bytes(os.urandom(BIG))

    class Killer(Silent):
        """Ends rsync when a third has been sent."""

        told = 0

        def advance(self, done_bytes):
            self.told += done_bytes
            if self.told > BIG // 3:
                for task in Path("/proc/self/task").iterdir():
                    for child in (task / "children").read_text().split():
                        if Path(f"/proc/{child}/comm").read_text().strip() == "rsync":
                            os.kill(int(child), signal.SIGKILL)

    with pytest.raises(DeployError) as caught:
        transfer.send(connection, here, ["big"], str(there), Killer(), kilobytes_per_second=2000)
    assert "the same command again sends only what is missing" in caught.value.fix
    wait_for(lambda: (there / transfer.PARTIAL / "big").exists())
    part = (there / transfer.PARTIAL / "big").stat().st_size
    sent = transfer.send(connection, here, ["big"], str(there), Silent())

    assert part > BIG // 4
    assert sent.literal <= BIG - part + BLOCK
    assert (there / "big").read_bytes() == (here / "big").read_bytes()


def test_a_command_there_ends_with_its_connection(board, tmp_path):
    host = remote.Host(board.name, board.port, config=board.config)
    with remote.connected(host, interactive=False) as connection:
        words = ["sh", "-c", 'echo $$ > "$1"; exec sleep 60', "sh", str(tmp_path / "pid")]
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                connection.run(words)
            finally:
                os._exit(0)
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
        theirs = int((tmp_path / "pid").read_text())
        assert Path(f"/proc/{theirs}").exists()
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)

        wait_for(lambda: not Path(f"/proc/{theirs}").exists())


def test_words_arrive_as_they_were_given(connection):
    words = ["", "a b", "it's", '"', "$HOME", "`id`", "a\nb", "ä", "*", "-n", "\\"]

    done = connection.run(["printf", "%s|", *words])

    assert done.out == "".join(f"{w}|" for w in words)


def test_an_exit_code_and_both_outputs_come_back(connection):
    lines = []
    done = connection.run(["sh", "-c", "echo out; echo one >&2; echo two >&2; exit 7"], lines.append)

    assert (done.code, done.out, lines) == (7, "out\n", ["one", "two"])
