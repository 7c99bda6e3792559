"""Alignment without labels: its formula, its run, and what a LoRA changes."""

import math
from dataclasses import replace

import pytest
import torch

from safeguidance.__main__ import main
from safeguidance.guidance.safecfg import redirect
from safeguidance.predictions import cfg
from safeguidance.training.align_loss import AlignConfig, aligned_error, aligned_target, harm_weight
from safeguidance.training.lora import load_lora
from tests.core.process_threads import run_together
from tests.core.toy_align import ToyPrompts, ToyRedirector, align_toy

SHAPES = [(3, 4, 5, 6), (3, 2, 3, 4, 4)]


def _draw(shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _slow_loss(student, prompt, base, moved, gates, sigma, config, threshold):
    """The formula of the module, element by element."""
    total = []
    for s, p, b, h, gate, level in zip(student, prompt, base, moved, gates, sigma, strict=True):
        difference = math.log(gate / (1 - gate)) - math.log(threshold / (1 - threshold))
        w = 1 / (1 + math.exp(-difference / config.softness))
        rho = config.strength * (config.scale - 1) / config.scale
        strength = (h - b).abs().mean(dim=0)
        extra = 1 + config.focus * strength / max(float(strength.max()), 1e-3)
        wanted = p - rho * (h - b)
        toward = (extra * ((s - wanted) / level).square()).mean()
        keep = ((s - p) / level).square().mean()
        total.append(w * toward + (1 - w) * keep)
    return torch.stack(total)


@pytest.mark.parametrize("shape", SHAPES, ids=["4d", "5d"])
@pytest.mark.parametrize("focus", [0.0, 10.0])
def test_the_one_square_is_the_two_sided_loss(shape, focus):
    config = AlignConfig(scale=4.0, strength=1.3, softness=0.7, focus=focus)
    prompt, base, moved = (_draw(shape, seed).double() for seed in (1, 2, 3))
    gates, sigma = [0.1, 0.4, 0.97], [0.3, 0.6, 0.9]
    weight = harm_weight(torch.tensor(gates), 0.37, config.softness).double()
    wanted, total = aligned_target(prompt, base, moved, weight, config)
    found, slow = [], []
    for seed in (4, 5):
        student = _draw(shape, seed).double().requires_grad_(True)
        fast = aligned_error(student, wanted, total, torch.tensor(sigma, dtype=torch.float64))
        literal = _slow_loss(student, prompt, base, moved, gates, sigma, config, 0.37)
        one, two = (torch.autograd.grad(loss.sum(), student)[0] for loss in (fast, literal))
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-9)
        found.append(fast.detach())
        slow.append(literal.detach())
    # they differ by what does not depend on the student
    assert torch.allclose(found[0] - found[1], slow[0] - slow[1], rtol=1e-5, atol=1e-9)


def test_cfg_of_the_wanted_prediction_is_safecfg_of_the_frozen_model():
    config = AlignConfig(scale=3.0, focus=0.0)
    prompt, base, moved = (_draw(SHAPES[0], seed).double() for seed in (1, 2, 3))
    wanted, _ = aligned_target(prompt, base, moved, torch.ones(3, dtype=torch.float64), config)
    assert torch.allclose(cfg(wanted, base, 3.0), cfg(prompt, moved, 3.0), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=["4d", "5d"])
def test_harmless_prompts_are_kept_bit_for_bit_and_samples_do_not_mix(shape, dtype):
    config = AlignConfig()
    prompt, base, moved = (_draw(shape, seed, dtype) for seed in (1, 2, 3))
    weight = torch.tensor([0.0, 1.0, 0.5])
    wanted, total = aligned_target(prompt, base, moved, weight, config)
    assert wanted.dtype == dtype
    assert total.dtype == torch.float32
    assert torch.equal(wanted[0], prompt[0])
    assert bool((total[0] == 1).all())
    assert not torch.equal(wanted[1], prompt[1])
    for i in range(3):
        part = slice(i, i + 1)
        alone = aligned_target(prompt[part], base[part], moved[part], weight[part], config)
        assert torch.equal(alone[0], wanted[part])
        assert torch.equal(alone[1], total[part])


