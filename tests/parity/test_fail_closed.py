"""A comparison passes what it has seen to be equal, and nothing else."""

import numpy as np
import pytest

from fico_export.errors import ParityError
from fico_export.parity.compare import compare
from fico_export.parity.report import Check, Report, require

GOOD = np.ones((2, 3), np.float32)


def spoilt(value):
    rows = GOOD.copy()
    rows[1, 1] = value
    return rows


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_value_that_is_no_number_fails_wherever_it_stands(precision, value, place):
    for pair in ((spoilt(value), GOOD), (GOOD, spoilt(value)), (spoilt(value), spoilt(value))):
        pairs = [(GOOD, GOOD)] * 3
        pairs[place] = pair
        report = Report("bundle", precision)
        compare(report, "graph", pairs)

        assert "cosine" in {check.metric for check in report.failed}
        with pytest.raises(ParityError, match="graph: "):
            require(report)


def test_a_parity_error_names_the_value_and_the_threshold():
    report = Report("bundle", "fp32", [Check("decoder", "cosine", 0.875, 0.99999, True, "on image 2")])

    with pytest.raises(
        ParityError, match=r"decoder: cosine is 0\.875, not at least 0\.99999\. on image 2"
    ) as raised:
        require(report)
    assert "--precision fp32" in raised.value.fix


def test_nan_points_at_the_weights():
    report = Report("bundle", "fp32", [Check("decoder", "cosine", float("nan"), 0.99999, True)])

    with pytest.raises(ParityError) as raised:
        require(report)
    assert "NaN" in raised.value.fix


def test_a_check_that_could_not_run_has_not_passed():
    report = Report("bundle", "fp32", [Check("decoder", "cosine", None, None, True, "no memory")])

    assert [check.status for check in report.skipped] == ["skipped"]
