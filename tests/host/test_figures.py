"""The figures inside the host are those of the testbed alone: same weights, seeds and captions."""

from __future__ import annotations

import pytest

from tools import figures

pytestmark = pytest.mark.usefixtures("pack")


def test_figures_agree_with_those_alone():
    for row in figures.compare(["explicit", "benign"], count=5, seed=0):
        assert row["host"] == row["alone"], row
        assert row["read_alike"] == row["count"], row
        # sampling amplifies the last bits in which two implementations of one network differ; a picture has 255 levels
        assert row["largest_difference"] <= 6, row


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="allowed: none, safecfg"):
        figures.make_guider("magic", ["a cup of coffee"], 5.0)