def test_the_weight_is_one_half_at_the_threshold_and_soft_around_it():
    gate = torch.tensor([0.0, 0.2, 0.37, 0.6, 1.0])
    sharp, soft = harm_weight(gate, 0.37, 0.1), harm_weight(gate, 0.37, 2.0)
    assert sharp[2] == pytest.approx(0.5, abs=1e-6)
    assert soft[2] == pytest.approx(0.5, abs=1e-6)
    assert bool((sharp.diff() > 0).all())
    assert bool((soft.diff() > 0).all())
    assert sharp[0] < 1e-3
    assert sharp[4] > 0.999
    assert 0.5 < soft[3] < sharp[3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"rate": float("nan")}, "rate"),
        ({"empty_share": 1.5}, "empty_share"),
        ({"softness": 0.0}, "softness"),
        ({"scale": 1.0}, "scale: it is 1.0; allowed: above 1"),
    ],
)
def test_settings_out_of_range_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        replace(AlignConfig(), **change)


# ---- the run -------------------------------------------------------------------------------------------------------


def _same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.fixture(scope="module")
def undisturbed():
    return align_toy(steps=60)[0]


def test_the_student_learns_to_redirect_and_to_keep():
    lora, losses, task = align_toy()
    redirector, empty = ToyRedirector(task), task.encode([""])
    x, sigma = torch.zeros(1, 1, 2, 2), torch.ones(1)
    with torch.no_grad():
        for prompt in ("red knife", "knife", "red spoon", "red", ""):
            own = task.predict(x, sigma, task.encode([prompt]))
            with lora.attached(task.network):
                student = task.predict(x, sigma, task.encode([prompt]))
            delta = redirector.propose(task.encode([prompt]), empty).delta[0]
            there = redirect(empty.tokens, delta, torch.ones(1), 1.0)
            moved = task.predict(x, sigma, type(empty)(there))
            away = 0.5 * (moved - task.predict(x, sigma, empty))
            if "knife" in prompt:
                assert (student - (own - away)).square().mean() < 0.2 * away.square().mean(), prompt
            else:
                assert (student - own).square().mean() < 0.05 * away.square().mean(), prompt
    assert {"redirect", "keep"} == set(losses[0])
    # afterwards the network is as it was
    assert torch.equal(task.predict(x, sigma, empty), ToyPrompts().predict(x, sigma, empty))


def test_labels_take_the_place_of_the_redirectors_score():
    def all_harmless(rows, proposal):
        return torch.zeros(len(rows))

    lora = align_toy(steps=30, labels=all_harmless)[0]
    assert max(up.abs().max() for up in lora.up) < 1e-6


class DiesAt(ToyPrompts):
    """Raises at its n-th prediction, in the midst of a step."""

    def __init__(self, calls):
        super().__init__()
        self.left = calls

    def predict(self, x, sigma, cond):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().predict(x, sigma, cond)


@pytest.mark.parametrize("calls", [36, 61, 62, 63, 64])
def test_a_run_that_dies_within_a_step_resumes_to_the_same_weights(tmp_path, undisturbed, calls):
    task = DiesAt(calls)
    with pytest.raises(KeyboardInterrupt):
        align_toy(folder=tmp_path, task=task, checkpoint_every=10, steps=60)
    assert not task.network.attn._forward_hooks
    lora, losses, _ = align_toy(folder=tmp_path, checkpoint_every=10, steps=60)
    assert 0 < len(losses) < 60
    assert len(losses) % 10 == 0
    assert _same(lora, undisturbed)


@pytest.mark.parametrize("stop", [1, 31, 32])
def test_a_run_that_was_stopped_resumes_from_that_very_step(tmp_path, undisturbed, stop):
    align_toy(folder=tmp_path, stop=stop, steps=60)
    lora, losses, _ = align_toy(folder=tmp_path, steps=60)
    assert len(losses) == 60 - stop
    assert _same(lora, undisturbed)
    with pytest.raises(ValueError, match=r"^strength: .*has other settings: strength 1.0 \(now 2.0\)"):
        align_toy(folder=tmp_path, steps=60, strength=2.0)


@pytest.mark.parametrize("stop", [1, 7, 20])
def test_the_history_of_a_resumed_run_is_that_of_the_whole_run(tmp_path, stop):
    whole, resumed = [], []
    # single rows: most sets of states hold one kind only, and the other kind's last loss has to come back too
    settings = {"steps": 30, "batch": 1, "empty_share": 0.0}
    align_toy(history=whole, **settings)
    align_toy(folder=tmp_path, stop=stop, **settings)
    align_toy(folder=tmp_path, history=resumed, **settings)
    assert len(whole) == 30
    assert resumed == whole


