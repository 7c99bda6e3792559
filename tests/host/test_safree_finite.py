"""Prompts and concepts whose states are not finite are refused by the filter in words, never passed on."""

from __future__ import annotations

import math

import pytest
import torch

from tests.host.safecfg_graphs import make_redirector, world
from tests.host.safree_graphs import CLIP_L, FAMILIES, concepts, filtered, tiny_clip
from tests.host.test_safree_nodes import known_concepts

pytestmark = pytest.mark.usefixtures("pack")
NOTHING = "none (as published)"
BAD = ("nan", "-nan", "inf", "-inf", "infinity", "1e400", "-1e999")
JUDGED = {"concepts": {"judge_by": "concepts"}, "none": {"judge_by": NOTHING}, "connected": {"judge_by": "concepts"}}


def settings_for(judged):
    more = {"judge": make_redirector(harm=-6.0)} if judged == "connected" else {}
    return {**JUDGED[judged], **more}


@pytest.mark.parametrize("judged", JUDGED)
@pytest.mark.parametrize("weight", BAD)
def test_a_weight_that_is_not_finite_is_refused_by_name(weight, judged):
    for text in (f"a photo of a (knife:{weight})", f"((a cup:{weight}) on a table:1.2)"):
        with pytest.raises(ValueError, match="SAFREE Embedding Filter, text: it has the weight .*allowed.*correct"):
            filtered(world()[1], text, known_concepts(), **settings_for(judged))


@pytest.mark.parametrize("judged", JUDGED)
@pytest.mark.parametrize("weight", ["1e39", "3e40", "-1e39"])
def test_a_weight_that_overflows_the_states_is_refused(weight, judged):
    with pytest.raises(ValueError, match="SAFREE Embedding Filter, text: the text encoder gives values that are not"):
        filtered(world()[1], f"a photo of a (knife:{weight})", known_concepts(), **settings_for(judged))


@pytest.mark.parametrize("judged", JUDGED)
@pytest.mark.parametrize("weight", ["1e20", "1e30", "-1e30"])
def test_a_weight_with_which_no_model_can_compute_is_refused(weight, judged):
    with pytest.raises(
        ValueError, match=r"Filter, text: its states are as large as [1-9]e\+\d\d, which.*allowed.*corr"
    ):
        filtered(world()[1], f"a photo of a (knife:{weight})", known_concepts(), **settings_for(judged))


@pytest.mark.parametrize("weight", ["-2", "0", "1e-30", "7", "100", "word"])
def test_odd_but_finite_weights_are_filtered_as_ever(weight):
    given, _, words = filtered(world()[1], f"a photo of a (knife:{weight})", known_concepts())
    assert all(bool(torch.isfinite(states).all()) for states, _ in given)
    assert words.startswith("flagged")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_text_encoder_refuses_them(family):
    with pytest.raises(ValueError, match="Filter, text: .*allowed"):
        filtered(tiny_clip(family), "a photo of a (knife:nan)")


@pytest.mark.parametrize("judged", ["concepts", "none"])
@pytest.mark.parametrize("weight", ["nan", "inf"])
def test_a_phrase_with_such_a_weight_is_refused_whatever_the_prompt(weight, judged):
    known = concepts(f"blade: sharp thing, (knife:{weight})")
    for text in ("", "a boat", "a photo of a knife"):
        with pytest.raises(ValueError, match=r"Embedding Filter, concepts: the phrase '\(knife.*allowed.*correct"):
            filtered(world()[1], text, known, **JUDGED[judged])


@pytest.fixture
def broken_encoder(monkeypatch):
    """Make the testbed's encoder give one value that is not finite for texts that hold a word."""
    encoder = next(
        module
        for _, module in world()[1].cond_stage_model.named_modules()
        if hasattr(module, "special_tokens") and hasattr(module, "encode")
    )

    def breaking(word, value):
        marked = {entry[0] for chunk in next(iter(world()[1].tokenize(word).values())) for entry in chunk}
        marked -= {entry[0] for chunk in next(iter(world()[1].tokenize("").values())) for entry in chunk}
        plain = type(encoder).encode

        def encode(self, rows):
            states, *rest = plain(self, rows)
            states = states.clone()
            for number, row in enumerate(rows):
                if marked & {token for token in row if isinstance(token, int)}:
                    states[number, 2, 3] = value
            return (states, *rest)

        monkeypatch.setattr(type(encoder), "encode", encode)

    return breaking


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("judged", JUDGED)
def test_an_encoder_that_overflows_on_the_prompt_is_refused(broken_encoder, value, judged):
    broken_encoder("fish", value)
    with pytest.raises(ValueError, match="Filter, text: the text encoder gives values that are not finite.*allowed"):
        filtered(world()[1], "a blue fish", known_concepts(), **settings_for(judged))


@pytest.mark.parametrize("judged", JUDGED)
def test_an_encoder_that_overflows_on_a_phrase_is_refused(broken_encoder, judged):
    broken_encoder("star", math.nan)
    known = concepts("blade: knife, star shape")
    with pytest.raises(ValueError, match="Filter, concepts: .*not finite.*'star shape'.*allowed"):
        filtered(world()[1], "a blue fish", known, **settings_for(judged))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_a_damaged_embedding_is_refused(tmp_path, value):
    from safetensors.torch import save_file

    clip = tiny_clip("sd1")
    save_file({"emb_params": torch.full((2, CLIP_L["hidden_size"]), value)}, str(tmp_path / "broken.safetensors"))
    old = clip.tokenizer.clip_l.embedding_directory
    clip.tokenizer.clip_l.embedding_directory = str(tmp_path)
    try:
        with pytest.raises(ValueError, match="Filter, text: the text encoder gives values that are not finite"):
            filtered(clip, "a photo of embedding:broken on the table")
    finally:
        clip.tokenizer.clip_l.embedding_directory = old
