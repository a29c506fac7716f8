"""A Debian with Python alone passes the tests, and says which it skipped; `.ci/run` installs what they need and requires it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Of Debian's essential packages, what the tests and the scripts call.
BARE = """
    sh bash awk basename cat chmod cksum cp cut date df dirname echo env false find grep gzip head id kill ln ls mkdir mktemp mv
    printf pwd readlink rm sed sleep sort stat tail tar test touch tr true uname wc
"""
TOOLS = {"openssh-server": ("ssh", "ssh-keygen", "sshd"), "rsync": ("rsync",), "chromium": ("chromium",)}
SAY = "#!/bin/sh\necho \"ssh ${FICO_REQUIRE_SSH-no} chromium ${FICO_REQUIRE_CHROMIUM-no}\"\necho '9 passed in 1s'\n"


@pytest.fixture
def bare(tmp_path):
    """A folder for PATH with a bare Debian's programs: no rsync, ssh, browser, node or git."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in BARE.split():
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder


def ran_on(bare, *arguments, **environment):
    """A run of pytest there."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FICO_REQUIRE", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**clean, "PATH": str(bare), **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_bare_machine_passes_and_says_what_it_skipped_and_what_installs_it(bare):
    browser = "tests/report/test_page.py::test_a_browser_logs_nothing_and_asks_for_nothing"
    done = ran_on(bare, "tests/deploy", browser)

    assert done.returncode == 0, done.stdout
    told = done.stdout.partition("not tested on this machine")[2]
    assert "in tests/deploy: there is no rsync: apt install openssh-server rsync" in told
    assert "   1 in tests/report: there is no Chromium: apt install chromium" in told
    last = told.splitlines()[-1]
    assert " passed, " in last
    assert "failed" not in last


def test_what_is_required_and_missing_fails(bare):
    required = {"FICO_REQUIRE_SSH": "1", "FICO_REQUIRE_CHROMIUM": "1"}
    places = ("tests/deploy/test_steps.py", "tests/report/test_page.py")
    done = ran_on(bare, *places, "-k", "browser or reader", **required)

    assert done.returncode == 1
    assert "FICO_REQUIRE_SSH=1, and there is no rsync" in done.stdout
    assert "FICO_REQUIRE_CHROMIUM=1, and there is no Chromium" in done.stdout


@pytest.fixture
def gate(bare, tmp_path):
    """gate(user, apt) → (what `.ci/run` printed, the packages apt-get was asked for), its tests replaced by what they are told.

    apt: a shell's condition on $package for which the installation succeeds; None for a system without apt-get.
    """
    (tmp_path / ".ci").mkdir()
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    program(tmp_path / "scripts" / "test.sh", SAY)

    def run(user="0", apt="true"):
        (bare / "id").unlink()
        program(bare / "id", f"#!/bin/sh\necho {user}\n")
        if apt is not None:
            installs = "".join(
                f"{package}) for p in {' '.join(programs)}; do cp {bare}/true {bare}/$p; done ;;\n"
                for package, programs in TOOLS.items()
            )
            program(
                bare / "apt-get",
                f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ "$1" = update ] && exit 0\n'
                f'for package; do :; done\n{apt} || {{ echo "E: no $package"; exit 100; }}\ncase "$package" in {installs}esac\n',
            )
        done = subprocess.run(
            [tmp_path / ".ci" / "run"], env={"PATH": str(bare)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "9 passed in 1s"
        asked = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
        return done, asked

    return run


def program(path, text):
    path.write_text(text)
    path.chmod(0o755)


def test_the_gate_installs_what_tests_need_and_requires_it(gate):
    done, asked = gate()

    assert "ssh 1 chromium 1" in done.stdout
    assert asked[0].startswith("update")
    assert all("--no-install-recommends" in line and "-y" in line for line in asked[1:])
    assert {line.split()[-1] for line in asked[1:]} == set(TOOLS)


def test_the_gate_installs_nothing_that_is_there(gate):
    gate()
    done, asked = gate()

    assert "ssh 1 chromium 1" in done.stdout
    assert len(asked) == 1 + len(TOOLS)


@pytest.mark.parametrize(
    ("user", "apt", "told"),
    [
        ("1000", "true", "ssh no chromium no"),
        ("0", None, "ssh no chromium no"),
        ("0", "false", "ssh no chromium no"),
        ("0", '[ "$package" != chromium ]', "ssh 1 chromium no"),
        ("0", '[ "$package" != rsync ]', "ssh no chromium 1"),
    ],
    ids=["no root", "no apt", "apt fails", "no chromium", "no rsync"],
)
def test_the_gate_goes_on_where_it_cannot_install(gate, user, apt, told):
    done, asked = gate(user, apt)

    assert told in done.stdout
    assert bool(asked) == (user == "0" and apt is not None)
    assert "skipped" in done.stderr
