"""Safe Conditioning, Load and Train Text Redirector inside the host: bytes, cfg, entries, families, training."""

from __future__ import annotations

import pytest
import torch

from safeguidance.testbed.text_encoder import CONTEXT
from tests.host.safecfg_graphs import encoded, ksample, part, patch, world
from tests.host.safree_graphs import FAMILIES, tiny_clip
from tests.host.train_graphs import interrupted_at, prompt_file, same, weights

pytestmark = pytest.mark.usefixtures("pack")
SHIPPED = "testbed-text-redirector.safetensors"
SKULL, CUP = "a skull on a meadow", "a cup of coffee on a meadow"


def shipped():
    return part("nodes.text_redirector.load").LoadTextRedirector.execute(SHIPPED).args[0]


def safe(conditioning, redirector=None, **settings):
    node = part("nodes.text_redirector.safe_conditioning").SafeConditioning
    with torch.inference_mode():
        return node.execute(conditioning, redirector or shipped(), **settings).args


def refusal(call):
    with pytest.raises(part("safeguidance.errors").InputError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_harmful_prompt_is_moved_and_a_harmless_picture_is_the_hosts_own(cfg):
    model, empty = world()[0], encoded("")
    for text, acts in ((SKULL, True), (CUP, False)):
        plain = encoded(text)
        moved, trace, decision, harmful = safe(plain)
        before = ksample(model, plain, empty, cfg=cfg)
        after = ksample(model, moved, empty, cfg=cfg)
        assert torch.equal(before, after) != acts
        assert harmful == acts
        assert trace.run.harmful == acts
        assert ("moved to its safe counterpart" in decision) == acts
        assert ("left untouched" in decision) != acts
        if not acts:
            assert moved[0] is plain[0]


def test_in_a_graph_it_gives_the_picture_of_the_safe_states(run_graph):
    graph = {
        "1": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}},
        "2": {"class_type": "SafeGuidance_LoadTextRedirector", "inputs": {"file_name": SHIPPED, "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": SKULL}},
        "4": {
            "class_type": "SafeGuidance_SafeConditioning",
            "inputs": {"conditioning": ["3", 0], "text_redirector": ["2", 0]},
        },
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 2]}},
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}},
    }
    result = run_graph(graph)
    assert "death" in result.value("4", 2)
    assert "for text encoder: TestbedClipModel" in result.value("2", 1)
    assert "checked against the CLIP: of its family" in result.value("2", 1)
    moved, *_ = safe(encoded(SKULL))
    assert torch.equal(result.value("4", 0)[0][0], moved[0][0])


def test_every_entry_is_judged_by_itself_and_keeps_what_else_it_carries():
    (skull, extra), (cup, more) = encoded(SKULL)[0], encoded(CUP)[0]
    both = [[skull, {**extra, "strength": 0.5}], [cup, {**more, "start_percent": 0.3}]]
    moved, trace, decision, harmful = safe(both)
    assert harmful
    assert moved[1] is both[1]
    assert moved[0][1]["strength"] == 0.5
    assert not torch.equal(moved[0][0], skull)
    assert "(1 of 2 texts)" in decision
    assert len(trace.run.scores) == 2


def test_a_batch_of_texts_is_judged_row_by_row():
    (skull, extra), (cup, _) = encoded(SKULL)[0], encoded(CUP)[0]
    moved, _, decision, _ = safe([[torch.cat([cup, skull]), extra]])
    assert torch.equal(moved[0][0][:1], cup)
    assert not torch.equal(moved[0][0][1:], skull)
    assert "(1 of 2 texts)" in decision


def test_strength_0_leaves_the_prompt_and_says_so():
    plain = encoded(SKULL)
    moved, trace, decision, harmful = safe(plain, strength=0.0)
    assert moved[0] is plain[0]
    assert harmful
    assert "NOT GUARDED" in decision
    assert trace.run.harmful


def test_it_composes_with_guidance_of_the_unconditional_branch():
    model, empty = world()[0], encoded("")
    moved, *_ = safe(encoded(SKULL))
    guarded, trace = patch(part("nodes.redirectors").LoadHGR.execute("testbed-hgr.safetensors").args[0])
    assert torch.equal(ksample(guarded, moved, empty), ksample(model, moved, empty))
    assert trace.run.decision.startswith("harmless")
    # what is not moved is still guarded by the other
    ksample(guarded, encoded(SKULL), empty)
    assert trace.run.harmful


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ([torch.zeros(1, 5, 9), {}], "it has 9 channels"),
        ([torch.full((1, 32, CONTEXT), torch.nan), {}], "not finite"),
        ([torch.zeros(1, 32, CONTEXT), {"t5xxl_ids": torch.ones(1, 3)}], "carries text in t5xxl_ids"),
        (
            [torch.zeros(1, 32, CONTEXT), {"conditioning_llama3": torch.ones(1, 3)}],
            "carries text in conditioning_llama3",
        ),
    ],
)
def test_what_it_cannot_read_is_refused_with_node_and_input(entry, words):
    text = refusal(lambda: safe([entry]))
    assert text.startswith("Safe Conditioning, conditioning: ")
    assert words in text


