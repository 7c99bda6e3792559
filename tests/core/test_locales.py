"""The texts of the nodes in the editor's languages: English is whole, no translation is broken.

What is not translated, or out of date, is shown in English; it is listed as a warning and fails nothing.
"""

from __future__ import annotations

import json
import warnings

import pytest

from tools import golden, locales

INFO = {
    "SafeGuidance_A": {
        "display_name": "A Guider",
        "description": "Steers the picture away from harm.",
        "category": "SafeGuidance/more",
        "input": {
            "required": {
                "model": ["MODEL", {"tooltip": "MODEL to sample with."}],
                "mode": ["COMBO", {"tooltip": "soft is 0.5, hard is 1.", "options": ["soft", "v1.5"]}],
                "file": [["a.safetensors"], {"tooltip": "Which file to load."}],
            },
            "optional": {"mask": ["MASK", {"display_name": "where", "tooltip": "Where it acts."}]},
        },
        "output": ["GUIDER", "MY_TRACE"],
        "output_name": ["GUIDER", "TRACE"],
        "output_tooltips": ["For the sampler.", "What it did."],
    },
    "SafeGuidance_B": {
        "display_name": "B",
        "category": "SafeGuidance",
        "input": {
            "required": {
                "model": ["MODEL", {"tooltip": "MODEL to sample with."}],
                "preset": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "tooltip": "How much.",
                        "options": [
                            {"key": "light", "inputs": {}},
                            {"key": "own", "inputs": {"required": {"size": ["FLOAT", {"tooltip": "How large."}]}}},
                        ],
                    },
                ],
            }
        },
        "output": [],
        "output_name": [],
    },
}
SOME = {
    "SafeGuidance_A.inputs.mode.tooltip": "doux : 0,5, dur : 1.",
    "SafeGuidance_A.inputs.model.tooltip": "MODEL avec lequel on travaille.",
}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Return English of the nodes above, in a folder of its own."""
    monkeypatch.setattr(locales, "FOLDER", tmp_path / "locales")
    monkeypatch.setattr(locales, "SOURCES", tmp_path / "data" / "locales.json")
    monkeypatch.setattr(locales, "LANGUAGES", ("fr",))
    assert locales.run(INFO, True, lambda text: None) == 0
    return locales.load("en")


def of_french():
    return locales.state(locales.load("en"), locales.load("fr"), locales.load_sources().get("fr", {}))


def test_english_names_every_node_input_choice_and_output():
    english = locales.load("en")
    for node_id, node in golden.load().items():
        assert f"{node_id}.display_name" in english, node_id
        assert f"{node_id}.description" in english, node_id
        for entry in node["inputs"]:
            key = f"{node_id}.inputs.{locales.part(entry['name'])}"
            assert f"{key}.name" in english, key
            assert f"{key}.tooltip" in english, key
            for choice in entry.get("choices", []):
                assert f"{key}.options.{locales.part(str(choice))}" in english, f"{key}: {choice}"
        for place in range(len(node["outputs"])):
            assert f"{node_id}.outputs.{place}.tooltip" in english, f"{node_id}, output {place}"
    gone = {key.split(".")[0] for key in english} - set(golden.load()) - set(locales.MAIN)
    assert not gone, f"texts of nodes that are gone: {gone}; run: python -m tools refresh"


def test_english_holds_no_command_of_the_editors_formatter():
    assert {key: text for key, text in locales.load("en").items() if locales.COMMANDS.search(text)} == {}


@pytest.mark.parametrize("language", ["en", *locales.present()])
def test_the_host_can_read_every_file(language):
    assert locales.unreadable(language) == []


@pytest.mark.parametrize("language", locales.present())
def test_no_translation_is_broken(language):
    found = locales.examine(language)
    if found.missing or found.stale:
        counts = f"{len(found.missing)} missing, {len(found.stale)} out of date"
        warnings.warn(f"{language}: {counts}, shown in English; list them: python -m tools locales", stacklevel=1)
    assert found.broken == []


def test_only_languages_of_the_editor_are_there():
    assert set(locales.present()) <= set(locales.LANGUAGES)
    assert set(locales.load_sources()) == set(locales.present())


def test_keys_are_those_the_editor_asks_for(kept):
    assert kept["SafeGuidance_A.inputs.mask.name"] == "where"
    assert kept["SafeGuidance_A.inputs.mode.options.v1_5"] == "v1.5"
    # An output named as its type is labelled with the editor's own word.
    assert "SafeGuidance_A.outputs.0.name" not in kept
    assert kept["SafeGuidance_A.outputs.1.name"] == "TRACE"
    assert not [key for key in kept if "safetensors" in key]
    assert kept["SafeGuidance_B.inputs.preset_size.tooltip"] == "How large."
    assert kept["SafeGuidance_B.inputs.preset_size.name"] == "size"
    assert kept["nodeCategories.SafeGuidance"] == "SafeGuidance"
    assert kept["nodeCategories.more"] == "more"
    served = json.loads((locales.FOLDER / "en" / "nodeDefs.json").read_text())
    assert served["SafeGuidance_A"]["outputs"]["1"]["tooltip"] == "What it did."
    assert "nodeCategories" not in served
    assert json.loads((locales.FOLDER / "en" / "main.json").read_text())["nodeCategories"]["more"] == "more"
    assert locales.flatten(served) | {key: text for key, text in kept.items() if "Categories" in key} == kept


def test_a_translator_gets_each_text_once_and_it_goes_everywhere(kept, tmp_path):
    said = []
    assert locales.export(tmp_path / "work", said.append) == 0
    work = json.loads((tmp_path / "work" / "fr.json").read_text())
    assert list(work.values()).count("MODEL to sample with.") == 1
    assert set(work.values()) == set(kept.values())
    path = tmp_path / "fr.json"
    path.write_text(json.dumps({key: f"\u00e9 {text}" for key, text in work.items()}), encoding="utf-8")
    assert locales.take_file(path, "", said.append) == 0
    french = locales.load("fr")
    assert french["SafeGuidance_B.inputs.model.tooltip"] == "\u00e9 MODEL to sample with."
    assert list(french) == list(kept)
    assert not of_french()
    assert locales.report(said.append)
    assert said[-1] == f"fr: complete, {len(kept)} texts"
    assert locales.export(tmp_path / "work", said.append) == 0
    assert json.loads((tmp_path / "work" / "fr.json").read_text()) == {}


def change_the_mode_and_drop_a_node():
    changed = json.loads(json.dumps(INFO))
    changed["SafeGuidance_A"]["input"]["required"]["mode"][1]["tooltip"] = "soft is 0.6, hard is 1."
    del changed["SafeGuidance_B"]
    return changed


def test_a_changed_english_text_is_found_and_its_translation_taken_out(kept):
    locales.take("fr", {key: f"fr {text}" for key, text in kept.items()})
    said = []
    assert locales.run(change_the_mode_and_drop_a_node(), False, said.append) == 1
    assert any("changed SafeGuidance_A.inputs.mode.tooltip" in line for line in said)
    assert "Run: python -m tools refresh" in said
    said.clear()
    assert locales.run(change_the_mode_and_drop_a_node(), True, said.append) == 0, "English is written"
    assert "fr: taken out, because their English text has changed: 1" in said
    assert "SafeGuidance_A.inputs.mode.tooltip" not in locales.load("fr")
    assert not [key for key in locales.load("fr") if key.startswith("SafeGuidance_B")]
    found = of_french()
    assert found.missing == ["SafeGuidance_A.inputs.mode.tooltip"]
    assert found.stale == []
    assert found.broken == []
    locales.take("fr", {"SafeGuidance_A.inputs.mode.tooltip": "doux : 0,6, dur : 1."})
    assert not of_french()


def test_an_outdated_translation_is_no_fault_until_it_is_written(kept):
    locales.take("fr", {key: f"fr {text}" for key, text in kept.items()})
    locales.save("en", {**locales.load("en"), "SafeGuidance_A.inputs.mode.tooltip": "soft is 0.6, hard is 1."})
    found = of_french()
    assert found.stale == ["SafeGuidance_A.inputs.mode.tooltip"]
    assert found.broken == [], "0.6 is not in it, but it was made from another text"
    said = []
    assert locales.report(said.append)
    assert "  stale SafeGuidance_A.inputs.mode.tooltip" in said


def test_english_texts_alone_are_enough(kept):
    said = []
    assert locales.run(INFO, False, said.append) == 0
    assert said == [f"fr: not begun, {len(kept)} texts"]
    locales.take("fr", SOME)
    said.clear()
    assert locales.run(INFO, False, said.append) == 0
    assert said[0] == f"fr: {len(kept) - 3} missing, {len(kept)} texts", "one text stands in two places"
    assert "  missing SafeGuidance_A.description" in said


def test_what_is_missing_or_has_no_source_or_no_node_is_found(kept):
    locales.take("fr", SOME)
    found = of_french()
    assert set(found.missing) == set(kept) - {*SOME, "SafeGuidance_B.inputs.model.tooltip"}
    assert not found.stale
    by_hand = {"SafeGuidance_A.inputs.mode.name": "mode", "SafeGuidance_X.name": "x"}
    locales.save("fr", {**locales.load("fr"), **by_hand})
    found = of_french()
    assert found.stale == ["SafeGuidance_A.inputs.mode.name"], "nobody knows what it was translated from"
    assert found.superfluous == ["SafeGuidance_X.name"]
    said = []
    assert not locales.report(said.append)
    assert "  BROKEN SafeGuidance_X.name: no node has this text" in said
    assert locales.run(INFO, True, said.append) == 0, "what no node has is not written again"
    assert locales.load("fr")["SafeGuidance_A.inputs.mode.name"] == "mode", "not known to be out of date"


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("nodeDefs.json", "[", "not JSON"),
        ("nodeDefs.json", "[]", "an object of texts is needed"),
        ("nodeDefs.json", '{"SafeGuidance_A": {"description": 3}}', "an object of texts is needed"),
        ("nodedefs.json", "{}", "the host serves no such file"),
    ],
)
def test_a_file_the_host_cannot_serve_is_found_and_left_alone(kept, name, content, why):
    locales.take("fr", SOME)
    path = locales.FOLDER / "fr" / name
    path.write_text(content)
    said = []
    assert not locales.report(said.append)
    assert any(line.startswith(f"  BROKEN fr/{name}") and why in line for line in said), said
    assert locales.run(INFO, True, said.append) == 1
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("text", "why"),
    [("doux {0.5} dur 1", "command"), ("doux dur : 1", "number 0.5 is missing"), (" ", "empty")],
)
def test_a_broken_translation_by_hand_fails(kept, text, why):
    key = "SafeGuidance_A.inputs.mode.tooltip"
    locales.take("fr", SOME)
    locales.save("fr", {**locales.load("fr"), key: text})
    assert why in of_french().faulty[key]
    assert locales.run(INFO, False, lambda line: None) == 1


@pytest.mark.parametrize(
    ("key", "text", "why"),
    [
        ("SafeGuidance_A.inputs.mode.tooltip", "doux : 0,5, dur : un.", "number 1 is missing"),
        ("SafeGuidance_A.inputs.mode.tooltip", "doux {0.5} dur 1", "command"),
        ("SafeGuidance_A.description", "Steers the picture away from harm.", "still English"),
        ("SafeGuidance_A.description", "  ", "empty"),
        ("SafeGuidance_A.descriptoin", "Guide l'image.", "no node has this text"),
        ("SafeGuidance_A.description", None, "not a text"),
    ],
)
def test_a_faulty_translation_is_not_taken(kept, key, text, why):
    with pytest.raises(locales.LocaleError, match=why) as error:
        locales.take("fr", {**SOME, key: text})
    assert key in str(error.value)
    assert locales.load("fr") == {}


def test_the_language_is_the_files_name_or_said(kept, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(SOME))
    said = []
    assert locales.take_file(path, "", said.append) == 2
    assert "--language" in said[0]
    assert locales.take_file(path, "fr", said.append) == 0
    assert locales.load("fr")
    path.write_text("[")
    assert locales.take_file(path, "fr", said.append) == 1
