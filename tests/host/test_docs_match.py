"""Help pages and tooltips against the schemas that the host really shows."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"


def _pages(node_id):
    """The page that the editor shows, and the long one."""
    places = (DOCS / f"{node_id}.md", ROOT / "docs" / "nodes" / f"{node_id.removeprefix('SafeGuidance_')}.md")
    return [(place.relative_to(ROOT).as_posix(), place.read_text(encoding="utf-8")) for place in places]


def _ours(object_info):
    found = {name: info for name, info in object_info.items() if name.startswith("SafeGuidance_")}
    assert len(found) >= 7
    return found


def _inputs(info):
    return {name: value for group in ("required", "optional") for name, value in info["input"].get(group, {}).items()}


def test_every_input_and_output_is_on_the_nodes_page(object_info):
    for node_id, info in _ours(object_info).items():
        for place, page in _pages(node_id):
            missing = [name for name in _inputs(info) if f"`{name}`" not in page]
            assert not missing, f"{place} does not name the inputs {missing}"
            outputs = [name.lower() for name in info["output_name"]]
            missing = [name for name in outputs if f"`{name}`" not in page]
            assert not missing, f"{place} does not name the outputs {missing}"


def test_a_page_names_no_input_that_is_gone(object_info):
    for node_id, info in _ours(object_info).items():
        for place, page in _pages(node_id):
            table = page.split("## Inputs", 1)[1].split("\n## ", 1)[0]
            known = {*_inputs(info), *(name.lower() for name in info["output_name"])}
            named = set(re.findall(r"^(?:\| `(\w+)` \||- `(\w+)`:)", table, re.MULTILINE))
            named = {first or second for first, second in named}
            assert named <= known, f"{place} names {sorted(named - known)}"


def test_every_input_and_output_has_a_tooltip(object_info):
    for node_id, info in _ours(object_info).items():
        for name, value in _inputs(info).items():
            assert len(value) > 1, f"{node_id}, {name} has no tooltip"
            assert len(value[1].get("tooltip", "")) > 20, f"{node_id}, {name} has no tooltip"
        assert all(info["output_tooltips"]), node_id
        assert len(info["output_tooltips"]) == len(info["output"]), node_id
        assert info["description"], node_id
        assert info["display_name"], node_id


def test_the_host_serves_the_pages(host):
    import nodes

    folders = [Path(folder) for folder in nodes.EXTENSION_WEB_DIRS.values()]
    assert any((folder / "docs" / "SafeGuidance_SafetyReport.md").is_file() for folder in folders)
