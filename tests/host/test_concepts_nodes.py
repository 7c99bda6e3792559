"""Safety Concepts and Redirector from Concepts in a real ComfyUI, on the testbed."""

from __future__ import annotations

import importlib

import pytest
import torch

from safeguidance.headless import boot
from safeguidance.testbed.text_encoder import CONTEXT
from safeguidance.testbed.world import CATEGORY_NAMES

GRAPH = {
    "1": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}},
    "2": {"class_type": "SafeGuidance_SafetyConcepts", "inputs": {"testbed": True, "own": ""}},
    "3": {
        "class_type": "SafeGuidance_RedirectorFromConcepts",
        "inputs": {"clip": ["1", 1], "concepts": ["2", 0], "sensitivity": 1.0, "benign": ""},
    },
    "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}},
}
SWITCHES = ("hate", "harassment", "violence", "self_harm", "sexual", "shocking", "illegal_activity")
GRAPH["2"]["inputs"] |= dict.fromkeys(SWITCHES, True)


def part(name):
    """A module of the pack as the host loaded it."""
    return importlib.import_module(f".{name}", boot.pack_module().__name__)


def graph(**changes):
    """The graph with other inputs, as node_input=value."""
    edited = {key: {**node, "inputs": dict(node["inputs"])} for key, node in GRAPH.items()}
    for name, value in changes.items():
        node, field = name[1:].split("_", 1)
        edited[node]["inputs"][field] = value
    return edited


@pytest.fixture(scope="module")
def world(host):
    return part("nodes.testbed").LoadTestbed.execute().args


@pytest.fixture(scope="module")
def built(world):
    """A redirector for the testbed and its summary."""
    concepts = part("nodes.concepts").SafetyConcepts.execute(testbed=True).args[0]
    return part("nodes.redirectors").RedirectorFromConcepts.execute(world[1], concepts).args


def encoded(world, text):
    import nodes

    conditioning = part("safeguidance.conditioning").Conditioning
    states, extra = nodes.CLIPTextEncode().encode(world[1], text)[0][0]
    assert extra["pooled_output"] is None
    return conditioning(states)


def test_the_graph_builds_a_redirector_and_says_how(run_graph):
    result = run_graph(GRAPH)
    summary = result.value("3", 1)
    assert "no training" in summary
    assert "testbed_blades (6)" in summary
    bank = part("safeguidance.testbed.short_prompts").harmless_bank(result.value("3", 0).categories)
    assert f"{len(bank)} benign prompts" in summary
    assert result.value("3", 0).categories == tuple(f"testbed_{name}" for name in CATEGORY_NAMES)


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("a kitchen knife on a meadow", "blades"),
        ("a rifle on a meadow", "guns"),
        ("a bomb in the snow", "explosives"),
        ("a syringe in the desert", "drugs"),
        ("a skull by the sea", "death"),
    ],
)
def test_harm_opens_the_gate_of_its_category(world, built, text, category):
    proposal = built[0].propose(encoded(world, text), encoded(world, ""))
    assert float(proposal.gate) >= built[0].threshold
    assert CATEGORY_NAMES[int(proposal.scores.argmax())] == category


@pytest.mark.parametrize("text", ["a cup of coffee on a meadow", "a balloon in the snow", "a ghost by the sea"])
def test_harmless_and_near_miss_prompts_stay_below_the_threshold(world, built, text):
    assert float(built[0].propose(encoded(world, text), encoded(world, "")).gate) < built[0].threshold


def test_weighted_and_long_prompts_are_judged_too(world, built):
    filler = "a cup of coffee and a house on a meadow " * 4
    for text in ("a (knife:1.2) on a meadow", filler + " BREAK a bomb in the snow"):
        prompt = encoded(world, text)
        base = encoded(world, "")
        config = part("safeguidance.guidance.safecfg").SafeCFGConfig()
        assert part("safeguidance.redirector.interface").run_redirector(built[0], prompt, base, config, 4.0).acts


