"""What must hold for every concept guidance method: neutral is exact, limits are known forms, samples do not mix."""

import math
from dataclasses import replace

import pytest
import torch

from safeguidance.guidance import gate, negation, sega, sld, sp_guard
from safeguidance.guidance.crg import CRGConfig
from safeguidance.guidance.directions import agreement, choose, top_mask
from safeguidance.guidance.gate import GateConfig
from safeguidance.guidance.method import State, Step
from safeguidance.guidance.negation import NegationConfig
from safeguidance.guidance.registry import METHODS as REGISTRY
from safeguidance.guidance.sega import SEGAConfig
from safeguidance.guidance.settings import with_values
from safeguidance.guidance.sld import SLD_PRESETS, SLDConfig
from safeguidance.guidance.sp_guard import SPGuardConfig
from safeguidance.predictions import cfg

SHAPES = [(1, 4, 5, 6), (3, 4, 5, 6), (3, 3, 2, 4, 5)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPEN = GateConfig(settle=0.0, threshold=0.0)
# settings under which a method that judges acts on any prompt that agrees at all, to the last step
EAGER = {
    "sp_guard": [SPGuardConfig(end=1.0, concept=c, gate=OPEN) for c in ("probed", "step", "all")],
    "crg": [CRGConfig(threshold=0.0)],
}


def cases():
    """Every method of the registry with every kind of settings that it declares."""
    for name, method in REGISTRY.items():
        declared = [*method.choices.values(), *(variant.config for variant in method.variants.values())]
        for number, config in enumerate(dict.fromkeys(EAGER.get(name, declared))):
            yield f"{name}-{number}", (method, config)


def switches(method):
    """Settings that switch a method off where all of them are 0."""
    return [setting.name for setting in method.settings if setting.turns_off]


METHODS = dict(cases())
NEUTRAL = {
    **{
        f"{name}-off": (
            method,
            with_values(config, method.settings, {s.name: 0.0 for s in method.settings if s.turns_off}),
        )
        for name, (method, config) in METHODS.items()
    },
    "not-window": (negation.METHOD, NegationConfig(start=0.8, end=0.9)),
    "not-empty-window": (negation.METHOD, NegationConfig(start=0.5, end=0.5)),
    "sld-warm": (sld.METHOD, SLDConfig(warmup=0.7, momentum=0)),
    "sld-end": (sld.METHOD, SLDConfig(warmup=0.0, end=0.1)),
    "sega-warm": (sega.METHOD, SEGAConfig(warmup=0.7, momentum=0)),
    "sega-end": (sega.METHOD, SEGAConfig(warmup=0.0, end=0.1)),
    "sp-end": (sp_guard.METHOD, SPGuardConfig(end=0.1)),
}


def test_every_method_says_itself_that_it_is_off():
    for name, (method, config) in NEUTRAL.items():
        if name.endswith("-off"):
            assert method.is_neutral(config), name
    for name, (method, config) in METHODS.items():
        assert not method.is_neutral(config), name


def make(shape=(3, 4, 5, 6), progress=0.5, dtype=torch.float32, count=3, seed=0, sigma=None):
    """A step whose concepts all agree with the prompt to some degree."""
    generator = torch.Generator().manual_seed(seed)
    base, toward, x, *noises = (torch.randn(shape, generator=generator) for _ in range(3 + count))
    concepts = tuple((base + toward + (k + 1) / 2 * n).to(dtype) for k, n in enumerate(noises))
    level = 1 - 0.9 * progress if sigma is None else sigma
    return Step(
        (base + toward).to(dtype), base.to(dtype), concepts, x.to(dtype), torch.full(shape[:1], level), 7.5, progress
    )


def stock(step):
    return cfg(step.prompt, step.base, step.scale)


def run(method, config, steps, state=None):
    outputs, state = [], state or State()
    for step in steps:
        outputs.append(method.guide(step, config, state))
        state = outputs[-1].state
    return outputs


def part(step, b):
    cut = slice(b, b + 1)
    return replace(
        step,
        prompt=step.prompt[cut],
        base=step.base[cut],
        concepts=tuple(c[cut] for c in step.concepts),
        x=step.x[cut],
        sigma=step.sigma[cut],
    )


def full_run(seed=0, shape=(3, 4, 5, 6), points=(0.0, 0.1, 0.2, 0.4, 0.7), dtype=torch.float32):
    return [make(shape, point, dtype, seed=seed + 10 * i) for i, point in enumerate(points)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NEUTRAL)
def test_switched_off_or_outside_its_window_is_plain_cfg_and_asks_for_nothing(shape, dtype, name):
    method, config = NEUTRAL[name]
    state = State()
    for point in (0.3, 0.6):
        step = make(shape, point, dtype)
        info = step.info
        assert not method.required_concepts(info, config, state).any()
        got = method.guide(replace(step, concepts=(None,) * 3), config, state)
        assert got.denoised.dtype == dtype
        assert torch.equal(got.denoised, stock(step))
        assert not got.acted.any()
        state = got.state


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_concepts_is_plain_cfg(name, dtype):
    method, config = METHODS[name]
    for step in full_run(dtype=dtype):
        bare = replace(step, concepts=())
        assert torch.equal(method.guide(bare, config).denoised, stock(step))
        assert method.required_concepts(bare.info, config).numel() == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", METHODS)
def test_concepts_equal_to_the_base_are_plain_cfg(shape, dtype, name):
    method, config = METHODS[name]
    steps = [replace(step, concepts=(step.base,) * 3) for step in full_run(shape=shape, dtype=dtype)]
    for step, got in zip(steps, run(method, config, steps), strict=True):
        assert torch.equal(got.denoised, stock(step))
        assert not got.acted.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_does_act_where_concepts_agree_with_the_prompt(name, dtype):
    method, config = METHODS[name]
    last = run(method, config, full_run(dtype=dtype))[-1]
    assert last.acted.all()
    assert last.denoised.dtype == dtype
    assert last.denoised.isfinite().all()
    change = (last.denoised != stock(full_run(dtype=dtype)[-1])).flatten(1).any(dim=1)
    assert torch.equal(change, last.acted)


@pytest.mark.parametrize("name", METHODS)
def test_samples_do_not_mix(name):
    method, config = METHODS[name]
    steps = full_run()
    together = run(method, config, steps)
    for b in range(3):
        for both, alone in zip(together, run(method, config, [part(step, b) for step in steps]), strict=True):
            assert torch.allclose(both.denoised[b], alone.denoised[0], atol=1e-5)
            assert both.acted[b] == alone.acted[0]


@pytest.mark.parametrize("name", METHODS)
def test_the_predictions_that_are_asked_for_are_enough_and_the_others_are_not_read(name):
    method, config = METHODS[name]
    whole, state = run(method, config, full_run()), State()
    for step, expected in zip(full_run(), whole, strict=True):
        wanted = method.required_concepts(step.info, config, state)
        concepts = []
        for k, concept in enumerate(step.concepts):
            rows = wanted[:, k].reshape(-1, 1, 1, 1)
            concepts.append(torch.where(rows, concept, math.nan) if wanted[:, k].any() else None)
        got = method.guide(replace(step, concepts=tuple(concepts)), config, state)
        assert torch.equal(got.denoised, expected.denoised)
        state = got.state


@pytest.mark.parametrize("name", METHODS)
def test_a_rising_sigma_starts_afresh_and_the_same_run_twice_gives_the_same_bytes(name):
    method, config = METHODS[name]
    first = run(method, config, full_run())
    again = run(method, config, full_run(), first[-1].state)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.denoised, b.denoised)


