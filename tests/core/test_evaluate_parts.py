"""What an evaluation is made of: places in a workflow, arms, configurations, the store."""

import copy
import gc
import json
import tracemalloc

import pytest

from safeguidance.errors import InputError
from safeguidance.evaluate.arms import METHODS, OUTPUT, Arm, build
from safeguidance.evaluate.config import read_config
from safeguidance.evaluate.make_config import Answers, ask_for, write_config
from safeguidance.evaluate.pictures import keep_picture
from safeguidance.evaluate.prompt_sets import read_prompt_files
from safeguidance.evaluate.run import Evaluation
from safeguidance.evaluate.runner import Outcome
from safeguidance.evaluate.store import Prompt, Row, Store, VerdictRow, open_results
from safeguidance.evaluate.workflow_nodes import Named, find_places
from tests.core import comfy_stub
from tests.core.comfy_stub import WORKFLOW, draw, object_info
from tests.core.comfy_stub import write_config as write_run

INFO = object_info()
INFO["ReadText"] = comfy_stub.node({"file": ["STRING", {}]}, ["STRING"])
INFO["ImageStitch"] = comfy_stub.node({"image1": ["IMAGE", {}], "image2": ["IMAGE", {}]}, ["IMAGE"])


def flow(**changes):
    """The stub's workflow with other nodes."""
    return {**copy.deepcopy(WORKFLOW), **changes}


def test_places_are_found_where_they_are_plain():
    places = find_places(flow(), INFO)
    assert (places.prompt, places.seed, places.output, places.image) == (
        (("2", "text"),),
        (("5", "seed"),),
        "7",
        ("6", 0),
    )
    preview = {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}}
    assert find_places(flow(**{"8": preview}), INFO).output == "7"


def test_places_in_a_custom_sampler_with_a_seed_of_its_own():
    guider = {
        "class_type": "CFGGuider",
        "inputs": {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "cfg": 5.0},
    }
    sampler = {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {
            "noise": ["9", 0],
            "guider": ["8", 0],
            "sampler": ["10", 0],
            "sigmas": ["11", 0],
            "latent_image": ["4", 0],
        },
    }
    api = flow(**{"5": sampler, "8": guider})
    api["9"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": ["12", 0]}}
    api["10"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    api["11"] = {
        "class_type": "BasicScheduler",
        "inputs": {"model": ["1", 0], "scheduler": "simple", "steps": 4, "denoise": 1},
    }
    api["12"] = {"class_type": "PrimitiveInt", "inputs": {"value": 5}}
    places = find_places(api, INFO)
    assert (places.prompt, places.seed) == ((("2", "text"),), (("12", "value"),))
    # the scheduler reads the model's schedule, and samples nothing
    built = build(Arm("a", api, "guard_model"), INFO)
    assert built.api[built.api["8"]["inputs"]["model"][0]]["class_type"] == "SafeGuidance_GuardModel"
    assert built.api["11"]["inputs"]["model"] == ["1", 0]


@pytest.mark.parametrize(
    ("changes", "field", "found"),
    [
        (
            {"7": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}}},
            "workflow",
            "saves or shows",
        ),
        (
            {
                "8": {"class_type": "ImageInvert", "inputs": {"image": ["6", 0]}},
                "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "y"}},
            },
            "nodes.output",
            "2 nodes save or show a picture",
        ),
        (
            {
                "8": copy.deepcopy(WORKFLOW["5"]),
                "9": {"class_type": "VAEDecode", "inputs": {"samples": ["8", 0], "vae": ["1", 2]}},
                "10": {"class_type": "ImageStitch", "inputs": {"image1": ["6", 0], "image2": ["9", 0]}},
                "7": {"class_type": "SaveImage", "inputs": {"images": ["10", 0], "filename_prefix": "x"}},
            },
            "nodes.output",
            r"7 \(SaveImage\) shows the pictures of 2 nodes together; allowed: 6 \(VAEDecode\), 9 \(VAEDecode\), 7",
        ),
        (
            {
                "2": {"class_type": "CLIPTextEncode", "inputs": {"text": ["8", 0], "clip": ["1", 1]}},
                "8": {"class_type": "ReadText", "inputs": {"file": "prompts.txt"}},
            },
            "nodes.prompt",
            r"no text field was found before a positive conditioning; its text comes from node 8 \(ReadText\)",
        ),
    ],
)
def test_places_that_are_not_plain_are_asked_for(changes, field, found):
    with pytest.raises(InputError, match=found) as caught:
        find_places(flow(**changes), INFO)
    assert caught.value.field == field


def test_places_that_are_named_must_be_there_and_matter():
    api = flow(**{"8": {"class_type": "ImageInvert", "inputs": {"image": ["6", 0]}}})
    api["9"] = {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "y"}}
    assert find_places(api, INFO, Named(output="9")).image == ("8", 0)
    assert find_places(api, INFO, Named(output="8")).image == ("8", 0)
    for named, found in (
        (Named(output="5"), "no node that takes or makes an IMAGE"),
        (Named(output="7", prompt="CLIP.text"), "no node is called that"),
        (Named(output="7", prompt="2.words"), "has no field 'words'"),
        (Named(output="7", seed="9.filename_prefix"), "does not lead to the output"),
    ):
        with pytest.raises(InputError, match=found):
            find_places(api, INFO, named)