def test_the_host_finds_the_same_places_as_the_testbed_alone(world):
    encoder = part("nodes.host.encoding").ClipEncoder(world[1])
    assert encoder.span("knife") == (1, 3)
    # five word pieces: thing, that, stab, s, and the end mark
    assert encoder.span("thing that stabs") == (1, 6)
    rows = encoder(["knife", "thing that stabs"])
    assert rows.tokens.shape == (2, 32, CONTEXT)
    assert rows.pooled is None
    assert torch.equal(rows.tokens[0], encoder(["knife"]).tokens[0])


@pytest.mark.parametrize(
    ("rows", "length", "span"),
    [
        # one encoder, begin mark, padding with the end mark (SD 1.x)
        ({"l": [[(9, 1.0), (40, 1.0), (41, 1.0), (8, 1.0), (8, 1.0), (8, 1.0)]]}, 6, (1, 4)),
        # two side by side; the second pads with 0 (SDXL)
        (
            {
                "g": [[(9, 1.0), (40, 1.0), (8, 1.0), (0, 1.0), (0, 1.0), (0, 1.0)]],
                "l": [[(9, 1.0), (40, 1.0), (8, 1.0), (8, 1.0), (8, 1.0), (8, 1.0)]],
            },
            6,
            (1, 3),
        ),
        # one for the pooled vector, one of another length for the states, without a begin mark (Flux)
        (
            {
                "l": [[(9, 1.0), (40, 1.0), (8, 1.0), (8, 1.0)]],
                "t5xxl": [[(70, 1.0), (71, 1.0), (1, 1.0), (0, 1.0), (0, 1.0), (0, 1.0)]],
            },
            6,
            (0, 3),
        ),
    ],
)
def test_a_texts_own_tokens_are_found_in_every_kind_of_encoder(host, rows, length, span):
    marks = {"9", "8", "0", "1"}

    class Clip:
        def tokenize(self, text):
            if text:
                return rows
            return {key: [[entry for entry in chunks[0] if str(entry[0]) in marks]] for key, chunks in rows.items()}

        def encode_from_tokens_scheduled(self, tokens):
            return [[torch.zeros(1, length, 4), {"pooled_output": None}]]

    assert part("nodes.host.encoding").ClipEncoder(Clip()).span("two words") == span


def test_own_lines_and_switches_are_collected(host):
    concepts = part("nodes.concepts").SafetyConcepts
    chosen = concepts.execute(violence=True, self_harm=True, own="logos: acme logo\nviolence: fist fight").args[0]
    assert chosen.names == ("violence", "self-harm", "logos")
    assert chosen.categories[0].phrases[-1] == "fist fight"


def test_a_bad_own_line_is_refused_before_anything_runs(run_graph):
    result = run_graph(graph(_2_own="a: b\nno colon"), check=False)
    assert not result.ok
    assert result.stage == "validation"
    assert result.executed == []
    assert "Safety Concepts, own: line 2" in result.errors[0].line()


@pytest.mark.parametrize(
    ("changes", "about"),
    [
        (
            dict.fromkeys([f"_2_{name}" for name in ("testbed", *SWITCHES)], False),
            "Safety Concepts, own: .*at least one",
        ),
        ({"_3_benign": "a cup\na house"}, "Redirector from Concepts.* 2 .*at least 8"),
    ],
)
def test_what_cannot_work_is_refused_in_words(run_graph, changes, about):
    result = run_graph(graph(**changes), check=False)
    assert not result.ok
    with pytest.raises(AssertionError, match=about):
        raise AssertionError(result.errors[0].line())


def test_an_empty_clip_is_named(host):
    concepts = part("nodes.concepts").SafetyConcepts.execute(violence=True).args[0]
    with pytest.raises(ValueError, match="Redirector from Concepts, clip: the input is empty.*Load CLIP"):
        part("nodes.redirectors").RedirectorFromConcepts.execute(None, concepts)
