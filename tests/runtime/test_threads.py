"""Threads: physical cores, within what a container may use."""

import os

import pytest

from fico_export.runtime.backends.ort.threads import default_threads, physical_cores, quota


@pytest.mark.parametrize(
    ("siblings", "cores"),
    [
        (["0,2", "1,3", "0,2", "1,3"], 2),
        (["0-1", "0-1"], 1),
        (["0", "1", "2"], 3),
        (["", "", ""], 3),  # the system does not tell
        (["0,4"], 1),
    ],
)
def test_a_core_counts_once(siblings, cores):
    assert physical_cores(siblings) == cores


@pytest.mark.parametrize(
    ("limit", "cpus"),
    [
        ("max 100000", None),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("1000 100000", 1),
        ("", None),
        ("x", None),
    ],
)
def test_a_quota_is_rounded_up(limit, cpus):
    assert quota(limit) == cpus


def test_this_machine_has_some():
    assert 1 <= default_threads() <= (os.cpu_count() or 1)