@pytest.mark.parametrize("name", METHODS)
def test_a_second_call_at_the_same_sigma_replaces_the_first(name):
    method, config = METHODS[name]
    steps = full_run()
    doubled = [s for i, step in enumerate(steps) for s in (make(progress=step.progress, seed=500 + i), step)]
    once, twice = run(method, config, steps), run(method, config, doubled)[1::2]
    for a, b in zip(once, twice, strict=True):
        assert torch.equal(a.denoised, b.denoised)


@pytest.mark.parametrize("name", ["sld-1", "sega-0", "sp_guard-0"])
def test_what_happened_before_matters(name):
    method, config = METHODS[name]
    steps = full_run()
    other = [make(progress=0.0, seed=99), *steps[1:]]
    assert not torch.equal(run(method, config, steps)[-1].denoised, run(method, config, other)[-1].denoised)


@pytest.mark.parametrize("shape", SHAPES)
def test_sld_without_limits_and_momentum_is_composable_not(shape):
    step = make(shape, count=1)
    got = sld.sld(step, SLDConfig(1e9, 0.0, 1e9, 0.0, 0.0)).denoised
    assert torch.allclose(got, step.base + step.scale * (step.prompt - step.concepts[0]), atol=1e-4)
    assert torch.allclose(negation.negation(step, NegationConfig()).denoised, got, atol=1e-4)


