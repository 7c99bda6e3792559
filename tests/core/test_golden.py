"""The comparison of the nodes with those in users' saved graphs finds what would break them."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest

from tools import golden, locales, worker

INFO = {
    "SafeGuidance_A": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "scale": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 2.0}],
                "mode": [["soft", "hard"], {"default": "soft"}],
            },
            "optional": {"mask": ["MASK", {}]},
        },
        "output": ["GUIDER", "TRACE"],
        "output_name": ["guider", "trace"],
        "deprecated": False,
    }
}


def changed(change):
    info = copy.deepcopy(INFO)
    change(info, info["SafeGuidance_A"]["input"]["required"])
    return golden.compare(golden.describe(INFO), golden.describe(info))


def node(info):
    return info["SafeGuidance_A"]


BREAKING = {
    "the node is gone": lambda info, required: info.clear(),
    "input scale is gone": lambda info, required: required.pop("scale"),
    "default of input scale was 1.0, is 1.5": lambda info, required: required["scale"][1].update(default=1.5),
    "max of input scale": lambda info, required: required["scale"][1].update(max=1.0),
    "type of input model was 'MODEL', is 'LATENT'": lambda info, required: required.update(model=["LATENT", {}]),
    "choices of input mode": lambda info, required: required.update(mode=[["soft"], {"default": "soft"}]),
    "output 0 was": lambda info, required: node(info).update(output=["MODEL", "TRACE"]),
    "output 1 was": lambda info, required: node(info).update(output=["GUIDER"], output_name=["guider"]),
    "the order of the inputs": lambda info, required: required.update(scale=required.pop("scale")),
    "the new input clip is required": lambda info, required: required.update(clip=["CLIP", {}]),
    "optional of input mask": lambda info, required: required.update(mask=node(info)["input"]["optional"].pop("mask")),
}


@pytest.mark.parametrize("text", BREAKING)
def test_what_breaks_a_saved_graph_is_found(text):
    broken, _added = changed(BREAKING[text])
    assert any(text in line for line in broken), broken


def test_a_new_widget_before_old_ones_shifts_saved_values():
    def insert(info, required):
        node(info)["input"]["required"] = {"early": ["FLOAT", {"default": 0.0}], **required}

    broken, added = changed(insert)
    assert any("early stands before old ones" in line for line in broken)
    assert added


HARMLESS = {
    "new node": lambda info, required: info.update(SafeGuidance_B=copy.deepcopy(node(info))),
    "new input late": lambda info, required: required.update(late=["FLOAT", {"default": 0.0}]),
    "new output more": lambda info, required: node(info).update(
        output=["GUIDER", "TRACE", "FLOAT"], output_name=["guider", "trace", "more"]
    ),
    "choices of input mode": lambda info, required: required["mode"][0].append("new"),
    "deprecated is now True": lambda info, required: node(info).update(deprecated=True),
}


@pytest.mark.parametrize("text", HARMLESS)
def test_additions_are_only_listed(text):
    broken, added = changed(HARMLESS[text])
    assert broken == [], (broken, added)
    assert any(text in line for line in added), (broken, added)


def test_a_deprecated_node_may_go():
    old = copy.deepcopy(INFO)
    old["SafeGuidance_A"]["deprecated"] = True
    broken, added = golden.compare(golden.describe(old), {})
    assert broken == []
    assert added == ["SafeGuidance_A: removed after its deprecation"]


def test_writing_refuses_a_break_and_takes_an_addition(tmp_path, monkeypatch):
    monkeypatch.setattr(golden, "FILE", tmp_path / "data" / "nodes.json")
    said = []
    assert golden.run(INFO, False, said.append) == 1
    assert "new node" in said[0]
    assert golden.run(INFO, True, said.append) == 0
    assert golden.run(INFO, False, said.append) == 0
    written = golden.FILE.read_text()
    said.clear()
    assert golden.run({}, True, said.append) == 1
    assert golden.FILE.read_text() == written
    assert "deprecated" in said[-1]


def test_refresh_writes_everything_in_one_go_or_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(golden, "FILE", tmp_path / "data" / "nodes.json")
    monkeypatch.setattr(locales, "FOLDER", tmp_path / "locales")
    monkeypatch.setattr(locales, "SOURCES", tmp_path / "data" / "locales.json")
    shown, flows = copy.deepcopy(INFO), []
    monkeypatch.setattr(worker, "start_host", lambda spec, base: SimpleNamespace(pack_nodes=list(shown)))
    monkeypatch.setattr(worker.booting, "object_info", lambda names: shown)
    monkeypatch.setattr(worker, "_write_workflows", lambda spec, host: flows.append(host.pack_nodes))
    assert worker.COMMANDS["refresh"]({}, tmp_path) == 0
    assert golden.load() == golden.describe(INFO)
    assert locales.load("en") == locales.texts_of(INFO)
    assert flows == [["SafeGuidance_A"]]
    shown["SafeGuidance_A"]["input"]["required"].pop("scale")
    assert worker.COMMANDS["refresh"]({}, tmp_path) == 1
    assert golden.load() == golden.describe(INFO)
    assert locales.load("en") == locales.texts_of(INFO)
    assert len(flows) == 1