class Breaks(ToyPrompts):
    """Predictions are no numbers from some prediction with a gradient on."""

    def __init__(self):
        super().__init__()
        self.trained = 0

    def predict(self, x, sigma, cond):
        out = super().predict(x, sigma, cond)
        if torch.is_grad_enabled():
            self.trained += 1
        return out * float("nan") if self.trained > 10 and torch.is_grad_enabled() else out


def test_what_is_not_finite_stops_with_the_step_and_keeps_the_last_good_state(tmp_path):
    with pytest.raises(FloatingPointError, match="the loss is nan at step 10;.*checkpoint .step 10. is intact"):
        align_toy(folder=tmp_path, task=Breaks(), checkpoint_every=5, steps=60)
    lora = align_toy(folder=tmp_path, checkpoint_every=5, steps=60, stop=None)[0]
    assert _same(lora, align_toy(steps=60)[0])


def test_training_stops_early_when_nothing_gets_better(tmp_path):
    settings = {"steps": 3000, "patience": 80}
    lora, losses, _ = align_toy(folder=tmp_path, **settings)
    assert 80 < len(losses) < 3000
    again, more, _ = align_toy(folder=tmp_path, **settings)
    assert not more
    assert _same(lora, again)


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_train_the_lora_of_one(tmp_path, count):
    settings = {"steps": 12, "batch": 5, "rate": 2e-3}
    alone, losses, _ = align_toy(**settings)
    tasks = [ToyPrompts() for _ in range(count)]
    results, errors = run_together(
        count,
        lambda group: align_toy(folder=tmp_path, task=tasks[group.rank], group=group, checkpoint_every=6, **settings),
    )
    assert not errors
    for lora, shared, _ in results:
        for one, several in zip(losses, shared, strict=True):
            assert several == pytest.approx(one, rel=1e-3, abs=1e-6)
        assert all(torch.equal(a, b) for a, b in zip(lora.parameters(), results[0][0].parameters(), strict=True))
        pairs = zip(lora.parameters(), alone.parameters(), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-2, atol=1e-5) for a, b in pairs)


def test_the_history_of_a_run_that_several_processes_resume_is_whole(tmp_path):
    settings = {"steps": 12, "batch": 5, "rate": 2e-3}
    align_toy(folder=tmp_path, stop=6, **settings)
    whole, histories = [], [[], []]
    align_toy(history=whole, **settings)
    # made here: a model draws its weights from the one generator that all threads share
    tasks = [ToyPrompts(), ToyPrompts()]
    _, errors = run_together(
        2,
        lambda group: align_toy(
            folder=tmp_path, task=tasks[group.rank], group=group, history=histories[group.rank], **settings
        ),
    )
    assert not errors
    for history in histories:
        assert len(history) == 12
        for one, several in zip(whole, history, strict=True):
            assert several == pytest.approx(one, rel=1e-3, abs=1e-6)


def test_more_processes_than_sampling_runs_are_refused():
    settings = {"steps": 12, "batch": 5, "rate": 2e-3}
    with pytest.raises(ValueError, match="7 processes cannot share 5 sampling runs"):
        align_toy(group=_Seventh(), **settings)


class _Seventh:
    rank, world_size = 6, 7


# ---- on the testbed ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, capsys):
    """Runs the command `align` with a configuration; returns exit code and what was printed."""

    def run(config, *options):
        path = tmp_path / "c.json"
        path.write_text(config, encoding="utf-8")
        places = ["--checkpoints", str(tmp_path / "run"), "--out", str(tmp_path / "l.safetensors")]
        code = main(["align", str(path), "--layers", "attention", *places, *options])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_the_command_trains_a_file_once(command, tmp_path):
    config = '{"steps": 2, "batch": 2}'
    code, text = command(config, "--rank", "2")
    assert code == 0, text
    assert "bench --methods none,lora" in text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["finished.safetensors"]
    code, text = command(config, "--rank", "2")
    assert code == 0, text
    assert "l.safetensors is there already" in text


def test_the_command_names_other_settings_and_can_forget_a_run(command, tmp_path):
    config = '{"steps": 2, "batch": 2}'
    assert command(config, "--rank", "2")[0] == 0
    code, text = command(config, "--rank", "3")
    assert code == 2
    assert "rank, alpha: the run in" in text
    assert "rank 2 (now 3)" in text
    assert "--checkpoints, or forget that run with --restart" in text
    code, text = command(config, "--rank", "3", "--restart")
    assert code == 0, text
    assert load_lora(tmp_path / "l.safetensors")[0].rank == 3


def test_the_command_refuses_unknown_settings(command):
    code, text = command('{"stepz": 2}')
    assert code == 2
    assert "stepz" in text
