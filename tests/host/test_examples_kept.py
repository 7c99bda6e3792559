"""Example workflows hold the graphs they are kept as, with what stands in subgraphs."""

from __future__ import annotations

import json

import pytest

from safeguidance.headless.convert import to_api
from safeguidance.headless.hosts import PACK_ROOT
from tools.scene import to_scene

pytestmark = pytest.mark.usefixtures("pack")

GRAPHS = {path.stem: path for path in sorted((PACK_ROOT / "tools" / "data" / "graphs").glob("*.json"))}


def inner(value):
    """A link without the subgraphs it leads into."""
    return [value[0].rpartition(":")[2], value[1]] if isinstance(value, list) and len(value) == 2 else value


@pytest.mark.parametrize("name", GRAPHS)
def test_a_workflow_is_the_graph_it_is_kept_as(name, object_info):
    kept = json.loads(GRAPHS[name].read_text(encoding="utf-8"))
    flow = json.loads((PACK_ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
    made = to_api(flow, object_info)
    nodes = {key: node for key, node in kept.items() if not key.startswith("_")}
    assert sorted(key.rpartition(":")[2] for key in made) == sorted(nodes)
    for key, node in made.items():
        meant = nodes[key.rpartition(":")[2]]
        assert node["class_type"] == meant["class_type"]
        for field, value in meant["inputs"].items():
            assert inner(node["inputs"][field]) == value, f"{key}.{field}"


@pytest.mark.parametrize("name", ["1_start_here", "safecfg_over_sp_guard"])
def test_writing_it_again_gives_the_same_places(name, object_info):
    kept = json.loads(GRAPHS[name].read_text(encoding="utf-8"))
    flow = json.loads((PACK_ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
    again = to_scene(kept, object_info)
    assert {node["id"]: (node["pos"], node["size"]) for node in again["nodes"]} == {
        node["id"]: (node["pos"], node["size"]) for node in flow["nodes"]
    }
