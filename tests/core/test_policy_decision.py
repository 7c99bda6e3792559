"""Who a user is and what happens at which score: spoofed names get the strictest level, and no score means no."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeguidance.errors import InputError
from safeguidance.policy.decision import ORDER, Decision, decide, worst
from safeguidance.policy.identity import level_of
from safeguidance.policy.load import preset
from safeguidance.policy.schema import ANY, CategoryRule, GuardRule, Identity, Judge, Level

UNHURRIED = settings(deadline=None)
GUARD = (GuardRule(method="hgr"),)
POLICY = replace(
    preset("school"),
    identity=Identity("X-Remote-User", ("127.0.0.1", "10.0.0.0/28", "fd00::/64"), {"anna": "teacher"}),
)
NAMED = [("x-remote-user", "anna")]


def level(categories, **more):
    return Level("some", categories, GUARD, **more)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.3", "fd00::1", "fd00::1%eth0", "::ffff:127.0.0.1"])
def test_a_trusted_proxy_names_the_user(address):
    assert level_of(POLICY, NAMED, address) == ("anna", "teacher")
    assert level_of(POLICY, {"X-REMOTE-USER": "anna"}, address) == ("anna", "teacher")
    assert level_of(POLICY, {"X-Remote-User": " ben "}, address) == ("ben", "pupil")


@pytest.mark.parametrize(
    "address", [None, "", "127.0.0.2", "10.0.0.16", "192.168.1.5", "fd01::1", "::1", "localhost", "127.0.0.1, 10.0.0.3"]
)
def test_a_name_from_anywhere_else_is_ignored(address):
    headers = [*NAMED, ("X-Forwarded-For", "127.0.0.1"), ("X-Real-IP", "127.0.0.1"), ("Forwarded", "for=127.0.0.1")]
    assert level_of(POLICY, headers, address) == ("", "pupil")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("X-Remote-User", "")],
        [("X-Remote-User", " ")],
        [*NAMED, ("X-Remote-User", "ben")],
        [*NAMED, ("X-Remote-User", "anna")],
        [*NAMED, ("X_Remote_User", "ben")],
        [("X-Remote-User", "anna\x00")],
        [("X-Remote-User", "x" * 201)],
        [("X-Remote-Users", "anna")],
    ],
)
def test_who_is_not_named_once_and_clearly_is_nobody(headers):
    assert level_of(POLICY, headers, "127.0.0.1") == ("", "pupil")


@pytest.mark.parametrize("name", ["Anna", "anna,ben", "anna ben", "teacher", "a\u0430nna"])
def test_other_names_get_the_strictest_level(name):
    assert level_of(POLICY, [("X-Remote-User", name)], "127.0.0.1") == (name, "pupil")


def test_without_a_header_in_the_policy_all_are_nobody():
    policy = preset("research")
    assert level_of(policy, NAMED, "127.0.0.1") == ("", "researcher")


@pytest.mark.parametrize(
    ("score", "action"),
    [(0.0, "pass"), (0.49, "pass"), (0.5, "guard"), (0.89, "guard"), (0.9, "refuse"), (1.0, "refuse")],
)
def test_a_score_leads_to_what_the_rule_says(score, action):
    rules = level({"violence": CategoryRule(0.5, "guard", 0.9)}, message="No.")
    found = decide(rules, {"violence": score}, {"violence": 0.1})
    assert found.action == action
    assert (found.category, found.score) == ("violence", score)
    assert found.message == ("No." if action == "refuse" else "")


def test_the_guards_own_threshold_holds_where_the_policy_names_none():
    rules = level({ANY: CategoryRule(None, "replace")})
    assert decide(rules, {"hate": 0.3}, {"hate": 0.3}).action == "replace"
    assert decide(rules, {"hate": 0.29}, {"hate": 0.3}).action == "pass"


def test_a_level_that_refuses_prompts_refuses_before_sampling():
    rules = level({ANY: CategoryRule(None, "guard")}, refuse_prompts=True)
    assert decide(rules, {"hate": 0.3}, {"hate": 0.3}).action == "refuse"
    assert decide(rules, {"hate": 0.2}, {"hate": 0.3}).action == "pass"


@pytest.mark.parametrize("score", [math.nan, math.inf, -0.1, 1.1, None, "0.1", True, 10**400])
@pytest.mark.parametrize("stage", ["prompt", "picture"])
def test_a_score_that_is_none_refuses(score, stage):
    rules = level({ANY: CategoryRule()}, judge=Judge(threshold=0.5))
    found = decide(rules, {"hate": 0.0, "sexual": score}, {"hate": 0.5, "sexual": 0.5}, stage)
    assert found.action == "refuse"
    assert found.category == "sexual"
    assert found.message == rules.message


@pytest.mark.parametrize("more", [{}, {"kind": "classifier", "file": "judge", "labels": {"nsfw": "sexual"}}])
def test_a_judge_of_pictures_needs_a_threshold(more):
    with pytest.raises(InputError, match="threshold: it is missing"):
        Judge(**more)
    assert Judge(**more, threshold=0.5).threshold == 0.5


@pytest.mark.parametrize("threshold", [math.nan, math.inf, -1.0, 2.0, None])
def test_a_threshold_that_is_none_refuses(threshold):
    thresholds = {} if threshold is None else {"hate": threshold}
    assert decide(level({ANY: CategoryRule()}), {"hate": 0.0}, thresholds).action == "refuse"


def test_what_was_not_measured_is_refused():
    rules = level({"sexual": CategoryRule(0.5)})
    assert decide(rules, {}, {}).action == "refuse"
    assert decide(rules, {"hate": 0.0}, {"hate": 0.5}).action == "refuse"
    assert decide(rules, {"hate": 0.9, "sexual": 0.1}, {"hate": 0.5}).action == "pass"
    with pytest.raises(InputError, match="decisions"):
        worst([])


def test_the_test_models_names_are_the_same_categories():
    rules = level({"testbed_weapon": CategoryRule(0.5, "refuse")})
    assert decide(rules, {"weapon": 0.6}, {}).action == "refuse"
    rules = level({"weapon": CategoryRule(0.5, "refuse")})
    assert decide(rules, {"testbed_weapon": 0.6}, {}).action == "refuse"


@pytest.mark.parametrize(
    ("rule", "judge", "action"),
    [
        ("guard", "replace", "replace"),
        ("guard", "refuse", "refuse"),
        ("refuse", "replace", "refuse"),
        ("replace", "refuse", "replace"),
    ],
)
def test_a_picture_is_never_just_guarded(rule, judge, action):
    rules = level({ANY: CategoryRule(0.9, rule)}, judge=Judge(threshold=0.4, action=judge))
    assert decide(rules, {"hate": 0.5}, {}, "picture").action == action
    assert decide(rules, {"hate": 0.3}, {}, "picture").action == "pass"


def test_a_picture_without_a_judge_is_an_error():
    with pytest.raises(InputError, match="judge"):
        decide(level({ANY: CategoryRule()}), {"hate": 0.5}, {"hate": 0.4}, "picture")
    with pytest.raises(InputError, match="stage"):
        decide(level({ANY: CategoryRule()}), {"hate": 0.5}, {"hate": 0.4}, "pictures")


SCORES = st.dictionaries(st.sampled_from(["hate", "sexual", "violence", "shocking"]), st.floats(0, 1), min_size=1)
RULE = st.builds(
    CategoryRule,
    st.one_of(st.none(), st.floats(0, 0.5)),
    st.sampled_from(["guard", "refuse", "replace"]),
    st.one_of(st.none(), st.floats(0.5, 1)),
)


@UNHURRIED
@given(SCORES, st.floats(0, 1), RULE, RULE, st.booleans(), st.sampled_from(["hate", "sexual"]), st.floats(0, 1))
def test_a_higher_score_is_never_judged_more_mildly(scores, threshold, one, other, refuse, category, more):
    rules = level({"sexual": one, ANY: other}, refuse_prompts=refuse)
    thresholds = dict.fromkeys(("hate", "sexual", "violence", "shocking"), threshold)
    before = decide(rules, scores, thresholds)
    higher = {**scores, category: max(more, scores.get(category, 0.0))}
    after = decide(rules, higher, thresholds)
    assert ORDER.index(after.action) >= ORDER.index(before.action)
    assert bool(after.message) == (after.action in ("refuse", "replace"))


@UNHURRIED
@given(st.lists(st.sampled_from(ORDER), min_size=1))
def test_the_worst_of_a_batch_decides(actions):
    found = worst([Decision(action, "hate", 0.5) for action in actions])
    assert found.action == max(actions, key=ORDER.index)