def test_a_negative_prompt_on_the_harmful_prompt_lands_on_it_and_not_lands_on_the_base():
    step = make(count=1)
    step = replace(step, concepts=(step.prompt,))
    assert torch.allclose(negation.negation(step, NegationConfig(form="negative")).denoised, step.prompt, atol=1e-5)
    assert torch.allclose(negation.negation(step, NegationConfig()).denoised, step.base, atol=1e-5)


def test_sld_and_sega_remember_noise_so_a_smaller_sigma_gives_a_smaller_move():
    """With the concept gone at the second step only the momentum is left; it counts by that step's sigma."""
    for method, config in ((sld.METHOD, SLDConfig(warmup=0.0)), (sega.METHOD, SEGAConfig(warmup=0.0))):
        first, moves = make(progress=0.5, sigma=1.0), []
        for level in (0.8, 0.2):
            second = make(progress=0.6, sigma=level)
            second = replace(second, concepts=(second.base,) * 3)
            moves.append(run(method, config, [first, second])[1].denoised - stock(second))
        assert moves[0].abs().max() > 0
        assert torch.allclose(moves[0] / 4, moves[1], atol=1e-4)


def test_sld_presets_are_the_published_ones_as_fractions_of_the_schedule():
    published = {
        "weak": (15 / 50, 200, 0.0, 0.0, 0.0),
        "medium": (10 / 50, 1000, 0.01, 0.3, 0.4),
        "strong": (7 / 50, 2000, 0.025, 0.5, 0.7),
        "max": (0, 5000, 1.0, 0.5, 0.7),
    }
    got = {n: (c.warmup, c.strength, c.threshold, c.momentum, c.beta) for n, c in SLD_PRESETS.items()}
    assert got == published


def test_sega_is_added_outside_the_cfg_scale_and_not_inside():
    step, config = make(), SEGAConfig(warmup=0.0)
    moves = [sega.sega(s, config).denoised - stock(s) for s in (step, replace(step, scale=15.0))]
    assert torch.allclose(moves[0], moves[1], atol=1e-4)
    inside = [negation.negation(s, NegationConfig()).denoised - stock(s) for s in (step, replace(step, scale=15.0))]
    assert torch.allclose(2 * inside[0], inside[1], atol=1e-4)


def measured(prompt, base, concepts, config=OPEN, neutrals=()):
    zeros = torch.zeros(len(prompt))
    probe = gate.observe(Step(prompt, base, concepts, prompt, zeros, 7.5, 0.0, neutrals), config, None)
    return gate.scores(config, probe)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_the_score_is_one_for_the_concept_itself_and_zero_when_orthogonal_or_opposed(shape, size):
    generator = torch.Generator().manual_seed(1)
    toward = torch.randn(shape, generator=generator) * size
    apart = toward.flip(1).clone()
    left, right = toward.clone(), apart.clone()
    left[:, 0::2], right[:, 1::2] = 0, 0
    base = torch.zeros(shape)
    got = measured(left, base, (left, right, -left))
    assert torch.allclose(got, torch.tensor([[1.0, 0.0, 0.0]]).expand_as(got), atol=1e-6)
    assert (got[:, 1:] == 0).all()


@pytest.mark.parametrize("size", [1e-3, 7.0, 1e4])
def test_the_score_does_not_depend_on_the_size_of_predictions(size):
    step = make()
    small = measured(step.prompt, step.base, step.concepts)
    large = measured(step.prompt * size, step.base * size, tuple(c * size for c in step.concepts))
    assert small.min() > 0.01
    assert torch.allclose(small, large, atol=1e-4)