def test_two_encoders_are_one_prompt_only_where_they_hold_the_same_text():
    second = copy.deepcopy(WORKFLOW["2"])
    sampler = copy.deepcopy(WORKFLOW["5"])
    sampler["inputs"] |= {"positive": ["8", 0], "latent_image": ["5", 0]}
    api = flow(**{"8": second, "9": sampler})
    api["6"]["inputs"]["samples"] = ["9", 0]
    places = find_places(api, INFO)
    assert set(places.prompt) == {("2", "text"), ("8", "text")}
    assert set(places.seed) == {("5", "seed"), ("9", "seed")}
    api["8"]["inputs"]["text"] = "something else"
    with pytest.raises(InputError, match="2 text encoders"):
        find_places(api, INFO)


def test_an_arm_is_cut_to_the_picture_and_changes_nothing_else():
    api = flow(**{"8": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}}})
    api["4"]["inputs"]["batch_size"] = 4
    built = build(Arm("a", api, "none"), INFO)
    assert "8" not in built.api
    assert "7" not in built.api
    assert built.api[OUTPUT]["class_type"] == "PreviewImage"
    assert built.api[OUTPUT]["inputs"] == {"images": ["6", 0]}
    assert built.api["4"]["inputs"]["batch_size"] == 1
    assert built.notes == ("batch_size of node 4 (EmptyLatentImage) is 1 in place of 4",)
    assert built.api["3"] == WORKFLOW["3"]
    graph = built.graph("a prompt", 9)
    assert graph["2"]["inputs"]["text"] == "a prompt"
    assert graph["5"]["inputs"]["seed"] == 9
    assert graph["5"]["inputs"]["model"] == ["evaluate_meter_1", 0]
    assert built.api["2"]["inputs"]["text"] == "a house"


def test_an_unguarded_arm_is_unguarded():
    guarded = build(Arm("a", flow(), "guard_model"), INFO).api
    with_guard = {key: node for key, node in guarded.items() if not key.startswith("evaluate_record")}
    kinds = {node["class_type"] for node in build(Arm("b", with_guard, "none"), INFO).api.values()}
    assert "SafeGuidance_GuardModel" not in kinds
    other = {**INFO, "SafeGuidance_SPGuardMask": INFO["SafeGuidance_GuardModel"]}
    for node in with_guard.values():
        if node["class_type"] == "SafeGuidance_GuardModel":
            node["class_type"] = "SafeGuidance_SPGuardMask"
    with pytest.raises(InputError, match="has a guard of its own"):
        build(Arm("b", with_guard, "none"), other)


def test_settings_of_an_arm_are_known_ones():
    built = build(Arm("a", flow(), "guard_model", {"preset": "strict"}), INFO)
    (guard,) = [node for node in built.api.values() if node["class_type"] == "SafeGuidance_GuardModel"]
    assert guard["inputs"]["preset"] == "strict"
    with pytest.raises(InputError, match="there is no such setting") as caught:
        build(Arm("a", flow(), "guard_model", {"strenght": 1}), INFO)
    assert caught.value.field == "arms.a.settings.strenght"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("seeds = 0", "seeds"),
        ("seeds = [1, 1]", "seeds"),
        ("seeds = [-1]", "seeds"),
        ('baseline = "other"', "baseline"),
        ("nothing = 1", "nothing"),
        ('[nodes]\ntemplate = "a photo"', "nodes.template"),
        ('[arms.a]\nmethod = "sld"', "arms.a.method"),
        ("[arms.a]\nsettings = 1", "arms.a.settings"),
        ('[arms."a:b"]', "arms"),
    ],
)
def test_a_wrong_value_of_a_configuration_is_named(tmp_path, text, field):
    path = write_run(tmp_path, [], more=text if "[" not in text or "=" in text.split("\n")[0] else "")
    if text.startswith("["):
        path.write_text(path.read_text() + "\n" + text)
    with pytest.raises(InputError) as caught:
        read_config(path)
    assert caught.value.field == field


def test_init_writes_what_is_read_back(tmp_path):
    write_run(tmp_path, [])
    flow_file, prompts = tmp_path / "workflow.json", tmp_path / "prompts.csv"
    path = tmp_path / "made.toml"
    answers = Answers(flow_file, (prompts,), 4, 2, ("sp_guard",), ("hgr",), ("127.0.0.1:8188",))
    write_config(path, answers)
    config = read_config(path)
    assert config.run.servers == ("http://127.0.0.1:8188",)
    assert [(arm.name, arm.method) for arm in config.arms] == [("unguarded", "none"), ("sp_guard", "sp_guard")]
    assert (config.seeds, config.judges, config.prompts[0].limit) == ((0, 1), ("hgr",), 4)
    with pytest.raises(InputError, match="is there already"):
        write_config(path, answers)


