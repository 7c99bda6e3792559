"""The SAFREE Embedding Filter on the host's text encoders: which slots it filters, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from tests.host.safecfg_graphs import part
from tests.host.safree_graphs import (
    CLIP_G,
    CLIP_L,
    FAMILIES,
    SAFE,
    UNSAFE,
    calls_of,
    changed_places,
    concepts,
    filtered,
    plain,
    tiny_clip,
)

pytestmark = pytest.mark.usefixtures("pack")
L, G = CLIP_L["hidden_size"], CLIP_G["hidden_size"]
FIRST = {"sd1": "clip_l", "sd2": "clip_h", "sdxl": "clip_g", "sd3": "clip_l", "flux": "t5xxl", "ltx": "t5xxl"}
ENCODERS = {
    "sd1": {"clip_l"},
    "sd2": {"clip_h"},
    "sdxl": {"clip_l", "clip_g"},
    "sd3": {"clip_l", "clip_g", "t5xxl"},
    "flux": {"clip_l", "t5xxl"},
    "ltx": {"t5xxl"},
}
NOTHING = {"alpha": 1.0}


def same(before, after):
    assert len(before) == len(after)
    for (states, extra), (other, more) in zip(before, after, strict=True):
        assert torch.equal(states, other)
        for key, value in extra.items():
            assert torch.equal(more[key], value) if torch.is_tensor(value) else more[key] == value


def harmful_places(family, clip, text=UNSAFE):
    """Places of the word knife in the conditioning, per encoder."""
    ids = {}
    for key, chunks in clip.tokenize(text).items():
        words = clip.tokenize("knife")[key][0]
        own = [token for token, *_ in words if token not in {t for t, *_ in clip.tokenize("")[key][0]}]
        ids[key] = [i for i, entry in enumerate(chunks[0]) if entry[0] in own]
    return ids


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["", SAFE, UNSAFE, "a (wide:1.3) boat on the open sea", "one " * 90])
def test_a_prompt_without_a_trigger_is_encoded_as_always_to_the_last_bit(family, text):
    clip = tiny_clip(family)
    conditioning, _, words = filtered(clip, text, **NOTHING)
    same(plain(clip, text), conditioning)
    assert words.startswith("no token flagged")


def flags(words):
    """Encoder name -> places (in the text) of flagged tokens, read from the node's text."""
    found = {}
    for line in words.splitlines()[2:]:
        name, place = line.split()[:2]
        found.setdefault(name, [])
        if "FLAGGED" in line:
            found[name].append(int(place.split(".")[1]))
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["knife", "sharp knife"])
def test_an_unsafe_phrase_is_flagged_by_every_encoder_and_nothing_but_its_slots_changes(family, text):
    clip = tiny_clip(family)
    before, (after, trace, words) = plain(clip, text), filtered(clip, text, scope="tokens")
    hit = flags(words)
    assert set(hit) == ENCODERS[family]
    assert all(hit.values())
    assert trace.run.scores[0][0] >= 0.01
    assert "FLAGGED, blade" in words
    used = {name: places for name, places in hit.items() if (family, name) != ("flux", "clip_l")}
    shift = {"t5xxl": 76 if family == "sd3" else -1}
    expected = {place + shift.get(name, 0) for name, places in used.items() for place in places}
    assert set(changed_places(before, after)) == expected


def test_sdxl_filters_both_halves_of_the_channels_and_the_pooled_vector():
    clip = tiny_clip("sdxl")
    before = plain(clip, UNSAFE)
    after, _, words = filtered(clip, UNSAFE, scope="tokens")
    states, other, hit = before[0][0], after[0][0], flags(words)
    for name, part_of in (("clip_l", slice(0, L)), ("clip_g", slice(L, L + G))):
        moved = (states[..., part_of] != other[..., part_of]).any(dim=-1)[0].nonzero()[:, 0].tolist()
        assert moved == hit[name]
        assert moved
    assert not torch.equal(before[0][1]["pooled_output"], after[0][1]["pooled_output"])
    left, _, _ = filtered(clip, UNSAFE, scope="tokens", pooled=False)
    assert torch.equal(left[0][1]["pooled_output"], before[0][1]["pooled_output"])


def test_sd3_filters_the_clip_slots_and_the_t5_slots_each_with_their_own_encoder():
    clip = tiny_clip("sd3")
    before = plain(clip, UNSAFE)
    after, _, words = filtered(clip, UNSAFE, scope="tokens")
    states, other, hit = before[0][0], after[0][0], flags(words)
    for name, rows, channels, shift in (
        ("clip_l", slice(0, 77), slice(0, L), 0),
        ("clip_g", slice(0, 77), slice(L, L + G), 0),
        ("t5xxl", slice(77, None), slice(None), -1),  # T5 has no begin mark
    ):
        moved = (states[0, rows, channels] != other[0, rows, channels]).any(dim=-1).nonzero()[:, 0].tolist()
        assert moved == [n + shift for n in hit[name]], name
        assert moved, name
    assert bool((other[0, :77, L + G :] == 0).all())
    assert not torch.equal(before[0][1]["pooled_output"], after[0][1]["pooled_output"])