@pytest.mark.parametrize(("shape", "axis"), [(s, a) for s in [*SHAPES, (2, 3, 1, 7)] for a in ("sample", "channel")])
@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.7, 0.9, 0.95])
def test_the_mask_keeps_exactly_its_share(shape, axis, quantile):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    kept = top_mask(x, quantile, axis)
    flat = kept.flatten(1 if axis == "sample" else 2)
    hundredths = 100 - round(100 * quantile)
    assert (flat.sum(-1) == -(-hundredths * flat.shape[-1] // 100)).all()
    size = x.abs().flatten(1 if axis == "sample" else 2)
    assert (size.where(flat, torch.inf).amin(-1) >= size.where(~flat, -torch.inf).amax(-1)).all()


def test_the_mask_is_exact_beyond_the_limit_of_torch_quantile():
    size = 2**24 + 5
    x = torch.arange(size, dtype=torch.float32).flip(0).reshape(1, 1, 1, -1)
    with pytest.raises(RuntimeError):
        torch.quantile(x, 0.9)
    kept = top_mask(x, 0.9, "sample").flatten()
    assert int(kept.sum()) == math.ceil(size / 10)
    assert kept[: size // 10].all()


@pytest.mark.parametrize("method", ["sega", "sp-guard"])
def test_masked_methods_work_on_videos_beyond_the_limit_of_torch_quantile(method):
    shape = (1, 1, 17, 1024, 1024)
    base = torch.zeros(shape)
    concept = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    step = Step(concept, base, (concept,), base, torch.ones(1), 2.0, 0.5)
    assert math.prod(shape) > 2**24
    if method == "sega":
        got = sega.sega(step, SEGAConfig(momentum=0.0)).denoised != stock(step)
    else:
        got = sp_guard.mask(step.direction("prompt"), step.direction(0), SPGuardConfig()) > 0
    assert int(got.sum()) == pytest.approx(math.prod(shape) / 10, abs=2)
    assert got[concept.abs() > 0.901].all()
    assert not got[concept.abs() < 0.899].any()


@pytest.mark.parametrize("toward", [0, 1, 2])
def test_the_concept_is_the_one_nearest_to_the_prompt_whatever_its_size(toward):
    step = make()
    concepts = [step.base + 10 * (c - step.base) for c in step.concepts]
    concepts[toward] = step.base + 0.01 * (step.prompt - step.base)
    assert (choose(agreement(replace(step, concepts=tuple(concepts)))) == toward).all()


@pytest.mark.parametrize(
    ("config", "settings", "words"),
    [
        (NegationConfig, {"strength": -1}, "strength: it is -1"),
        (NegationConfig, {"start": 0.6, "end": 0.2}, "window: it is 0.6"),
        (NegationConfig, {"form": "x"}, "form: it is 'x'"),
        (NegationConfig, {"combine": "x"}, "concept: it is 'x'"),
        (SLDConfig, {"strength": -1}, "strength: it is -1"),
        (SLDConfig, {"warmup": 1.2}, "start: it is 1.2"),
        (SLDConfig, {"momentum": 2}, "momentum: it is 2"),
        (SLDConfig, {"beta": 1}, "beta: it is 1"),
        (SLDConfig, {"threshold": -0.1}, "threshold: it is -0.1"),
        (SEGAConfig, {"quantile": 1.0}, "quantile: it is 1.0"),
        (SEGAConfig, {"end": 0.1}, "window: it is 0.2 to 0.1"),
        (SEGAConfig, {"combine": "x"}, "concept: it is 'x'"),
        (SPGuardConfig, {"lambda_max": -1}, "lambda_max: it is -1"),
        (SPGuardConfig, {"psi": "x"}, "psi: it is 'x'"),
        (SPGuardConfig, {"axis": "x"}, "axis: it is 'x'"),
        (SPGuardConfig, {"concept": "x"}, "concept: it is 'x'"),
        (SPGuardConfig, {"switch": 2}, "switch: it is 2"),
        (GateConfig, {"probe": 0}, "probe: it is 0"),
        (GateConfig, {"every": 0}, "every: it is 0"),
        (GateConfig, {"threshold": 2}, "threshold: it is 2"),
        (GateConfig, {"offset": float("nan")}, "offset: it is nan"),
        (GateConfig, {"settle": 1.0}, "settle: it is 1.0"),
        (GateConfig, {"offset": (0.1, 2.0)}, "offset: it is 2.0"),
        (GateConfig, {"reference": "x"}, "reference: it is 'x'"),
    ],
)
def test_settings_out_of_range_are_refused_by_name_with_what_is_allowed(config, settings, words):
    with pytest.raises(ValueError, match=words + ".*allowed"):
        config(**settings)


def test_steps_that_do_not_fit_are_refused_by_name():
    step = make()
    for field, value, word in (
        ("base", step.base[:1], "base"),
        ("sigma", step.sigma[:1], "sigma"),
        ("concepts", (step.base[:, :1],), "concept 0"),
        ("progress", 1.5, "progress"),
    ):
        with pytest.raises(ValueError, match=word):
            replace(step, **{field: value})


def test_a_missing_concept_is_refused_and_not_passed_over():
    for method, config in ((sld.METHOD, SLDConfig()), (sp_guard.METHOD, SPGuardConfig(end=1.0, gate=OPEN))):
        step = make(progress=0.0)
        with pytest.raises(ValueError, match="concept 1 is missing"):
            method.guide(replace(step, concepts=(step.base, None, step.base)), config)