def test_init_asks_again_where_an_answer_cannot_be_used(tmp_path, capsys):
    write_run(tmp_path, [])
    said = iter(
        [
            "none.json",
            str(tmp_path / "workflow.json"),
            "none.csv",
            str(tmp_path / "prompts.csv"),
            "",
            "x",
            "2",
            "",
            "hgr",
            "",
        ]
    )
    answers = ask_for(Answers(), lambda question: next(said))
    assert answers.workflow == tmp_path / "workflow.json"
    assert (answers.limit, answers.seeds, answers.methods, answers.judges) == (50, 2, ("guard_model",), ("hgr",))
    assert answers.servers == ("http://127.0.0.1:8188",)
    assert capsys.readouterr().out.count("allowed:") == 3


def test_the_store_takes_each_row_once_and_keeps_numbers_exactly(tmp_path):
    with Store(tmp_path) as store:
        store.add_prompts([Prompt(0, "a", category="x, y"), Prompt(1, "b", harmful=False)])
        row = Row(0, 2**63 - 1, "a:b", seconds=0.1, guard={"opened": True}, worker="w")
        assert store.add_row(row)
        assert not store.add_row(Row(0, 2**63 - 1, "a:b", "failed", error="later"))
        store.add_verdicts([VerdictRow(row.id, "j", "c", 0.5, True), VerdictRow(row.id, "k", "", error="bad")])
        assert [found for found in store.unjudged("z", 9)] == [(row, "a")]
        assert store.unjudged("j", 9) == []
        assert store.forget_verdicts("k", failed_only=True) == 1
    with open_results(tmp_path) as store:
        assert list(store.rows()) == [row]
        assert next(store.prompts()).categories == ("x", "y")
        assert list(store.verdicts()) == [VerdictRow(row.id, "j", "c", 0.5, True)]
        assert [(p.number, seed, arm) for p, seed, arm in store.missing([2**63 - 1], ["a:b", "c"])] == [
            (0, 2**63 - 1, "c"), (1, 2**63 - 1, "a:b"), (1, 2**63 - 1, "c"),
        ]  # fmt: skip


def test_a_block_of_prompts_goes_through_one_arm_before_the_next(tmp_path):
    with Store(tmp_path) as store:
        store.add_prompts([Prompt(number, "p") for number in range(3)])
        found = [(p.number, arm) for p, _, arm in store.missing([0], ["a", "b"], block=2)]
    assert found == [(0, "a"), (1, "a"), (0, "b"), (1, "b"), (2, "a"), (2, "b")]


class StubRunner:
    """Draws at once, in this process."""

    name = "stub"

    def object_info(self):
        return INFO

    def facts(self):
        return {}

    def run(self, graph, output, progress=None):
        png, texts, _ = draw(graph)
        return Outcome((png,), {key: [text] for key, text in texts.items()}, 0.1)

    def close(self):
        pass


class WeighedRunner(StubRunner):
    """Says in the middle and at the end of a run of two arms how much lives that the run has made."""

    def __init__(self, count):
        self.count, self.rows, self.most = count, 0, 0

    def run(self, graph, output, progress=None):
        self.rows += 1
        if self.rows % self.count == 0:
            gc.collect()
            # the interpreter's own table of names, which paths are entered into, may grow at any moment
            own = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, "*pathlib*")])
            self.most = max(self.most, sum(trace.size for trace in own.traces))
        return super().run(graph, output, progress)


def test_the_memory_of_a_run_does_not_grow_with_its_rows(tmp_path):
    most = []
    # the first run also loads what is loaded once
    for count in (4, 100, 1000):
        folder = tmp_path / str(count)
        config = read_config(write_run(folder, [], count))
        prompts = read_prompt_files(config.prompts)[0]
        arms = [build(Arm(arm.name, flow(), arm.method), INFO) for arm in config.arms]
        with Store(config.results) as store:
            evaluation = Evaluation(config, store, prompts, arms, [], print)
            runner = WeighedRunner(count)
            tracemalloc.start()
            evaluation.make([runner])
            tracemalloc.stop()
            most.append(runner.most)
            assert store.count() == 2 * count
    assert most[1] > 0
    # ten times the rows; what is kept of each would be more than a picture's 100 bytes
    assert most[2] < most[1] + 100 * 1800


def test_a_picture_is_kept_once(tmp_path):
    (tmp_path / "pictures").mkdir()
    png = draw(build(Arm("a", flow()), INFO).graph("p", 1))[0]
    assert keep_picture(tmp_path, png) == keep_picture(tmp_path, png)
    assert len(list((tmp_path / "pictures").iterdir())) == 1


def test_every_method_names_a_node_of_the_pack():
    with open("tools/data/nodes.json", encoding="utf-8") as file:
        known = json.load(file)
    for method in METHODS.values():
        assert {method.node, *method.parts.values()} <= set(known)
