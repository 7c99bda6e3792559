"""The host's nodes that touch model, guider, conditioning or cfg: each has a class."""

from __future__ import annotations

import pytest

from tools import host_nodes
from tools.host_nodes import HOW_TO_CLASSIFY

pytestmark = pytest.mark.usefixtures("pack")


def test_every_node_has_a_class(object_info):
    missing = host_nodes.unclassified(object_info, host_nodes.load())
    assert not missing, f"without a class: {', '.join(missing)}. {HOW_TO_CLASSIFY}"


def test_the_census_finds_the_nodes_that_touch_guidance(object_info):
    found = set(host_nodes.census(object_info))
    assert {"KSampler", "CFGGuider", "RescaleCFG", "ModelMergeSimple", "ConditioningCombine", "LoraLoader"} <= found
    assert not any(name.startswith("SafeGuidance_") for name in found)
