"""Presets: what they set, that a typed number goes before them, and what is refused."""

from __future__ import annotations

import pytest

from tests.host.concept_graphs import PLAIN, concepts
from tests.host.concept_graphs import guider as sp_guard
from tests.host.safecfg_graphs import KNIFE, encoded, guider, make_redirector, part, patch, sample, sigmas, stock
from tests.host.test_safree_nodes import safree

pytestmark = pytest.mark.usefixtures("pack")

SAFECFG = {
    "light": {"strength": 0.75, "end": 0.6},
    "balanced": {"strength": 1.0, "start": 0.0, "end": 1.0, "threshold": -1.0},
    "strict": {"strength": 1.25, "end": 1.0},
}
SP_GUARD = {
    "light": {"lambda_max": 2.0, "threshold": 0.4, "end": 0.6, "switch": 0.8},
    "balanced": {"lambda_max": 4.0, "threshold": 0.3, "end": 0.6, "switch": 0.8},
    "strict": {"lambda_max": 6.0, "threshold": 0.2, "end": 0.6, "switch": 0.8},
}
SAFREE = {
    "light": {"hold": "self-validating", "alpha": 0.05, "scope": "tokens"},
    "balanced": {"hold": "self-validating", "alpha": 0.01, "scope": "tokens, end and padding"},
    "strict": {"hold": "whole schedule", "alpha": 0.01, "scope": "everything after a trigger"},
}
OTHER = {"light": "strict", "balanced": "light", "strict": "balanced"}


def redirected(**settings):
    return sample(guider(encoded(KNIFE), encoded(""), make_redirector(), **settings)[0], sigmas(6))


def guided(**settings):
    ours, trace = sp_guard(encoded(KNIFE), encoded(""), looked_for=concepts("blade: knife"), **{**PLAIN, **settings})
    return sample(ours, sigmas(10)), trace.run


def filtered(**settings):
    positive, trace, words = safree(**{"hold": "as preset", **settings})
    return positive, trace.run.threshold, words


