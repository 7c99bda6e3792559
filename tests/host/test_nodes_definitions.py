"""Every node of the pack explains itself."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.host.safecfg_graphs import part

pytestmark = pytest.mark.usefixtures("pack")
OURS = {
    "SafeGuidance_LoadHGR",
    "SafeGuidance_SafeCFGGuider",
    "SafeGuidance_SafeCFGPatch",
    "SafeGuidance_LoadTestbed",
}


def schemas():
    nodes = asyncio.run(part("nodes.extension").SafeGuidanceExtension().get_node_list())
    return [node.define_schema() for node in nodes]


def test_the_host_lists_all_nodes(host):
    assert OURS <= set(host.pack_nodes) == {schema.node_id for schema in schemas()}


def test_every_node_explains_itself():
    for schema in schemas():
        where = schema.node_id
        assert where.startswith("SafeGuidance_"), where
        assert schema.category.split("/")[0] == "SafeGuidance", where
        assert schema.display_name, where
        assert len(schema.description) > 40, where
        assert schema.search_aliases, where
        for port in schema.inputs:
            assert port.tooltip, f"{where}: input {port.id} has no tooltip"
            assert len(port.tooltip) > 15, f"{where}: input {port.id} has no tooltip"
            assert re.fullmatch(r"[a-z][a-z0-9_]*", port.id), f"{where}: {port.id}"
        for port in schema.outputs:
            assert port.tooltip, f"{where}: output {port.id or port.display_name} has no tooltip"
            assert port.id, f"{where}: output {port.id or port.display_name} has no tooltip"


def test_numbers_say_what_low_and_high_do():
    words = re.compile(r"\b(0|low|lower|below|off)\b.*\b(1|2|high|higher|above|on|up)\b", re.IGNORECASE | re.DOTALL)
    for schema in schemas():
        for port in schema.inputs:
            if getattr(port, "min", None) is not None:
                assert port.default is not None, port.id
                assert port.min <= port.default <= port.max, port.id
                assert words.search(port.tooltip), f"{schema.node_id}: {port.id}: {port.tooltip}"


def test_tooltips_reach_the_user(object_info):
    for name in OURS:
        info = object_info[name]
        given = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        assert all(options[1].get("tooltip") for options in given.values()), name
        assert all(info["output_tooltips"]), name
    rescale = object_info["SafeGuidance_SafeCFGGuider"]["input"]["optional"]["rescale"]
    assert rescale[1]["advanced"] is True


def test_the_paper_is_named():
    for schema in schemas():
        if "SafeCFG" in schema.display_name or "HGR" in schema.display_name:
            assert "2412.16039" in schema.description, schema.node_id


def test_the_model_folder_is_known(host):
    import folder_paths

    paths, suffixes = folder_paths.folder_names_and_paths["safeguidance"]
    assert suffixes == {".safetensors"}
    assert str(host.base_dir / "models" / "safeguidance") == paths[0]
    names = part("nodes.host.files").weight_names("hgr")
    assert not any("denoiser" in name or "encoder" in name or "oracle" in name for name in names)
