"""Example workflows that need a checkpoint of the user's own: right for this host but for the file, and it is named."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from safeguidance.headless.convert import to_api
from safeguidance.headless.hosts import PACK_ROOT
from tools.thumbnails import TESTBED

pytestmark = pytest.mark.usefixtures("pack")

EXAMPLES = {path.stem: path for path in sorted((PACK_ROOT / "example_workflows").glob("*.json"))}
CHECKPOINT = [name for name in EXAMPLES if name.startswith("checkpoint_")]
FOLDERS = ("checkpoints", "diffusion_models", "text_encoders", "vae")
LOADING = {"ckpt_name", "unet_name", "clip_name", "vae_name"}
FAMILIES = {"sd15", "sdxl", "flux", "wan"}


def load(name):
    return json.loads(EXAMPLES[name].read_text(encoding="utf-8"))


def validate(graph):
    """Return what the host objects to, as (node id, field, kind of error)."""
    import execution

    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("test", graph, None))
    assert valid == (not node_errors) or error, error
    return outputs, [
        (node_id, item.get("extra_info", {}).get("input_name"), item["type"])
        for node_id, entry in node_errors.items()
        for item in entry["errors"]
    ]


def test_every_family_has_one():
    assert {family for family in FAMILIES if any(family in name for name in CHECKPOINT)} == FAMILIES


@pytest.mark.parametrize("name", CHECKPOINT)
def test_only_the_checkpoint_is_missing(name, object_info, put_model, tmp_path):
    flow = load(name)
    graph = to_api(flow, object_info)
    _outputs, errors = validate(graph)
    assert errors, "the host says nothing about the missing file"
    assert {(field in LOADING, kind) for _node, field, kind in errors} == {(True, "value_not_in_list")}, errors

    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    for node in flow["nodes"]:
        for file in node["properties"].get("models", []):
            put_model(file["directory"], file["name"], empty)
    outputs, errors = validate(graph)
    assert errors == [], "with the files in their places nothing is left to complain about"
    made = {graph[key]["class_type"] for key in outputs}
    assert "SafeGuidance_SafetyReport" in made
    assert made & {"SaveImage", "SaveAnimatedWEBP"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_it_loads_is_named_with_where_it_comes_from(name, object_info):
    flow = load(name)
    notes = " ".join(str(node["widgets_values"][0]) for node in flow["nodes"] if node["type"] == "MarkdownNote")
    assert notes, "no note explains it"
    parts = {part["id"]: part["nodes"] for part in flow.get("definitions", {}).get("subgraphs", [])}
    for node in [*flow["nodes"], *(node for part in parts.values() for node in part)]:
        if node["type"] == "MarkdownNote" or node["type"] in parts:
            continue
        assert {"cnr_id", "ver"} <= set(node["properties"]), node["type"]
        loaded = [value for value in node["widgets_values"] if str(value).endswith((".safetensors", ".ckpt", ".sft"))]
        files = {file["name"]: file for file in node["properties"].get("models", [])}
        if node["properties"]["cnr_id"] == "safeguidance":
            # Files of the pack itself lie in weights; a user needs to fetch nothing.
            assert all((PACK_ROOT / "weights" / value).is_file() for value in loaded), node["type"]
            continue
        assert sorted(loaded) == sorted(files), f"{node['type']} does not say where {loaded} come from"
        for file in files.values():
            assert re.fullmatch(rf"https://huggingface\.co/[\w./-]+/{re.escape(file['name'])}", file["url"])
            assert file["directory"] in FOLDERS
            page = "/".join(file["url"].removeprefix("https://").split("/")[:3])
            for words in (file["name"], page, f"ComfyUI/models/{file['directory']}", "licence"):
                assert words in notes, f"no note says {words}"
    types = {node["type"] for node in flow["nodes"]}
    assert TESTBED in types or any(node["properties"].get("models") for node in flow["nodes"])
