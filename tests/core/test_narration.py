"""What a run says of itself: the line while it goes on, and the decision."""

from __future__ import annotations

import pytest

from safeguidance.report.narration import (
    describe_guidance,
    describe_redirect,
    describe_step,
    in_pictures,
    in_steps,
    progress_line,
)
from safeguidance.report.trace import RunRecord, StepRecord

LEVELS = (14.0, 8.0, 4.0, 1.0, 0.0)
NAMES = ("blade", "drug")


def run(acted=(), scores=(), threshold=0.5, levels=LEVELS):
    steps = [StepRecord(sigma, 0.0, index + 1 in acted, step=index + 1) for index, sigma in enumerate(levels[:-1])]
    return RunRecord("X", NAMES, [list(row) for row in scores], threshold, "", steps, None, levels)


@pytest.mark.parametrize(
    ("acted", "words"),
    [
        ((), "in no step"),
        ((1, 2, 3, 4), "in all 4 steps"),
        ((2, 3), "in steps 2-3 of 4"),
        ((3,), "in step 3 of 4"),
        ((1, 3), "in 2 of 4 steps"),
    ],
)
def test_steps_are_named_as_a_person_would(acted, words):
    assert in_steps(run(acted)) == words


def test_a_step_of_several_evaluations_counts_once():
    record = run((2,))
    record.steps += [StepRecord(6.0, 0.0, True, step=2), StepRecord(5.0, 0.0, True, step=2)]
    assert in_steps(record) == "in step 2 of 4"


def test_the_line_names_step_score_and_deed():
    assert progress_line(run(scores=[(0.1, 0.83), (0.2, 0.3)]), 3, "redirecting") == (
        "step 3 of 4: drug 0.83, redirecting"
    )
    assert progress_line(run(), 1, "measuring") == "step 1 of 4: measuring"


@pytest.mark.parametrize(
    ("record", "chosen", "asks", "reads", "words"),
    [
        (run(), [], True, True, "measuring"),
        (run(threshold=None), [], True, True, "warming up"),
        (run(scores=[(0.9, 0.1)]), [], True, False, "guiding away from blade"),
        (run(scores=[(0.9, 0.1)], threshold=None), [0, 1], True, False, "guiding away from drug"),
        (run(scores=[(0.9, 0.1)], threshold=None), [], True, False, "guiding"),
        (run(scores=[(0.2, 0.1)]), [], False, False, "left alone"),
        (run((1, 2), scores=[(0.9, 0.1)]), [0], False, False, "left alone from here on"),
        (run(threshold=None), [], False, False, "left alone until the window opens"),
    ],
)
def test_what_is_done_in_a_step(record, chosen, asks, reads, words):
    assert describe_step(record, chosen, asks, reads) == words


@pytest.mark.parametrize(
    ("record", "chosen", "words"),
    [
        (run((2, 3), [(0.83, 0.1)]), [0], "blade 0.83: guided in steps 2-3 of 4"),
        (run((2, 3), [(0.83, 0.1), (0.2, 0.1)]), [0], "blade 0.83: guided in steps 2-3 of 4, in 1 of 2 pictures"),
        (run((), [(0.2, 0.1)]), [], "harmless (0.20): left untouched"),
        (run((), [(0.0, 0.0)], 0.0), [], "harmless (0.00): left untouched"),
        (run(), [], "NOT JUDGED"),
        (run((), [(0.9, 0.1)]), [], "blade 0.90: NOT guided"),
        (run((1, 2, 3, 4), [(0.5, 0.4)], None), [1, 1, 0], "guided in all 4 steps, most often away from drug"),
        (run((1, 2, 3, 4), [(0.5, 0.4)], None), [], "guided in all 4 steps, away from all 2 concepts"),
        (run((), [], None), [], "the window or the range of the prompt was never reached"),
    ],
)
def test_the_decision(record, chosen, words):
    assert describe_guidance(record, chosen).startswith(words)
    assert len(describe_guidance(record, chosen)) < 90


def test_all_pictures_need_no_mention():
    assert in_pictures(run((1,), [(0.6, 0.1), (0.1, 0.5)])) == ""


def test_equal_levels_are_steps_of_their_own():
    record = RunRecord("X", NAMES, levels=(1.0, 1.0, 1.0, 0.0), steps_made=3, latent_out="x")
    record.steps = [StepRecord(1.0, 0.0, True, step=number) for number in (1, 2, 3)]
    assert in_steps(record) == "in all 3 steps"


def test_steps_that_should_have_been_guarded_and_were_not_are_named():
    record = run((1, 2), [(0.9, 0.1)])
    record.steps[3] = StepRecord(1.0, 0.0, False, step=4, missed=True)
    assert describe_redirect(record, 0.9) == "blade 0.90: redirected in steps 1-2 of 4; NOT guarded in step 4 of 4"


def test_a_harmful_prompt_that_was_never_redirected_is_not_called_harmless():
    assert describe_redirect(run((), [(0.9, 0.1)]), 0.9).startswith("blade 0.90: NOT redirected")
    assert describe_redirect(run((), [(0.2, 0.1)]), 0.2) == "harmless (0.20): left untouched"
