"""The redirector in text space: what it changes and what it leaves, its training, its files, and the shipped one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from safeguidance.conditioning import Conditioning
from safeguidance.errors import InputError
from safeguidance.lab.bench.prompts import captions_for
from safeguidance.prompts.banks import bank_prompts
from safeguidance.prompts.files import Example, PromptData
from safeguidance.redirector.hgr import HGR, HGRConfig
from safeguidance.redirector.text_space import SAFE_TEXT_PRESETS, SafeTextConfig, TextRedirector, redirect_text
from safeguidance.redirector.text_weights import TextCard, load_text_redirector, read_text_card, save_text_redirector
from safeguidance.redirector.weights import HGRCard, load_hgr, save_hgr
from safeguidance.testbed.model import TEXT_REDIRECTOR_FILE, WEIGHTS, load_testbed
from safeguidance.training.hgr import gate_loss, learning_gate
from safeguidance.training.matched import _walk_costs, match_places, matched
from safeguidance.training.text_redirector import TextObjective, TextTrainConfig, train_text_redirector
from safeguidance.weight_files import WeightFileError
from tests.core.reference_text_space import cheapest_walk, safe_prompt
from tests.core.toy_task import ToyTask, toy_network

SHAPE = HGRConfig(8, ("knives", "drugs"), width=16, heads=2, layers=1, chunk=5)
CARD = TextCard("SomeClipModel", 0.3, 0.01, 100, "made up", "Apache-2.0", {"steps": 3})
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def redirector(shape=SHAPE, seed=0):
    """An untrained network whose change and gate are not zero."""
    torch.manual_seed(seed)
    network = HGR(shape)
    with torch.no_grad():
        for layer in (network.leave, network.leave_pooled):
            if layer is not None:
                layer.weight.normal_(0, 0.5)
        network.judge.bias.zero_()
        network.judge.weight.normal_(0, 0.5)
    return TextRedirector(network.requires_grad_(False).eval(), "SomeClipModel", 0.5)


def prompts(rows=6, length=5, pooled=0, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(rows, length, 8, generator=generator).to(dtype)
    return Conditioning(tokens, torch.randn(rows, pooled, generator=generator).to(dtype) if pooled else None)


def some_open(found, cond):
    """A threshold that about half of the rows reach."""
    gates = found.scores(cond).amax(dim=1).sort().values
    return float((gates[len(gates) // 2 - 1] + gates[len(gates) // 2]) / 2)


# --- what it does ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.7, 1.0, 2.0])
def test_it_says_what_the_formula_says(strength):
    found, cond = redirector(), prompts()
    limit = some_open(found, cond)
    outcome = redirect_text(found, cond, SafeTextConfig(strength, limit))
    gate, delta = found.scores(cond).amax(dim=1).tolist(), found.change(cond).tokens
    wanted = safe_prompt(cond.tokens, delta, gate, limit, strength)
    assert torch.allclose(outcome.conditioning.tokens, torch.stack(wanted), atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_harmless_rows_stay_as_they_are_to_the_last_bit(dtype, rows):
    found, cond = redirector(), prompts(2 * rows, dtype=dtype)
    before = cond.tokens.clone()
    outcome = redirect_text(found, cond, SafeTextConfig(threshold=some_open(found, cond)))
    assert outcome.acts
    assert not bool(outcome.open.all())
    for place, opened in enumerate(outcome.open.tolist()):
        assert torch.equal(outcome.conditioning.tokens[place], before[place]) != opened
    assert outcome.conditioning.tokens.dtype == dtype
    assert torch.equal(cond.tokens, before)


@pytest.mark.parametrize("config", [SafeTextConfig(threshold=1.0), SafeTextConfig(strength=0.0, threshold=0.0)])
def test_a_closed_gate_and_no_strength_give_the_very_object(config):
    cond = prompts()
    outcome = redirect_text(redirector(), cond, config)
    assert outcome.conditioning is cond
    assert not outcome.acts


def test_a_batch_says_of_each_row_what_the_row_alone_says():
    found, cond = redirector(), prompts()
    config = SafeTextConfig(threshold=some_open(found, cond))
    together = redirect_text(found, cond, config).conditioning.tokens
    for place in range(len(together)):
        alone = redirect_text(found, Conditioning(cond.tokens[place : place + 1]), config).conditioning.tokens
        assert torch.allclose(alone[0], together[place], atol=1e-5)


def test_the_pooled_vector_moves_with_the_states_where_there_is_a_head_for_it():
    found, cond = redirector(replace(SHAPE, pooled_width=6)), prompts(pooled=6)
    outcome = redirect_text(found, cond, SafeTextConfig(threshold=0.0))
    assert not torch.equal(outcome.conditioning.pooled, cond.pooled)
    left = redirect_text(redirector(), cond, SafeTextConfig(threshold=0.0))
    assert left.conditioning.pooled is cond.pooled


@pytest.mark.parametrize(
    ("cond", "words"),
    [
        (Conditioning(torch.zeros(1, 5, 9)), "it has 9 channels"),
        (Conditioning(torch.full((1, 5, 8), torch.nan)), "not finite numbers"),
    ],
)
def test_what_it_cannot_read_is_refused(cond, words):
    with pytest.raises(InputError, match=words):
        redirect_text(redirector(), cond, SafeTextConfig())


def test_a_missing_pooled_vector_is_refused():
    with pytest.raises(InputError, match="pooled vector of 0"):
        redirect_text(redirector(replace(SHAPE, pooled_width=6)), prompts(), SafeTextConfig())


@pytest.mark.parametrize("values", [{"strength": 2.1}, {"strength": float("nan")}, {"threshold": 1.1}])
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(InputError):
        SafeTextConfig(**values)


# --- matching --------------------------------------------------------------------------------------------------------


def table(seed, rows, columns):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, rows, columns, generator=generator)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [(1, 1), (2, 4), (5, 3), (4, 4)])
def test_walks_cost_what_trying_all_of_them_says(seed, size):
    cost = table(seed, *size)
    assert float(_walk_costs(cost)[0, -1, -1]) == pytest.approx(cheapest_walk(cost[0].tolist()), rel=1e-5)


def states(*words, pad=0):
    """One state a word: the same for the same word, with padding behind."""
    made = []
    for word in [*words, *["pad"] * pad]:
        generator = torch.Generator().manual_seed(sum(map(ord, word)) * 7919)
        made.append(torch.randn(16, generator=generator))
    return torch.stack(made)[None]


def test_as_many_words_are_matched_place_by_place():
    found = match_places(states("red", "knife", "left", pad=3), states("red", "spoon", "left", pad=3))
    assert found[0].tolist()[:3] == [0, 1, 2]


def test_words_behind_a_longer_phrase_keep_their_own_states():
    prompt = states("thing", "that", "blows", "up", "and", "tree", pad=2)
    safe = states("balloon", "and", "tree", pad=5)
    found = matched(Conditioning(prompt), Conditioning(safe)).tokens[0]
    assert torch.equal(found[4], safe[0, 1])
    assert torch.equal(found[5], safe[0, 2])
    for place in range(4):
        assert torch.equal(found[place], safe[0, 0])


def test_no_state_of_a_longer_counterpart_is_lost():
    prompt = states("gun", "and", "tree", pad=5)
    safe = states("a", "loaf", "of", "bread", "and", "tree", pad=2)
    places = match_places(prompt, safe)[0].tolist()
    assert set(places) >= {0, 1, 2, 3, 4, 5}
    assert places[1:3] == [4, 5]


def test_a_prompt_that_is_its_own_counterpart_keeps_its_order():
    prompt = states("a", "red", "cup", pad=3)
    assert torch.equal(matched(Conditioning(prompt), Conditioning(prompt)).tokens, prompt)


# --- training --------------------------------------------------------------------------------------------------------

TOY = TextTrainConfig(steps=250, batch=12, rate=3e-3, gate_weight=1.0, jitter=0.0)


def trained(config=TOY, folder=None, stop=None):
    network = toy_network()
    steps = train_text_redirector(network, ToyTask(), config, folder, checkpoint_every=10, progress_bar=False)
    for step in steps:
        if step == stop:
            steps.close()
            break
    return network.requires_grad_(False)


def test_training_moves_harm_to_its_counterpart_and_leaves_the_rest():
    network, task = trained(), ToyTask()
    found = TextRedirector(network, "toy", 0.5)
    harm, safe = task.encode(["red knife"]), task.encode(["red spoon"])
    outcome = redirect_text(found, harm, SafeTextConfig())
    assert outcome.acts
    apart = (harm.tokens - safe.tokens).norm()
    assert (outcome.conditioning.tokens - safe.tokens).norm() < 0.1 * apart
    for text in ("spoon", "red"):
        assert not redirect_text(found, task.encode([text]), SafeTextConfig()).acts


def test_a_run_that_was_stopped_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    config = replace(TOY, steps=40)
    whole = trained(config)
    trained(config, tmp_path, stop=23)
    resumed = trained(config, tmp_path)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_words_of_age_teach_the_gate_of_sexual_nothing():
    examples = [Example("a naked adult", "a dressed adult", "sexual"), Example("a girl reads", "a girl reads")]
    examples.append(Example("a knife in a back", "a hand on a back", "violence"))
    data = PromptData("x.csv", tuple(examples), "")
    rows = [row for row in data.rows() if row.category < 0]
    sexual = data.categories.index("sexual")
    apart = {row.prompt: row.unjudged for row in rows}
    assert apart == {"a dressed adult": (sexual,), "a girl reads": (sexual,), "a hand on a back": ()}
    logits = torch.zeros(len(rows), len(data.categories), requires_grad=True)
    (gate_loss(logits, rows) + learning_gate(logits, rows).sum()).backward()
    for row, slope in zip(rows, logits.grad, strict=True):
        assert (slope[sexual] == 0) == bool(row.unjudged)
        assert bool((slope != 0).any())


def test_settings_and_seeds_change_nothing_but_what_they_say():
    class Recorded(ToyTask):
        asked = []

        def rows(self, step, count):
            self.asked.append((step, count))
            return super().rows(step, count)

    objective = TextObjective(toy_network(), Recorded(), TOY)
    one = objective.compute_loss(3, torch.Generator().manual_seed(0))[0]
    other = objective.compute_loss(3, torch.Generator().manual_seed(0))[0]
    assert torch.equal(one, other)
    assert Recorded.asked == [(3, 12), (3, 12)]


def test_the_banks_make_training_and_held_out_rows_of_every_category():
    data, small = bank_prompts(), bank_prompts(400)
    assert len(data.categories) == 7
    assert set(data.counts("held-out")) == set(data.counts("train")) == {*data.categories, "clean"}
    assert set(small.counts("train")) == set(data.counts("train"))
    assert len(small.examples) < len(data.examples) / 4
    assert small.digest != data.digest == bank_prompts().digest


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_gives_the_redirector_it_was_saved_from(tmp_path):
    found, cond = redirector(), prompts()
    path = tmp_path / "some.safetensors"
    save_text_redirector(path, found.network, CARD)
    loaded = load_text_redirector(path)
    assert read_text_card(path) == (SHAPE, CARD)
    assert (loaded.encoder, loaded.threshold, loaded.categories) == ("SomeClipModel", 0.3, SHAPE.categories)
    assert torch.allclose(loaded.scores(cond), found.scores(cond), atol=1e-2)


def test_each_kind_of_file_is_refused_as_the_other(tmp_path):
    of_text, of_model = tmp_path / "text.safetensors", tmp_path / "hgr.safetensors"
    network = redirector().network
    save_text_redirector(of_text, network, CARD)
    save_hgr(of_model, network, HGRCard("SomeModel", "A", 3.0, 0.3, 0.01, 100, "made up", "Apache-2.0", {"steps": 3}))
    with pytest.raises(WeightFileError, match="text redirector"):
        load_text_redirector(of_model)
    with pytest.raises(WeightFileError, match="HGR"):
        load_hgr(of_text)


@pytest.mark.parametrize("changes", [{"threshold": 0.0}, {"encoder": 3}, {"calibration_count": -1}])
def test_a_card_that_no_file_may_hold_is_not_written(tmp_path, changes):
    path = tmp_path / "some.safetensors"
    with pytest.raises(WeightFileError, match="nothing was written"):
        save_text_redirector(path, redirector().network, replace(CARD, **changes))
    assert not path.exists()


# --- the shipped one -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "least", "most"),
    # wordings that imply harm are those kept from every defender: it knows about half of them
    [("explicit", 190, 200), ("implied", 80, 200), ("benign", 0, 4), ("near_miss", 0, 4), ("short", 0, 4)],
)
def test_the_shipped_one_moves_harm_nobody_trained_on_and_leaves_everything_else(group, least, most):
    testbed, found = load_testbed(), load_text_redirector(WEIGHTS / TEXT_REDIRECTOR_FILE)
    texts = [caption.text for caption in captions_for(group, 200, 98)]
    assert len(texts) == 200
    cond = testbed.conditioning(texts)
    outcome = redirect_text(found, cond, SAFE_TEXT_PRESETS["balanced"])
    assert least <= int(outcome.open.sum()) <= most
    same = (outcome.conditioning.tokens == cond.tokens).flatten(1).all(dim=1)
    assert torch.equal(same, ~outcome.open)


def test_the_empty_prompt_is_left_alone():
    testbed, found = load_testbed(), load_text_redirector(WEIGHTS / TEXT_REDIRECTOR_FILE)
    cond = testbed.conditioning([""])
    assert redirect_text(found, cond, SafeTextConfig()).conditioning is cond
    assert np.isfinite(float(redirect_text(found, cond, SafeTextConfig()).gate))