def same(one, other):
    return len(one) == len(other) and all(
        a.equal(b) and x.get("end_percent") == y.get("end_percent") for (a, x), (b, y) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("preset", SAFECFG)
def test_a_safecfg_preset_is_its_numbers_and_typed_ones_go_before_another(preset):
    picture = redirected(preset=preset)
    assert picture.equal(redirected(**SAFECFG[preset]))
    assert picture.equal(redirected(preset=OTHER[preset], **SAFECFG[preset]))
    assert not picture.equal(redirected(preset=OTHER[preset]))


def test_balanced_is_the_default_of_every_node():
    assert redirected().equal(redirected(preset="balanced"))
    assert guided(threshold=0.0)[0].equal(guided(threshold=0.0, preset="balanced")[0])
    assert same(filtered()[0], filtered(preset="balanced")[0])
    method, core = part("nodes.concept_guidance.factory").method_config, part("safeguidance.guidance.sp_guard")
    config = method("X", core.METHOD, {})[0]
    assert config == part("safeguidance.guidance.sp_guard").SPGuardConfig()
    assert (
        part("nodes.safecfg.node")._config("X", "balanced", -1, 0, -1, -1, True)
        == part("safeguidance.guidance.safecfg").SafeCFGConfig()
    )


@pytest.mark.parametrize("preset", SP_GUARD)
def test_an_sp_guard_preset_is_its_numbers_and_typed_ones_go_before_another(preset):
    config, method = part("nodes.concept_guidance.factory").method_config, part("safeguidance.guidance.sp_guard").METHOD
    typed = {"preset": OTHER[preset], **SP_GUARD[preset]}
    assert config("X", method, {"preset": preset}) == config("X", method, typed)
    # a threshold of 0 makes every preset act on this small picture
    numbers = {**SP_GUARD[preset], "threshold": 0.0}
    picture, run = guided(preset=preset, threshold=0.0)
    assert run.acted
    assert picture.equal(guided(preset=OTHER[preset], **numbers)[0])
    assert not picture.equal(guided(preset=OTHER[preset], threshold=0.0)[0])
    assert guided(preset=preset)[1].threshold == SP_GUARD[preset]["threshold"]


@pytest.mark.parametrize("preset", SAFREE)
def test_a_safree_preset_is_its_choices_and_typed_ones_go_before_another(preset):
    positive, alpha, words = filtered(preset=preset)
    again = filtered(preset=OTHER[preset], **SAFREE[preset])
    assert same(positive, again[0])
    assert (alpha, words) == again[1:]
    assert alpha == SAFREE[preset]["alpha"]
    assert not same(positive, filtered(preset=OTHER[preset])[0])


@pytest.mark.parametrize("preset", SAFECFG)
def test_custom_with_all_of_a_presets_numbers_is_that_preset(preset):
    """The editor sends custom with every number; through the API numbers may be left out, or -1, in any preset."""
    assert redirected(preset="custom", **SAFECFG[preset]).equal(redirected(preset=preset))
    core = part("safeguidance.guidance.sp_guard")
    config = part("nodes.concept_guidance.factory").method_config
    assert config("X", core.METHOD, {"preset": "custom", **SP_GUARD[preset]}) == config(
        "X", core.METHOD, {"preset": preset}
    )
    assert same(filtered(preset="custom", **SAFREE[preset])[0], filtered(preset=preset)[0])


def test_custom_without_numbers_is_balanced():
    assert redirected(preset="custom", strength=-1.0).equal(redirected(preset="balanced"))
    assert same(filtered(preset="custom")[0], filtered(preset="balanced")[0])
    method, config = part("safeguidance.guidance.crg").METHOD, part("nodes.concept_guidance.factory").method_config
    assert config("X", method, {"preset": "custom"}) == config("X", method, {"preset": "balanced"})


@pytest.mark.parametrize(("name", "values"), [("SafeCFGPatch", SAFECFG), ("SPGuardMask", SP_GUARD)])
def test_the_editor_is_told_the_numbers_in_use(object_info, name, values):
    hints = object_info[f"SafeGuidance_{name}"]["input"]["optional"]["preset"][1]["safeguidance"]
    assert hints["custom"] == "custom"
    for preset, numbers in values.items():
        told = hints["presets"][preset]
        assert {field: number for field, number in numbers.items() if field in told}.items() <= told.items()
        if name == "SafeCFGPatch":
            assert redirected(preset=preset).equal(redirected(preset="custom", **told))


def test_strength_0_is_stock_under_every_preset():
    plain = sample(stock(encoded(KNIFE), encoded("")), sigmas(6))
    assert all(redirected(preset=preset, strength=0.0).equal(plain) for preset in SAFECFG)


def test_a_window_that_does_not_fit_the_preset_names_it():
    with pytest.raises(ValueError, match=r"SafeCFG Guider, window: it is 0\.7 to 0\.6.*allowed.*preset 'light' says: "):
        redirected(preset="light", start=0.7, strength=1.0)


@pytest.mark.parametrize(
    ("run", "settings", "words"),
    [
        (
            redirected,
            {"preset": "x"},
            "SafeCFG Guider, preset: it is 'x'; allowed: light, balanced, strict, custom",
        ),
        (redirected, {"strength": -0.5}, "SafeCFG Guider, strength: it is -0.5; allowed: 0 and above, or -1.*change"),
        (redirected, {"strength": 3.0}, "SafeCFG Guider, strength: it is 3.0; allowed: 0"),
        (
            guided,
            {"preset": "x"},
            "SP-Guard Guider, preset: it is 'x'; allowed: light, balanced, strict, custom; ch",
        ),
        (guided, {"lambda_max": -2.0}, "SP-Guard Guider, lambda_max: it is -2; allowed: 0 and above, or -1.*change"),
        (guided, {"lambda_max": 21.0}, "SP-Guard Guider, lambda_max: it is 21.*change the named field"),
        (
            guided,
            {"lambda_end": 2.0},
            "lambda_end: it is 2, but end is 0.6 and switch is 0.8.*the preset says: end, switch",
        ),
        (
            filtered,
            {"preset": "x"},
            "SAFREE Embedding Filter, preset: it is 'x'; allowed: light, .*, custom",
        ),
        (
            guided,
            {**SP_GUARD["strict"], "preset": "custom", "lambda_end": 2.0},
            "lambda_end: it is 2, but end is 0.6 and switch is 0.8.*the preset says: end, switch",
        ),
        (filtered, {"preset": "strict", "half": 0.4}, "half: it is 0.4, but with hold 'whole schedule', as the preset"),
        (filtered, {"hold": "as printed", "steepness": 3.5}, "steepness: it is 3.5, but with hold 'as printed', it"),
    ],
)
def test_what_does_not_fit_is_refused_with_field_value_and_next_step(run, settings, words):
    with pytest.raises(ValueError, match=words):
        run(**settings)


def test_a_typed_window_makes_lambda_end_count():
    wanted = {"threshold": 0.0, "switch": 0.5, "end": 1.0, "preset": "strict"}
    assert not guided(**wanted, lambda_end=3.0)[0].equal(guided(**wanted)[0])


def test_the_patch_has_the_same_presets():
    model, _ = patch(make_redirector(), preset="strict")
    plain = stock(encoded(KNIFE), encoded(""), model=model)
    assert sample(plain, sigmas(6)).equal(redirected(preset="strict"))


@pytest.mark.parametrize(
    ("name", "set_by_presets"),
    [
        ("SafeCFGGuider", SAFECFG),
        ("SafeCFGPatch", SAFECFG),
        ("SPGuardMask", SP_GUARD),
        ("SPGuardGuider", SP_GUARD),
        ("SafreeEmbeddingFilter", SAFREE),
    ],
)
def test_only_the_preset_is_seen_at_first_and_raw_fields_wait_for_it(object_info, name, set_by_presets):
    fields = object_info[f"SafeGuidance_{name}"]["input"]["optional"]
    assert next(iter(fields)) == "preset"
    assert fields["preset"][1]["default"] == "balanced"
    shown = {field for field, (_, options) in fields.items() if not options.get("advanced")}
    assert shown <= {"preset", "neutral", "judge"}
    for field in set_by_presets["strict"]:
        assert fields[field][1]["default"] in (-1.0, "as preset"), field
