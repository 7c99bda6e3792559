"""The report: what the picture, the mask and the verdict say about a run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from safeguidance.report.picture import WIDTH, draw_report, effect_mask
from safeguidance.report.trace import RunRecord, StepRecord, Trace

RED, BLUE = (208, 60, 48), (70, 130, 180)


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
    assert first.shape[2:] == (WIDTH, 3)
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
    def red_in_bars(score):
        picture = draw_report(_run(scores=((score, 0.0),), acted=()))
        return int(_pixels(picture, RED)[130:200, 640:1110].sum())

    assert red_in_bars(0.5) > 1000
    assert red_in_bars(0.49) == 0
    assert red_in_bars(0.9) > red_in_bars(0.6)


def test_the_timeline_marks_the_changed_steps():
    def marked(acted):
        picture = draw_report(_run(scores=((0.1, 0.1),), acted=acted))
        columns = _pixels(picture, RED)[-90:-40].sum(dim=0) > 20
        return [bool(columns[32 + int((i + 0.5) * (WIDTH - 64) / 6)]) for i in range(6)]

    assert marked((0, 4)) == [True, False, False, False, True, False]
    assert marked(()) == [False] * 6


def test_the_overlay_lights_up_where_the_method_acted():
    effect = torch.zeros(1, 8, 8)
    effect[0, :4, :4] = 3.0
    picture = draw_report(_run(effect=effect), torch.zeros(1, 64, 64, 3))[0]
    overlay = picture[136:406, 322:592]
    bright = overlay.sum(dim=-1)
    assert float(bright[20:100, 20:100].mean()) > 3 * float(bright[180:, 180:].mean())


def test_four_samples_at_most_are_drawn_and_each_adds_a_row():
    rows = ((0.9, 0.1),) * 6
    heights = [draw_report(_run(scores=rows[:n]), torch.rand(n, 16, 16, 3)).shape[1] for n in (1, 2, 4, 6)]
    assert heights[2] - heights[1] == 2 * (heights[1] - heights[0])
    assert heights[2] < heights[3] < heights[2] + 60


def test_scores_per_step_add_a_curve():
    assert draw_report(_run(step_scores=(0.3, 0.7))).shape[1] > draw_report(_run()).shape[1]


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
        assert picture.shape[2] == WIDTH


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
    bare, masked = (draw_report(_live_run([None, None, e, e])) for e in (None, corner))
    assert masked.shape[1] > bare.shape[1]
    bright = _pixels(masked, (255, 235, 120))[bare.shape[1] - 10 :]
    columns = bright.any(dim=0).nonzero().flatten()
    assert 0.2 * 100 * 100 < int(bright.sum()) / 2 < 0.3 * 100 * 100, "a quarter of each of two maps of 100 pixels"
    assert int(columns.min()) < 70
    assert int(columns.max()) < 300
    nothing = draw_report(_live_run([None, torch.zeros(1, 8, 8), None, None]))
    assert nothing.shape == bare.shape


def test_at_most_ten_maps_and_four_samples_are_drawn():
    many = [torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(k)) for k in range(40)]
    run, images = _live_run(many), torch.rand(6, 16, 16, 3)
    one = draw_report(_live_run(many[:1]), images).shape[1]
    assert draw_report(run, images).shape[1] == one
    video = _live_run([torch.rand(1, 5, 4, 4), torch.rand(1, 5, 4, 4)])
    assert bool(torch.isfinite(draw_report(video)).all())


def test_a_method_that_does_not_judge_is_not_reported_as_judging():
    run = _run(acted=())
    run.threshold = None
    assert not run.harmful
    picture = draw_report(run)
    bars = picture[:, 130:200, 640:1110]
    assert _pixels(bars, RED).sum() == 0
    assert _pixels(bars, BLUE).sum() > 1000
    assert json.loads(json.dumps(run.as_dict()))["threshold"] is None


def test_scores_of_steps_do_not_overrule_the_judgement():
    """A first measurement may be above the threshold while the mean over all of them is not."""
    run = _run(scores=((0.3, 0.1),), step_scores=(0.9, 0.1))
    assert run.harm == 0.3
    assert not run.harmful


def test_each_picture_of_a_batch_has_its_own_verdict():
    def inks(scores, acted=(2, 3)):
        picture = draw_report(_run(scores=scores, acted=acted), torch.zeros(len(scores), 16, 16, 3))
        rows = [picture[:, top : top + 40, 640:900] for top in (230, 230 + 328)]
        return [(bool(_pixels(row, RED).any()), bool(_pixels(row, BLUE).any())) for row in rows[: len(scores)]]

    assert inks(((0.9, 0.1), (0.2, 0.1))) == [(True, False), (False, True)]
    assert inks(((0.2, 0.1), (0.5, 0.1))) == [(False, True), (True, False)]
    unjudged = _run()
    unjudged.threshold = None
    assert not _pixels(draw_report(unjudged)[:, 230:270, 640:900], BLUE).any()


def test_a_picture_of_a_batch_that_was_not_changed_is_not_shown_as_changed():
    effect = torch.zeros(2, 8, 8)
    effect[0, :4, :4] = 1.0
    picture = draw_report(_run(scores=((0.9, 0.1), (0.2, 0.1)), effect=effect), torch.full((2, 16, 16, 3), 0.5))
    middle = [picture[0, top + 100, 322:592].std(dim=0).max() for top in (136, 136 + 328)]
    assert float(middle[0]) > 0.05
    assert not _pixels(picture[:, 464:560, 322:592], (128, 128, 128)).any()


def test_steps_that_only_measured_are_told_from_those_left_alone():
    def marked(extra):
        steps = [StepRecord(1 - i / 6, i / 6, False, extra if i == 1 else 0) for i in range(6)]
        picture = draw_report(RunRecord("X", ("blade",), [[0.1]], 0.5, "harmless", steps))
        columns = _pixels(picture, BLUE)[-90:-40].sum(dim=0) > 20
        return [bool(columns[32 + int((i + 0.5) * (WIDTH - 64) / 6)]) for i in range(6)]

    assert marked(3) == [False, True, False, False, False, False]
    assert marked(0) == [False] * 6


def test_what_was_done_to_a_text_alone_is_never_said_to_be_uncertain_or_nowhere():
    done = RunRecord("Safe Conditioning", ("blade",), [[0.9]], 0.5, "blade 0.90: moved", sampled=False)
    trace = Trace()
    trace.begin(done)
    assert trace.runs_of(torch.ones(1, 4, 8, 8), "another queue run") == ([done], True)
    of_text, of_run = (draw_report(replace(done, sampled=sampled), None) for sampled in (False, True))
    assert not torch.equal(of_text, of_run)
