"""Programs that some tests need beside Python: without them a test is skipped, and says what installs them.

FICO_REQUIRE_SSH=1 and FICO_REQUIRE_CHROMIUM=1 make it fail instead: `.ci/run` sets them where it has installed the programs.
"""

import os
import shutil
from collections import defaultdict
from pathlib import PurePosixPath

import pytest

PACKAGES = {"ssh": "openssh-server rsync", "chromium": "chromium"}
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def lacking(part, why):
    """Skip the test that calls this for want of a part of `PACKAGES`, or fail it where that part is required."""
    variable = f"FICO_REQUIRE_{part.upper()}"
    if os.environ.get(variable) == "1":
        pytest.fail(f"{variable}=1, and {why}")
    pytest.skip(f"{why}: apt install {PACKAGES[part]}")


def require(part, *programs):
    """Skip or fail the test that calls this where one of the programs is not on PATH."""
    for program in programs:
        if shutil.which(program) is None:
            lacking(part, f"there is no {program}")


def chromium():
    """The browser's command, of any of its names."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    return found or lacking("chromium", "there is no Chromium")


def skipped(reports):
    """A line for each reason, with the number of tests (or files, skipped whole) and the folders they are in."""
    folders, counts = defaultdict(set), defaultdict(int)
    for report in reports:
        reason = report.longrepr[2].removeprefix("Skipped: ")
        folders[reason].add(str(PurePosixPath(report.nodeid.partition("::")[0]).parent))
        counts[reason] += 1
    return [f"{counts[r]:>4} in {', '.join(sorted(folders[r]))}: {r}" for r in sorted(counts)]
