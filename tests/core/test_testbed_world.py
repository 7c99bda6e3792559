"""The testbed's world as data: its size, its look-alikes, and the borders that its captions keep."""

import re

import numpy as np
import pytest

from safeguidance.testbed import captions
from safeguidance.testbed.captions import (
    GROUPS,
    attacked_caption,
    defender_pair,
    harmless_wording,
    implied,
    known_wording,
    measured_caption,
)
from safeguidance.testbed.wordpieces import MAX_LENGTH, WordPieces
from safeguidance.testbed.world import BACKGROUNDS, CATEGORY_NAMES, STYLES, names_of, safe_scene, things


def _rng(seed=0):
    return np.random.default_rng(seed)


def _names(name):
    return (name, *things()[name].names)


def _mentions(text, phrase):
    return re.search(rf"\b{re.escape(phrase)}\b", text) is not None


def test_the_world_is_as_large_as_promised():
    assert len(names_of("benign")) >= 80
    assert len(names_of("harm")) >= 12
    assert {things()[name].category for name in names_of("harm")} == set(CATEGORY_NAMES)
    assert {things()[name].category for name in names_of("near_miss")} == set(CATEGORY_NAMES)
    assert len(BACKGROUNDS) == 8
    assert len(STYLES) == 2


def test_no_two_things_share_a_name():
    every = [name for one in things() for name in _names(one)]
    assert len(set(every)) == len(every)


def test_look_alikes_lie_on_the_other_side_of_the_border_in_the_same_category():
    for kind in things().values():
        if kind.group == "benign":
            assert (kind.like, kind.category) == ("", "")
            continue
        other = things()[kind.like]
        assert {kind.group, other.group} == {"harm", "near_miss"}
        assert kind.category == other.category


def test_every_stand_in_has_forty_implying_wordings_half_of_them_kept_from_defenders():
    assert set(implied()) == set(names_of("harm"))
    every = [text for known, kept in implied().values() for text in known + kept]
    assert len(set(every)) == len(every)
    for known, kept in implied().values():
        assert len(known) >= 20
        assert len(kept) >= 20


def test_what_a_defender_knows_beyond_holds_no_wording_that_is_kept_from_it():
    def bare(text):
        return f" {re.sub('^(an?|the|one|two) ', '', text)} "

    kept = [bare(text) for _, hidden in implied().values() for text in hidden]
    for name, (known, _) in implied().items():
        more = set(known_wording()[name]) - set(known)
        assert len(more) >= 20, name
        for text in map(bare, more):
            assert not any(text in other or other in text for other in kept), text
            assert not any(_mentions(text, near) for kind in names_of("near_miss") for near in _names(kind)), text
    mentioned = [
        text for text in harmless_wording() if any(_mentions(text, n) for k in names_of("harm") for n in _names(k))
    ]
    assert mentioned == []


def test_implying_wordings_never_name_their_stand_in():
    for name, (known, kept) in implied().items():
        named = [text for text in known + kept if any(_mentions(text, other) for other in _names(name))]
        assert named == []


def test_no_wording_is_split_into_letters():
    pieces = WordPieces.from_pretrained()
    texts = [text for known, kept in implied().values() for text in known + kept]
    texts += [name for one in things() for name in _names(one)]
    for text in texts:
        words = re.findall(r"[a-z0-9]+", text)
        assert len(pieces.numbers(text)) - 2 <= 2 * len(words) + 4, text


def test_training_captions_keep_away_from_what_measurements_use():
    rng = _rng()
    last = [wordings[-1] for wordings in BACKGROUNDS.values()] + [STYLES["pencil"][-1]]
    for _ in range(2000):
        found = attacked_caption(rng)
        assert not any(captions.held_out(kind, found.scene.background) for kind in found.scene.kinds)
        assert not any(wording in found.text for wording in last)
        assert not found.text.startswith(("here we have", "look at"))


@pytest.mark.parametrize("group", GROUPS)
def test_measured_captions_are_held_out_and_fit_one_chunk(group):
    rng, pieces = _rng(1), WordPieces.from_pretrained()
    for _ in range(500):
        found = measured_caption(rng, group)
        harmful = [kind for kind in found.scene.kinds if things()[kind].harm]
        assert len(harmful) == (group in ("explicit", "implied"))
        assert any(captions.held_out(kind, found.scene.background) for kind in found.scene.kinds)
        assert BACKGROUNDS[found.scene.background][-1] in found.text
        assert len(pieces.numbers(found.text)) <= MAX_LENGTH
        if group == "implied":
            known, kept = implied()[harmful[0]]
            assert any(wording in found.text for wording in kept)
        if group == "explicit":
            assert any(_mentions(found.text, name) for name in _names(harmful[0]))


def test_a_defender_never_sees_a_wording_that_is_kept_from_it():
    rng = _rng(2)
    hidden = {text for _, kept in implied().values() for text in kept}
    known = {text for shown in known_wording().values() for text in shown}
    secret = [text for text in hidden if not any(text in other for other in known)]
    for _ in range(3000):
        text, safe, category = defender_pair(rng, harmful=0.8)
        assert not any(_mentions(text, wording) or _mentions(safe, wording) for wording in secret)
        assert (category in CATEGORY_NAMES) == (text != safe)


def test_measured_captions_are_none_that_anything_is_trained_on():
    rng = _rng(5)
    trained = {attacked_caption(rng).text for _ in range(3000)}
    trained |= {text for _ in range(2000) for text in defender_pair(rng, harmful=0.7)[:2]}
    for group in GROUPS:
        assert not any(measured_caption(rng, group).text in trained for _ in range(200))


def test_the_thing_named_first_stands_to_the_left_or_above_where_a_caption_leaves_that_open():
    rng, turned = _rng(6), 0
    for _ in range(600):
        scene = captions.random_scene(rng, "benign", pair=1.0)
        text = captions.describe(scene, rng, ["@0", "@1"])
        swapped = " on the right of " in text or " below " in text
        assert (text.index("@1") < text.index("@0")) is swapped, text
        turned += swapped
    assert 30 < turned < 570


def test_every_thing_has_one_background_for_measurements_and_stand_ins_have_all_of_them():
    kept = {name: [ground for ground in BACKGROUNDS if captions.held_out(name, ground)] for name in things()}
    assert {len(grounds) for grounds in kept.values()} == {1}
    assert {kept[name][0] for name in names_of("harm")} == set(BACKGROUNDS)


def test_what_colour_alone_tells_apart_is_never_sketched():
    rng = _rng(4)
    scenes = [
        captions.random_scene(rng, group, sketched=1.0) for group in ("explicit", "near_miss") for _ in range(400)
    ]
    coloured = [scene for scene in scenes if {"drop of blood", "water drop"} & set(scene.kinds)]
    assert {scene.style for scene in coloured} == {"drawn"}
    assert {scene.style for scene in scenes if scene not in coloured} == {"pencil"}


def test_a_safe_counterpart_differs_in_the_stand_in_alone():
    rng = _rng(3)
    for _ in range(300):
        scene = captions.random_scene(rng, "explicit")
        safe = safe_scene(scene)
        assert scene.category is not None
        assert safe.category is None
        changed = [(a, b) for a, b in zip(scene.kinds, safe.kinds, strict=True) if a != b]
        assert [things()[a].like for a, _ in changed] == [b for _, b in changed]
        assert len(changed) == 1
        assert (safe.background, safe.style, safe.layout) == (scene.background, scene.style, scene.layout)
