"""Detection: scores against slow formulas, neutral cases, and the command."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from safeguidance.__main__ import main
from safeguidance.conditioning import Conditioning
from safeguidance.errors import InputError
from safeguidance.lab import artwork
from safeguidance.redirector.detection import (
    calibrate_score,
    fixed_draws,
    full_redirect,
    picture_distance,
    picture_evidence,
    prompt_scores,
)
from safeguidance.redirector.hgr import HGR, TrainedRedirector
from tests.core.toy_task import SHAPE, ToyTask, toy_drawings

TASK = ToyTask()
BASE = Conditioning(torch.zeros(1, 5, 16))
DRAWS = fixed_draws([0.3, 0.6, 0.9], (1, 2, 2), seed=3)


def _redirector(trained=True, **changes):
    torch.manual_seed(0)
    network = HGR(replace(SHAPE, **changes))
    if trained:
        torch.nn.init.normal_(network.leave.weight)
        torch.nn.init.normal_(network.judge.weight)
    return TrainedRedirector(network, "", 0.3, 1.5)


def _prompts(count=3):
    return Conditioning(torch.randn(count, 5, 16, generator=torch.Generator().manual_seed(1)))


def test_the_embedding_score_is_the_distance_of_the_redirected_text():
    redirector, prompts = _redirector(edges=(0.0, 0.5)), _prompts()
    found = prompt_scores(redirector, prompts, BASE)
    proposal = redirector.propose(prompts, BASE)
    for row in range(3):
        slow = []
        for delta in proposal.delta:
            h = BASE.tokens[0] + proposal.gate[row] * delta[row]
            slow.append(float((h - BASE.tokens[0]).norm() / (5 * 16) ** 0.5))
        assert float(found.distance[row]) == pytest.approx(max(slow), rel=1e-5)
    assert torch.equal(found.gate, found.categories.amax(1))


def test_an_untrained_redirector_finds_no_distance():
    assert prompt_scores(_redirector(False), _prompts(), BASE).distance.max() == 0
    x = torch.randn(3, 1, 2, 2)
    assert picture_distance(TASK.predict, TASK.noised, x, DRAWS, _redirector(False), _prompts(), BASE).max() == 0
    h = full_redirect(_redirector(False), _prompts(), BASE)
    assert picture_evidence(TASK.predict, TASK.noised, x, DRAWS, [h], BASE).abs().max() == 0


def _slow_distance(x, prompt, redirector):
    proposal = redirector.propose(prompt, BASE)
    h = BASE.tokens + proposal.gate.reshape(-1, 1, 1) * proposal.delta[0]
    total = 0.0
    for sigma, noise in zip(DRAWS.sigma, DRAWS.noise, strict=True):
        noisy = TASK.noised(x, noise[None], sigma[None])
        e = [(noisy - TASK.predict(noisy, sigma[None], Conditioning(c))) / sigma for c in (h, BASE.tokens)]
        total += float(((e[0] - e[1]) ** 2).mean())
    return total / 3


def test_the_noise_score_is_the_mean_over_the_draws_and_needs_no_batch():
    redirector, prompts, x = _redirector(), _prompts(), torch.randn(3, 1, 2, 2)
    found = picture_distance(TASK.predict, TASK.noised, x, DRAWS, redirector, prompts, BASE)
    for row in range(3):
        one = Conditioning(prompts.tokens[row : row + 1])
        assert float(found[row]) == pytest.approx(_slow_distance(x[row : row + 1], one, redirector), rel=1e-4)
        alone = picture_distance(TASK.predict, TASK.noised, x[row : row + 1], DRAWS, redirector, one, BASE)
        assert torch.allclose(alone, found[row : row + 1], rtol=1e-5)


def test_evidence_is_above_zero_for_the_condition_that_explains_the_picture():
    condition = TASK.encode(["red knife"])
    target = torch.tanh(0.2 * condition.tokens.mean(1) @ TASK.mix).reshape(1, 1, 2, 2)

    def knows(x, sigma, cond):
        # a perfect model of two pictures: the condition's, and its opposite for everything else
        same = (cond.tokens == condition.tokens).flatten(1).all(1).reshape(-1, 1, 1, 1)
        return torch.where(same, target, -target).expand(len(x), -1, -1, -1)

    shown = torch.cat([target, -target])
    found = picture_evidence(knows, TASK.noised, shown, DRAWS, [condition, TASK.encode(["spoon"])], BASE)
    expected = float((((2 * target) ** 2).mean() / DRAWS.sigma**2).mean())
    assert float(found[0, 0]) == pytest.approx(expected, rel=1e-4)
    assert float(found[1, 0]) == pytest.approx(-expected, rel=1e-4)
    assert found[:, 1].abs().max() < 1e-5


def test_evidence_counts_only_beyond_the_best_harmless_explanation():
    harm, other = TASK.encode(["red knife"]), TASK.encode(["red spoon"])
    x = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(3))

    def found(conditions, **more):
        return picture_evidence(TASK.predict, TASK.noised, x, DRAWS, conditions, BASE, **more)

    alone, beside = found([harm]), found([other])
    assert torch.allclose(found([harm], harmless=[other]), alone - beside.clamp(min=0), atol=1e-6)
    # a counterpart that is the harm itself leaves no evidence of it
    assert float(found([harm], harmless=[harm]).max()) <= 1e-6


def test_thresholds_hold_the_stated_rate_and_say_what_is_missing():
    scores = torch.rand(200, generator=torch.Generator().manual_seed(0)).tolist()
    limit = calibrate_score(scores, 0.05)
    assert sum(map(limit.harmful, scores)) == 10
    assert limit.count == 200
    assert limit.standard(limit.mean) == 0
    assert limit.standard(limit.mean + 2 * limit.spread) == pytest.approx(2)
    with pytest.raises(InputError, match="^harmless: 20 harmless prompts .*cannot show .* 0.01; allowed: at least 100"):
        calibrate_score(scores[:20])


def test_what_does_not_fit_or_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="has 8 channels.*made for 16"):
        prompt_scores(_redirector(), Conditioning(torch.zeros(1, 5, 8)), Conditioning(torch.zeros(1, 5, 8)))
    with pytest.raises(ValueError, match="not a finite number"):
        prompt_scores(_redirector(), Conditioning(torch.full((1, 5, 16), float("nan"))), BASE)
    for level in (0.0, float("nan")):
        with pytest.raises(InputError, match="^levels: .*above 0"):
            fixed_draws([0.5, level], (1, 2, 2))


def test_the_command_measures_and_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(artwork, "load", lambda folder: toy_drawings())
    arguments = ["score", "--count", "6", "--calibration", "20", "--rate", "0.05", "--out", str(tmp_path)]
    assert main([*arguments, "--scores", "gate;embedding"]) == 0
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "score.json").read_text(encoding="utf-8"))["scores"]
    assert [d["score"] for d in record] == ["gate", "embedding"]
    assert record[0]["area"]["explicit"] > 0.9
    for found in record:
        areas = " | ".join(f"{found['area'][group]:.3f}" for group in ("explicit", "implied"))
        assert f"| {found['score']} | {areas} | {found['found']['explicit']} of 6 | " in said
    assert all(len(values) == 6 for d in record for values in d["values"].values())
    assert Image.open(tmp_path / "roc.png").width > 400
    assert main([*arguments, "--scores", "magic"]) == 2
    assert "scores: it is 'magic'; allowed: gate, embedding" in capsys.readouterr().err


def test_measuring_pictures_without_the_artwork_says_how_to_get_it(tmp_path, capsys):
    assert main(["score", "--scores", "gate", "--artwork", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "testbed fetch" in capsys.readouterr().err


@pytest.mark.parametrize(("thing", "verdict"), [("skull", "harmful"), ("ghost", "harmless")])
def test_one_prompt_is_judged(capsys, thing, verdict):
    assert main(["score", f"a {thing} on a meadow"]) == 0
    assert f"prompt: {verdict}, gate" in capsys.readouterr().out


def test_a_picture_of_another_size_is_refused(tmp_path, capsys):
    Image.new("RGB", (64, 48)).save(tmp_path / "p.png")
    assert main(["score", "--picture", str(tmp_path / "p.png")]) == 2
    assert "64x48 pixels; allowed: a picture of 48x48" in capsys.readouterr().err
