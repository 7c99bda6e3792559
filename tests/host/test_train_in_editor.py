"""Training without leaving the editor: pairs made on the node, the line while it runs, previews before and after."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from safeguidance.testbed.world import CATEGORY_NAMES
from tests.host.safecfg_graphs import part
from tests.host.safree_graphs import OneWord
from tests.host.train_graphs import interrupted_at, refused, same, train_graph, weights

pytestmark = pytest.mark.usefixtures("pack")
EVERY = {"preview_every": 2, "testbed": True}


ENCODED: dict[str, object] = {}


@pytest.fixture
def trained(host, monkeypatch):
    """Whatever is trained is gone afterwards; there is no prompt file. A text is encoded once for all runs."""
    encoder = part("nodes.host.encoding").ClipEncoder
    encode = encoder._look_up

    def once(self, text):
        if text not in ENCODED:
            ENCODED[text] = encode(self, text)
        return ENCODED[text]

    monkeypatch.setattr(encoder, "_look_up", once)
    folder = host.base_dir / "models" / "safeguidance"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(host.base_dir / "output" / "safeguidance", ignore_errors=True)
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture
def lines(host, monkeypatch):
    """The lines that reach the browser, of the node that trains."""
    from server import PromptServer

    seen = []
    monkeypatch.setattr(
        PromptServer.instance, "send_progress_text", lambda text, node, sid=None: seen.append((node, text))
    )
    return seen


@pytest.fixture
def previews(monkeypatch):
    """The pictures that reach the node while it runs, by step; only those of training itself."""
    module, seen = part("nodes.host.model"), {}
    progress = module.progress

    def counted(total):
        at = progress(total)

        def note(step, picture=None):
            if picture is not None:
                seen[step] = picture
            at(step, picture)

        return note

    monkeypatch.setattr(module, "progress", counted)
    return seen


def _text_graph(name="words", steps=6, **more):
    return {
        "1": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}},
        "2": {
            "class_type": "SafeGuidance_TrainTextRedirector",
            "inputs": {
                "clip": ["1", 1],
                "dataset": "",
                "name": name,
                "steps": steps,
                "batch": 8,
                "rate": 1e-3,
                "width": 64,
                "layers": 1,
                "seed": 0,
                **more,
            },
        },
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 48, "height": 48, "batch_size": 1}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}},
    }


# --- pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hgr", "text"])
def test_without_a_file_the_pairs_are_made_of_the_chosen_categories_and_own_phrases(run_graph, trained, kind):
    more = {"dataset": "", "own": "fear: a scary mask, a spider on a face", "testbed": True, "preview_every": 0}
    run_graph(train_graph("mine", **more) if kind == "hgr" else _text_graph("mine", **more))
    names = {"hgr": "safeguidance.redirector.weights", "text": "safeguidance.redirector.text_weights"}
    read = part(names[kind]).read_card if kind == "hgr" else part(names[kind]).read_text_card
    card = read(trained / "mine.safetensors")[1]
    names = (*(f"testbed_{name}" for name in CATEGORY_NAMES), "fear")
    assert card.counts == {**dict.fromkeys(names, 80), "clean": 480}
    assert card.data == f"pairs made of {', '.join(names)}"


def test_the_categories_of_the_field_come_from_the_packs_own_pairs(monkeypatch):
    pairs = part("nodes.training.pairs")
    monkeypatch.setattr(pairs, "knows_words", lambda clip: True)
    monkeypatch.setattr(pairs, "most_texts", lambda clip: None)
    off = dict.fromkeys(("hate", "harassment", "self_harm", "shocking", "illegal_activity", "violence"), False)
    one = pairs.pairs_for(None, "", "", False, off)
    assert one.categories == ("sexual",)
    assert {example.category for example in one.examples} == {"sexual", ""}
    both = pairs.pairs_for(None, "", "sexual: a bawdy drawing\nfear: a spider", False, off)
    assert both.categories == ("sexual", "fear")
    assert sum("bawdy drawing" in example.prompt for example in both.examples) == 100
    # what a graph of before says, without any of these inputs, is trained on what it always was
    assert pairs.pairs_for(None, "", "", False, {}) == part("safeguidance.prompts.banks").bank_prompts()


def test_a_line_that_no_pairs_can_be_made_of_is_named(run_graph, trained):
    message = refused(run_graph, train_graph(dataset="", testbed=True, own="no colon"))
    assert message.startswith("Train HGR, own: line 1 ('no colon') has no colon")


def test_an_encoder_that_cannot_tell_everyday_words_apart_is_named():
    with pytest.raises(
        part("safeguidance.errors").InputError,
        match="^testbed: it is off, and everyday words are all one unknown word .*; allowed: .*switch it on",
    ):
        part("nodes.training.pairs").pairs_for(OneWord(), "", "", False, {})


def test_nothing_chosen_is_named_with_what_can_be_done(monkeypatch):
    pairs = part("nodes.training.pairs")
    monkeypatch.setattr(pairs, "knows_words", lambda clip: True)
    monkeypatch.setattr(pairs, "most_texts", lambda clip: None)
    off = dict.fromkeys(pairs._names(), False)
    with pytest.raises(part("safeguidance.errors").InputError, match="every category is off.*switch one on"):
        pairs.pairs_for(None, "", "", False, off)


# --- while it runs ---------------------------------------------------------------------------------------------------


def test_the_line_says_phase_step_losses_and_where_it_resumed(run_graph, trained, lines):
    with interrupted_at(3, 6):
        assert not run_graph(train_graph(dataset="", **EVERY), check=False).ok
    assert {node for node, _ in lines} == {"3"}
    texts = [text for _, text in lines]
    assert texts[0].startswith("encoding texts: 1 of ")
    assert any(text.startswith("training: step 1 of 6, score loss ") for text in texts)
    assert not any("resumed" in text for text in texts)
    lines.clear()
    run_graph(train_graph(dataset="", **EVERY))
    texts = [text for _, text in lines]
    assert next(text for text in texts if "training" in text).endswith("resumed at step 3")
    assert texts[-1] == "done: 6 steps, written to mine.safetensors, resumed at step 3"


def test_previews_show_the_whole_curve_and_a_strip_of_two_pictures(run_graph, trained, previews):
    with interrupted_at(3, 6):
        assert not run_graph(train_graph(dataset="", vae=["1", 2], **EVERY), check=False).ok
    # each with one picture: the curve alone is 320 high, the strip stands below it
    assert previews[1].height == 320
    assert previews[2].height > 600
    previews.clear()
    result = run_graph(train_graph(dataset="", vae=["1", 2], **EVERY))
    assert sorted(previews) == [4, 6]
    strip = np.asarray(previews[6])[344:644]
    before, after = strip[:, 15:315].astype(float), strip[:, 325:625].astype(float)
    assert before.std() > 10
    # an HGR of six steps changes little
    assert np.abs(before - after).mean() < 40
    (shown,) = result.images["3"]
    assert Image.open(shown).size == previews[6].size


def test_previews_leave_the_weights_as_they_are(run_graph, host, trained):
    run_graph(train_graph("with", dataset="", preview_prompt="a skull on a meadow", **EVERY))
    run_graph(train_graph("without", dataset="", testbed=True, preview_every=0))
    assert same(weights(host, "with"), weights(host, "without"))


def test_a_text_redirector_shows_figures_and_with_a_model_pictures(run_graph, host, trained, previews, lines):
    run_graph(_text_graph("words", **EVERY))
    assert 320 < previews[6].height < 420
    assert [text for _, text in lines][-1] == "done: 6 steps, written to words.safetensors"
    previews.clear()
    run_graph(_text_graph("pictures", model=["1", 0], latent=["3", 0], **EVERY))
    assert previews[6].height > 600
    assert same(weights(host, "words"), weights(host, "pictures"))
    message = refused(run_graph, _text_graph("more", model=["1", 0], **EVERY))
    assert message.startswith("Train Text Redirector, latent: it is not connected, but model is")


def test_what_was_trained_before_is_said_to_be_used_again(run_graph, trained, lines):
    run_graph(_text_graph(**EVERY))
    lines.clear()
    run_graph(_text_graph(**EVERY, licence="CC0-1.0"))
    assert lines[-1][1] == "done: words.safetensors was trained before with these settings and is used again"


def test_figures_of_held_out_prompts_rise_while_it_is_trained(trained):
    clip = part("nodes.testbed").LoadTestbed.execute().result[1]
    data = part("nodes.training.pairs").pairs_for(clip, "", "", True, {})
    run = part("nodes.text_redirector.train_run")
    training = run.TextTraining(clip, data)
    held_out = part("safeguidance.training.text_figures").HeldOutTexts(data, training.texts)
    settings = part("nodes.training.train_run").RunSettings(trained / "run", trained / "f.safetensors", 64, 2)
    config = part("safeguidance.training.text_redirector").TextTrainConfig(steps=200, batch=24, rate=2e-3)
    seen, found = [], []
    training.run(
        config,
        settings,
        lambda step, _: found.append(held_out.figures(seen[0])) if step in (1, 200) else None,
        lambda network, _: seen.append(network),
    )
    shutil.rmtree(trained / "run")
    first, last = found
    assert abs(first.moved) < 0.05
    assert last.moved > first.moved + 0.05
    assert last.opened > 0.8 * last.harmful
    assert last.flagged < 0.2 * last.harmless
    assert torch.isfinite(torch.tensor(last.moved))
