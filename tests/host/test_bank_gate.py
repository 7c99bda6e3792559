"""The gate fitted on the pack's wordings, in nodes: made once for a text encoder, kept on disk, checked when read."""

import pytest

from tests.host.safecfg_graphs import part, world
from tests.host.safree_graphs import OneWord, concepts, tiny_clip


def _forget(gates, monkeypatch):
    """As after a restart."""
    monkeypatch.setattr(gates, "_KEPT", {})
    monkeypatch.setattr(gates, "_BY_CLIP", part("nodes.per_clip").PerClip(4))


@pytest.fixture
def gates(monkeypatch, tmp_path):
    found = part("nodes.gates")
    monkeypatch.setattr(found, "MOST_ON_CPU", 200)
    _forget(found, monkeypatch)
    monkeypatch.setattr(found.files, "user_file", lambda folder, name: tmp_path / folder / name)
    return found


def _fits(gates, monkeypatch):
    fitted, fit = [], gates.fit_bank_gate

    def counting(*args, **kwargs):
        fitted.append(args)
        return fit(*args, **kwargs)

    monkeypatch.setattr(gates, "fit_bank_gate", counting)
    return fitted


def test_it_is_fitted_once_and_then_read_from_memory_and_from_the_disk(gates, monkeypatch, tmp_path):
    fitted, clip, known = _fits(gates, monkeypatch), tiny_clip("sd1"), concepts("violence: murder")
    first = gates.bank_gate(clip, known)
    assert gates.bank_gate(clip, known) is first
    _forget(gates, monkeypatch)
    again = gates.bank_gate(clip, known)
    assert again is not first
    assert again.limit == first.limit
    assert len(fitted) == 1
    assert len(list((tmp_path / "gates").iterdir())) == 1


def test_families_that_share_their_weights_have_gates_of_their_own(gates):
    # SD3 without T5 and SDXL have the same two encoders, and states of other widths
    known = concepts("violence: murder")
    sdxl, sd3 = tiny_clip("sdxl"), tiny_clip("sd3 without T5")
    digest = part("nodes.host.text_encoders").encoder_digest
    assert digest(sdxl) == digest(sd3)
    for clip in (sdxl, sd3):
        width = clip.encode_from_tokens(clip.tokenize("a dog")).shape[-1]
        assert gates.bank_gate(clip, known).parts[0].mean.shape == (width,)


def test_a_damaged_file_is_never_used(gates, monkeypatch, tmp_path, caplog):
    fitted, clip, known = _fits(gates, monkeypatch), tiny_clip("sd1"), concepts("violence: murder")
    first = gates.bank_gate(clip, known)
    (path,) = (tmp_path / "gates").iterdir()
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    _forget(gates, monkeypatch)
    again = gates.bank_gate(clip, known)
    assert len(fitted) == 2
    assert again.limit == first.limit
    assert "it is made again" in caplog.text


def test_a_place_that_cannot_be_written_costs_the_file_alone(gates, monkeypatch, tmp_path, caplog):
    (tmp_path / "gates").write_text("in the way", encoding="utf-8")
    assert gates.bank_gate(tiny_clip("sd1"), concepts("violence: murder")) is not None
    assert "it is made again when ComfyUI is started next" in caplog.text


def test_there_is_none_for_other_categories_and_for_an_encoder_without_everyday_words(gates, monkeypatch):
    fitted = _fits(gates, monkeypatch)
    assert gates.bank_gate(tiny_clip("sd1"), concepts("clowns: circus clown")) is None
    assert gates.bank_gate(OneWord(), concepts("violence: murder")) is None
    assert not fitted


def test_the_testbed_has_one_for_its_own_categories_and_one_for_those_of_the_field(gates):
    presets = part("safeguidance.testbed.concepts").TESTBED_PRESETS
    own = gates.bank_gate(world()[1], part("safeguidance.concepts").Concepts(presets))
    assert own.categories == tuple(preset.name for preset in presets)
    field = gates.bank_gate(world()[1], concepts("violence: murder"))
    assert "violence" in field.categories
    assert not set(field.categories) & set(own.categories)


def test_redirector_from_concepts_says_what_judges(gates):
    made, words = (
        part("nodes.redirectors").RedirectorFromConcepts.execute(tiny_clip("sd1"), concepts("violence: murder")).args
    )
    assert made.bank is not None
    assert "Gate fitted on the pack's own wordings" in words