def test_a_conditioning_without_text_is_said_to_be_unguarded():
    for empty in ([], [[None, {}]]):
        moved, _, decision, harmful = safe(empty)
        assert moved == empty
        assert not harmful
        assert decision.startswith("NOT GUARDED")


def test_a_file_for_another_encoder_is_refused():
    node = part("nodes.text_redirector.load").LoadTextRedirector
    text = refusal(lambda: node.execute(SHIPPED, tiny_clip("sd1")))
    assert "was made for TestbedClipModel, this CLIP is SD1ClipModel" in text


def test_a_file_of_another_kind_is_refused_before_anything_runs():
    node = part("nodes.text_redirector.load").LoadTextRedirector
    assert "is not there" in node.validate_inputs("testbed-hgr.safetensors")
    assert "is not there" in node.validate_inputs("nowhere.safetensors")
    assert node.validate_inputs(SHIPPED) is True


# --- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(host):
    with prompt_file(host) as path:
        yield path


def graph(name="mine", steps=8, **more):
    return {
        "1": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}},
        "3": {
            "class_type": "SafeGuidance_TrainTextRedirector",
            "inputs": {
                "clip": ["1", 1],
                "dataset": "prompts.csv",
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
    }


def test_training_writes_a_file_that_loads_and_says_what_it_is(run_graph, host, dataset):
    result = run_graph(graph())
    path = host.base_dir / "models" / "safeguidance" / "mine.safetensors"
    card = part("safeguidance.redirector.text_weights").read_text_card(path)[1]
    assert card.encoder == "TestbedClipModel"
    assert len(card.encoder_hash) == len(card.data_hash) == 64
    assert card.counts == {"testbed_blades": 8, "testbed_guns": 8, "clean": 16}
    assert "for text encoder: TestbedClipModel" in result.value("3", 1)
    found = result.value("3", 0)
    assert part("nodes.text_redirector.load").check_clip_fits(found, world()[1]) == ""


def test_an_interrupted_run_resumes_to_the_same_weights(run_graph, host, dataset):
    with interrupted_at(3, 8):
        assert not run_graph(graph("broken"), check=False).ok
    run_graph(graph("broken"))
    run_graph(graph("whole"))
    assert same(weights(host, "broken"), weights(host, "whole"))


def test_other_settings_under_a_finished_name_are_named(run_graph, host, dataset):
    run_graph(graph())
    again = run_graph(graph(steps=9), check=False)
    assert not again.ok
    assert "Train Text Redirector" in again.errors[0].line()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_trained_on_and_used_with_every_kind_of_encoder(family, tmp_path):
    """The pack's own pairs through the host's encoder classes with random weights; pooled vectors too."""
    run = part("nodes.text_redirector.train_run")
    data = part("safeguidance.prompts.banks").bank_prompts(100)
    few = type(data)(data.path, data.examples[::9], data.digest)
    clip = tiny_clip(family)
    settings = part("nodes.training.train_run").RunSettings(tmp_path / "run", tmp_path / "f.safetensors", 64, 1)
    config = part("safeguidance.training.text_redirector").TextTrainConfig(steps=3, batch=6)
    with torch.inference_mode():
        history = run.TextTraining(clip, few, lambda total: lambda step: None).run(config, settings, lambda *_: None)
    assert len(history) == 3
    load = part("nodes.text_redirector.load")
    found = load.ManagedTextRedirector(part("safeguidance.redirector.text_weights").load_text_redirector(settings.out))
    assert load.check_clip_fits(found, clip) == ""
    skipping = clip.clone()
    skipping.clip_layer(-2)
    assert "trained on other weights" in load.check_clip_fits(found, skipping)
    plain = clip.encode_from_tokens_scheduled(clip.tokenize("a knife"))
    moved, trace, _, harmful = safe(plain, found, threshold=0.0)
    assert harmful
    assert not torch.equal(moved[0][0], plain[0][0])
    pooled = plain[0][1].get("pooled_output")
    if pooled is not None:
        assert not torch.equal(moved[0][1]["pooled_output"], pooled)
    assert len(trace.run.scores[0]) == 7
