"""The report: what the picture, the mask and the verdict say about a run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from safeguidance.report.account import account_for
from safeguidance.report.heat import effect_mask
from safeguidance.report.picture import PIXELS, draw_report
from safeguidance.report.prompt_texts import prompts_behind
from safeguidance.report.trace import RunRecord, StepRecord, Trace

RED, BLUE = (208, 60, 48), (70, 130, 180)
UNIT = PIXELS / 300
HEAD, PICTURE, LINE = 70, 158, 19
"""Units: height of the part on top with a decision of one line, of a picture with its title, and of a line."""
RIGHT, EDGE = 155, 135
"""Units: where the right one of two pictures begins, and how large it is."""


def _at(units):
    return round(units * UNIT)


def _run(scores=((0.9, 0.1),), threshold=0.5, effect=None, acted=(2, 3), total=6, step_scores=()):
    steps = [StepRecord(1 - i / total, i / total, i in acted, 0, tuple(step_scores)) for i in range(total)]
    rows = [list(row) for row in scores]
    return RunRecord("SafeCFG", ("blade", "drug"), rows, threshold, "blade 0.90", steps, effect)


def _long_run():
    names = tuple(f"a category with a rather long name, number {i}" for i in range(20))
    scores = [[0.05 * i for i in range(20)]]
    return RunRecord("X", names, scores, 0.3, "a very long decision " * 12, [StepRecord(1.0, 0.0, True)] * 1000)


def _pixels(picture, colour):
    wanted = torch.tensor(colour) / 255
    return (picture[0] - wanted).abs().amax(dim=-1) < 0.004


def test_the_same_run_gives_the_same_bytes():
    images = torch.rand(2, 40, 60, 3, generator=torch.Generator().manual_seed(1))
    run = _run(scores=((0.9, 0.1), (0.2, 0.3)), effect=torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(2)))
    first, second = draw_report(run, images), draw_report(run, images)
    assert torch.equal(first, second)
    assert first.shape[0] == 1
    assert first.shape[2:] == (PIXELS, 3)
    assert first.dtype == torch.float32
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1


def test_the_generated_picture_is_in_the_report():
    green = torch.zeros(1, 32, 32, 3)
    green[..., 1] = 1
    area = _pixels(draw_report(_run(), green), (0, 255, 0)).sum()
    assert area > 200 * 200
    assert _pixels(draw_report(_run()), (0, 255, 0)).sum() == 0


def test_bars_turn_red_at_the_threshold_only():
    def red(score):
        return int(_pixels(draw_report(_run(scores=((score, 0.0),), acted=())), RED).sum())

    assert red(0.49) == 0
    assert red(0.9) > red(0.6) + 1000
    assert red(0.5) > 1000


def _marks(picture, colour):
    """Which of six marks of the last part, one per evaluation, have a colour."""
    columns = _pixels(picture, colour)[-_at(40) : -_at(24)].sum(dim=0) > 20
    return [bool(columns[_at(10 + (i + 0.5) * 280 / 6)]) for i in range(6)]


def test_the_timeline_marks_the_changed_steps():
    def marked(acted):
        picture = draw_report(_run(scores=((0.1, 0.1),), acted=acted))
        return _marks(picture, RED)

    assert marked((0, 4)) == [True, False, False, False, True, False]
    assert marked(()) == [False] * 6


def test_the_overlay_lights_up_where_the_method_acted():
    effect = torch.zeros(1, 8, 8)
    effect[0, :4, :4] = 3.0
    picture = draw_report(_run(effect=effect), torch.zeros(1, 64, 64, 3))[0]
    overlay = picture[_at(HEAD + 17) : _at(HEAD + 17 + EDGE), _at(RIGHT) : _at(RIGHT + EDGE)]
    bright = overlay.sum(dim=-1)
    assert float(bright[20:200, 20:200].mean()) > 3 * float(bright[400:, 400:].mean())


def test_four_samples_at_most_are_drawn_and_each_adds_a_row():
    rows = ((0.9, 0.1),) * 6
    heights = [draw_report(_run(scores=rows[:n]), torch.rand(n, 16, 16, 3)).shape[1] for n in (1, 2, 4, 6)]
    assert abs(heights[2] - heights[1] - 2 * (heights[1] - heights[0])) <= 2
    assert heights[2] < heights[3] < heights[2] + _at(LINE + 5)


def test_of_the_frames_of_a_video_one_is_drawn():
    one, many = (draw_report(_run(), torch.rand(count, 16, 16, 3)).shape[1] for count in (1, 9))
    # its verdict, since there are more, and how many are not shown
    assert one < many <= one + _at(2 * LINE + 20)


def test_scores_per_step_add_a_curve():
    assert draw_report(_run(step_scores=(0.3, 0.7))).shape[1] > draw_report(_run()).shape[1]
    once = _run(total=1, step_scores=(0.3, 0.7))
    assert draw_report(once).shape[1] == draw_report(_run(total=1)).shape[1], "one point is no curve"


@pytest.mark.parametrize(
    "run",
    [
        RunRecord("SafeCFG"),
        RunRecord("SafeCFG", decision="strength 0: plain CFG", threshold=0.5),
        _long_run(),
        _run(scores=((float("nan"), 0.2),)),
        _run(effect=torch.zeros(1, 4, 4)),
        _run(effect=torch.rand(1, 3, 4, 4)),
        _run(total=1, step_scores=(0.2,)),
    ],
)
def test_odd_runs_are_drawn_too(run):
    for images in (None, torch.rand(1, 7, 300, 3)):
        picture = draw_report(run, images)
        assert bool(torch.isfinite(picture).all())
        assert picture.shape[2] == PIXELS


def test_the_mask_has_the_size_of_the_image_and_runs_from_0_to_1():
    effect = torch.zeros(2, 4, 6)
    effect[0, 1, 2], effect[1, 3, 5] = 8.0, 4.0
    mask = effect_mask(_run(effect=effect), 2, 32, 48)
    assert mask.shape == (2, 32, 48)
    assert float(mask.max()) == 1.0
    assert float(mask.min()) == 0.0
    assert float(mask[0, 12, 20]) > 0.8
    assert float(mask[0, 28, 44]) == 0
    assert float(mask[1].max()) == pytest.approx(0.5, abs=0.1), "samples are shown on one scale"


def test_a_map_that_was_not_measured_is_an_empty_mask():
    for effect in (None, torch.zeros(1, 4, 4), torch.ones(1, 500)):
        mask = effect_mask(_run(effect=effect), 3, 16, 16)
        assert mask.shape == (3, 16, 16)
        assert float(mask.abs().max()) == 0


def test_the_frames_of_a_video_share_its_map():
    mask = effect_mask(_run(effect=torch.rand(1, 5, 4, 4)), 7, 8, 8)
    assert mask.shape == (7, 8, 8)
    assert torch.equal(mask[0], mask[6])
    assert float(mask.max()) > 0


def test_harmful_means_that_a_score_reached_the_threshold():
    assert _run(scores=((0.5, 0.1),)).harmful
    assert not _run(scores=((0.499, 0.1),)).harmful
    assert _run(scores=(), step_scores=(0.2, 0.6)).harmful
    assert not RunRecord("SafeCFG", threshold=0.0).harmful, "nothing was scored"


def test_the_record_is_plain_json():
    run = _run(effect=torch.ones(1, 2, 2))
    plain = json.loads(json.dumps(run.as_dict(), allow_nan=False))
    assert plain["harm"] == 0.9
    assert plain["acted"] is True
    assert plain["calls"] == 6
    assert "effect" not in plain


def _live_run(effects):
    steps = [StepRecord(1.0 - i / 4, i / 4, e is not None, 1, (0.2, 0.6), e) for i, e in enumerate(effects)]
    return RunRecord("SP-Guard", ("blade", "drug"), [[0.2, 0.6]], 0.5, "drug 0.60", steps)


def test_the_live_mask_is_drawn_for_the_evaluations_that_acted():
    corner = torch.zeros(1, 8, 8)
    corner[0, :4, :4] = 2.0
    bare, masked = (draw_report(_live_run([None, None, e, e])) for e in (torch.zeros(1, 8, 8), corner))
    assert masked.shape[1] - bare.shape[1] == _at(15 + 4 + 42)
    bright = _pixels(masked, (255, 235, 120))[bare.shape[1] - 10 :]
    columns = bright.any(dim=0).nonzero().flatten()
    edge = _at(38)
    assert 0.2 * edge * edge < int(bright.sum()) / 2 < 0.3 * edge * edge, "a quarter of each of two maps"
    assert int(columns.min()) < 70
    assert int(columns.max()) < _at(10 + 56 + 38)


def test_at_most_five_maps_and_four_samples_are_drawn():
    many = [torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(k)) for k in range(40)]
    run, images = _live_run(many), torch.rand(6, 16, 16, 3)
    one = draw_report(_live_run(many[:2]), images).shape[1]
    assert draw_report(run, images).shape[1] - one in (0, _at(15)), "the numbers of five take a line more"
    video = _live_run([torch.rand(1, 5, 4, 4), torch.rand(1, 5, 4, 4)])
    assert bool(torch.isfinite(draw_report(video)).all())


def test_a_method_that_does_not_judge_is_not_reported_as_judging():
    run = _run(acted=())
    run.threshold = None
    assert not run.harmful
    picture = draw_report(run)
    assert _pixels(picture, RED).sum() == 0
    assert _pixels(picture, BLUE).sum() > 1000
    assert json.loads(json.dumps(run.as_dict()))["threshold"] is None


def test_scores_of_steps_do_not_overrule_the_judgement():
    """A first measurement may be above the threshold while the mean over all of them is not."""
    run = _run(scores=((0.3, 0.1),), step_scores=(0.9, 0.1))
    assert run.harm == 0.3
    assert not run.harmful


def test_each_picture_of_a_batch_has_its_own_verdict():
    def inks(scores, acted=(2, 3)):
        picture = draw_report(_run(scores=scores, acted=acted), torch.zeros(len(scores), 16, 16, 3))
        # beside a picture: two lines of meaning, two bars, the threshold, and then the verdict
        tops = [_at(HEAD + 2 * LINE + 4 + 2 * 20 + 15 + place * (PICTURE + 28)) for place in range(len(scores))]
        rows = [picture[:, top : top + _at(16), _at(RIGHT) :] for top in tops]
        return [(bool(_pixels(row, RED).any()), bool(_pixels(row, BLUE).any())) for row in rows[: len(scores)]]

    assert inks(((0.9, 0.1), (0.2, 0.1))) == [(True, False), (False, True)]
    assert inks(((0.2, 0.1), (0.5, 0.1))) == [(False, True), (True, False)]
    unjudged = _run(scores=((0.9, 0.1), (0.2, 0.1)), acted=())
    judged = draw_report(unjudged)
    unjudged.threshold = None
    assert judged.shape[1] - draw_report(unjudged).shape[1] == _at(2 * LINE)


def test_of_a_single_picture_the_words_on_top_say_it_all_unless_harm_was_not_changed():
    def red_below(acted):
        picture = draw_report(_run(acted=acted, scores=((0.9, 0.9),)), torch.zeros(1, 16, 16, 3))
        top = _at(HEAD + 2 * LINE + 4 + 2 * 20 + 15)
        return bool(_pixels(picture[:, top : top + _at(30), _at(RIGHT) :], RED).any())

    assert red_below(())
    assert not red_below((2, 3))


def test_a_picture_of_a_batch_that_was_not_changed_is_not_shown_as_changed():
    effect = torch.zeros(2, 8, 8)
    effect[0, :4, :4] = 1.0
    picture = draw_report(_run(scores=((0.9, 0.1), (0.2, 0.1)), effect=effect), torch.full((2, 16, 16, 3), 0.5))
    map_of_first = picture[0, _at(HEAD + 17 + 60), _at(RIGHT) : _at(RIGHT + EDGE)]
    assert float(map_of_first.std(dim=0).max()) > 0.05
    both = _run(scores=((0.9, 0.1), (0.2, 0.1)), effect=torch.ones(2, 8, 8))
    assert picture.shape[1] < draw_report(both, torch.full((2, 16, 16, 3), 0.5)).shape[1] - _at(PICTURE / 2)


def test_steps_that_only_measured_are_told_from_those_left_alone():
    def marked(extra):
        steps = [StepRecord(1 - i / 6, i / 6, False, extra if i == 1 else 0) for i in range(6)]
        picture = draw_report(RunRecord("X", ("blade",), [[0.1]], 0.5, "harmless", steps))
        return _marks(picture, BLUE)

    assert marked(3) == [False, True, False, False, False, False]
    assert marked(0) == [False] * 6


def test_what_was_done_to_a_text_alone_is_never_said_to_be_uncertain_or_nowhere():
    done = RunRecord("Safe Conditioning", ("blade",), [[0.9]], 0.5, "blade 0.90: moved", sampled=False)
    trace = Trace()
    trace.begin(done)
    assert trace.runs_of(torch.ones(1, 4, 8, 8), "another queue run") == ([done], True)
    of_text, of_run = (draw_report(replace(done, sampled=sampled), None) for sampled in (False, True))
    assert not torch.equal(of_text, of_run)


# --- before and after, what the words are worth ----------------------------------------------------------------------


def test_before_and_after_stand_side_by_side_each_larger_than_a_third_of_the_page():
    green, blue = torch.zeros(1, 32, 32, 3), torch.zeros(1, 32, 32, 3)
    green[..., 1], blue[..., 2] = 1, 1
    picture = draw_report(_run(), green, unguarded=blue)
    after, before = _pixels(picture, (0, 255, 0)), _pixels(picture, (0, 0, 255))
    for area in (after, before):
        rows, columns = area.any(dim=1).nonzero(), area.any(dim=0).nonzero()
        assert int(columns.max() - columns.min()) > PIXELS / 3
        assert int(rows.max() - rows.min()) > PIXELS / 3
    assert torch.equal(after.any(dim=1), before.any(dim=1)), "at one height"
    assert int(before.any(dim=0).nonzero().max()) < int(after.any(dim=0).nonzero().min())


def test_words_that_are_not_known_take_the_verdict_back_in_words_and_colour():
    run = _run(scores=((0.1, 0.2),))
    sure, unsure = account_for([run], True), account_for([run], True, ("gun", "table"))
    assert sure.warning == ""
    assert unsure.decision.startswith(f"{run.decision}. THIS MEANS LITTLE: ")
    assert "does not know the words gun, table; it reads them as one and the same unknown word" in unsure.decision
    assert unsure.as_dict()["unknown_words"] == ["gun", "table"]
    assert "the word gun; it reads it as" in account_for([run], True, ("gun",)).warning

    def badge(account):
        return _pixels(draw_report(run, warning=account.warning)[:, : _at(44), : _at(250)], BLUE).sum()

    assert badge(sure) > 1000
    assert badge(unsure) == 0


def test_tokens_that_raised_the_flag_and_those_taken_along_are_on_the_page_and_in_the_record():
    run = replace(_run(), triggers=("knife",), taken_along=("red", "over"))
    assert run.as_dict()["triggers"] == ["knife"]
    assert run.as_dict()["taken_along"] == ["red", "over"]
    assert draw_report(run).shape[1] - draw_report(_run()).shape[1] == pytest.approx(2 * 15 * UNIT, abs=1)


def test_the_prompts_behind_a_node_are_those_of_the_positive_side():
    graph = {
        "1": {"class_type": "Loader", "inputs": {"text": "no prompt"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a toy gun"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "blurry"}},
        "4": {"class_type": "PrimitiveString", "inputs": {"value": "from a link"}},
        "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ["4", 0]}},
        "6": {"class_type": "Combine", "inputs": {"a": ["2", 0], "b": ["5", 0]}},
        "7": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "positive": ["6", 0], "negative": ["3", 0]}},
        "8": {"class_type": "Report", "inputs": {"latent": ["7", 0], "clip": ["1", 1], "text": "own"}},
        "9": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "of another sampler"}},
    }
    assert set(prompts_behind(graph, "8")) == {"a toy gun", "from a link"}
    assert prompts_behind(graph, "nowhere") == ()
    graph["4"]["inputs"]["value"] = ["8", 0]
    assert prompts_behind(graph, "8") == ("a toy gun",)