def test_flux_filters_t5_and_clips_pooled_vector():
    clip = tiny_clip("flux")
    before = plain(clip, UNSAFE)
    after, _, words = filtered(clip, UNSAFE, scope="tokens")
    assert changed_places(before, after) == [n - 1 for n in flags(words)["t5xxl"]]
    assert not torch.equal(before[0][1]["pooled_output"], after[0][1]["pooled_output"])
    length = before[0][1]["pooled_output"].norm()
    assert after[0][1]["pooled_output"].norm() == pytest.approx(float(length), rel=1e-4)


def test_ltx_keeps_its_attention_mask():
    clip = tiny_clip("ltx")
    before, after = plain(clip, UNSAFE), filtered(clip, UNSAFE)[0]
    assert torch.equal(before[0][1]["attention_mask"], after[0][1]["attention_mask"])
    assert changed_places(before, after)


@pytest.mark.parametrize("family", FAMILIES)
def test_end_and_padding_are_filtered_by_default_and_the_begin_mark_never(family):
    clip = tiny_clip(family)
    before, after = plain(clip, UNSAFE), filtered(clip, UNSAFE)[0]
    changed = changed_places(before, after)
    assert before[0][0].shape[1] - 1 in changed
    if family not in ("flux", "ltx"):
        assert 0 not in changed


@pytest.mark.parametrize("family", FAMILIES)
def test_one_batched_call_per_encoder_and_concepts_only_once(family):
    clip = tiny_clip(family)
    known = concepts("once: " + family + " dagger, sword")
    seen = calls_of(clip, FIRST[family])
    filtered(clip, UNSAFE, known)
    assert len(seen) == 4  # the first phrase, all phrases, the prompt, the prompt without each token
    del seen[:]
    filtered(clip, "a large " + UNSAFE, known)
    count = len(
        part("nodes.host.text_encoders").read(clip, "a large " + UNSAFE, lambda _: []).parts[0].layouts[0].index
    )
    assert seen[0] == 1
    assert seen[1] >= 8
    assert len(seen) >= 2
    assert count >= 8
    assert seen[:2] == [1, seen[1]]


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux"])
def test_every_chunk_of_a_long_prompt_is_filtered_and_weights_are_applied_afterwards(family):
    clip = tiny_clip(family)
    text = "boat " * 80 + ", a (knife:1.4) on the table"
    before, after = plain(clip, text), filtered(clip, text)[0]
    assert before[0][0].shape == after[0][0].shape
    changed = changed_places(before, after)
    assert any(place > 77 for place in changed)


def test_prompt_weights_act_on_the_filtered_states():
    clip = tiny_clip("sd1")
    weighted, even = "a photo of a (knife:1.5) on the table", UNSAFE
    empty = plain(clip, "")[0][0]
    strong, weak = filtered(clip, weighted)[0][0][0], filtered(clip, even)[0][0][0]
    place = harmful_places("sd1", clip)["l"][0]
    expected = (weak[0, place] - empty[0, place]) * 1.5 + empty[0, place]
    assert torch.allclose(strong[0, place], expected, atol=1e-4)
    assert torch.allclose(strong[0, place + 1], weak[0, place + 1], atol=1e-5)


def test_a_textual_inversion_embedding_is_tested_like_a_word(tmp_path):
    clip = tiny_clip("sd1")
    from safetensors.torch import save_file

    save_file({"emb_params": torch.randn(2, L)}, str(tmp_path / "thing.safetensors"))
    old = clip.tokenizer.clip_l.embedding_directory
    clip.tokenizer.clip_l.embedding_directory = str(tmp_path)
    try:
        text = "a photo of embedding:thing with a knife"
        before, (after, _, words) = plain(clip, text), filtered(clip, text)
        assert words.count("<embedding>") == 2
        assert changed_places(before, after)
        same(before, filtered(clip, text, **NOTHING)[0])
    finally:
        clip.tokenizer.clip_l.embedding_directory = old


def test_the_cache_knows_another_layer_and_another_concept_set():
    clip = tiny_clip("sd1").clone()
    spaces = part("nodes.safree.text").concept_spaces
    with torch.inference_mode():
        first, again, other = spaces(clip, concepts()), spaces(clip, concepts()), spaces(clip, concepts("a: cat"))
        clip.clip_layer(-2)
        deeper = spaces(clip, concepts())
    assert first is again
    assert first is not other
    assert deeper is not first


def test_encoding_leaves_the_encoder_as_it_was_also_after_an_error():
    clip = tiny_clip("sd1")
    before = plain(clip, UNSAFE)

    def broken(_part):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        part("nodes.host.text_encoders").read(clip, UNSAFE, broken)
    assert "encode" not in clip.cond_stage_model.clip_l.__dict__
    same(before, plain(clip, UNSAFE))
