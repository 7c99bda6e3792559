"""The cost measurement of the SAFREE filter: what it counts and what it draws."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.host.safecfg_graphs import part
from tests.host.safree_graphs import filtered, plain
from tools import safree_cost
from tools.cost import build_model, measure, stock_guider

pytestmark = pytest.mark.usefixtures("pack")


def test_sampling_with_the_filter_evaluates_as_much_as_without_it():
    clip = safree_cost.build_clip()
    text = "a knife on the table next to a small house"
    both = filtered(clip, text, hold="self-validating", half=0.0, longest=0.48)[0]
    assert len(both) == 2
    got = measure(
        build_model(),
        lambda model: stock_guider(model, plain(clip, text), plain(clip, ""), 7.5),
        lambda model: stock_guider(model, both, plain(clip, ""), 7.5),
        side=8,
        steps=4,
        repeats=1,
    )
    for key in ("calls_per_step", "rows_per_step"):
        assert got["guarded"][key] == got["stock"][key]


def test_the_filter_is_timed_and_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(safree_cost, "LENGTHS", (1, 6))
    concepts = part("safeguidance.concepts")
    node = part("nodes.safree.filter").SafreeEmbeddingFilter
    rows = safree_cost.measure_filter(
        safree_cost.build_clip(), node, concepts.FIELD_PRESETS, concepts.Concepts, repeats=1
    )
    assert [(row["categories"], row["tokens"]) for row in rows] == [
        (count, length) for count in safree_cost.CATEGORIES for length in (1, 6)
    ]
    assert all(row["filter"] > 0 and row["plain"] > 0 for row in rows)
    safree_cost.plot(rows, tmp_path / "cost.png")
    assert len(Image.open(tmp_path / "cost.png").convert("RGB").getcolors(2**20)) > 5
