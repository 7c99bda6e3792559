"""The harness itself on a real host: running, refusing, failing and going on."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from safeguidance.headless import boot
from safeguidance.headless.author import to_ui
from safeguidance.headless.convert import to_api
from safeguidance.headless.execute import HostSession, run_prompt
from tools import cost

GRAPH = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 32, "height": 16, "batch_size": 1, "color": 0xFF0000},
    },
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}, "_meta": {"title": "Turn round"}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "harness/red"}},
}


def edited(node: str, **inputs: object) -> dict:
    graph = copy.deepcopy(GRAPH)
    graph[node]["inputs"].update(inputs)
    return graph


def test_a_stock_graph_runs_and_writes_its_picture(run_graph, host):
    result = run_graph(GRAPH)
    assert result.executed == ["1", "2", "3"]
    assert result.cached == []
    image = result.value("2")
    assert tuple(image.shape) == (1, 16, 32, 3)
    assert image[0, 0, 0].tolist() == [0.0, 1.0, 1.0]
    (path,) = result.images["3"]
    assert path.is_file()
    assert path.is_relative_to(host.base_dir / "output" / "harness")
    assert result.ui["3"]["images"][0]["filename"] == path.name


def test_nothing_is_run_twice_on_one_executor(run_graph):
    run_graph(GRAPH)
    again = run_graph(GRAPH)
    assert again.executed == []
    assert set(again.cached) == {"1", "2", "3"}
    changed = run_graph(edited("3", filename_prefix="harness/other"))
    assert changed.executed == ["3"]


def test_a_validation_error_names_node_and_field(run_graph):
    result = run_graph(edited("1", width=-4), check=False)
    assert not result.ok
    assert result.stage == "validation"
    assert result.executed == []
    (error,) = result.errors
    assert (error.node_id, error.class_type, error.field) == ("1", "EmptyImage", "width")
    assert "node 1 (EmptyImage), field width" in error.line()
    assert "\n" not in error.line()


def test_a_link_to_a_missing_node_names_the_field(run_graph):
    (error,) = run_graph(edited("2", image=["77", 0]), check=False).errors
    assert (error.node_id, error.field) == ("2", "image")
    assert "77" in error.message


def test_an_unknown_node_type_is_named(run_graph):
    graph = {**GRAPH, "9": {"class_type": "NoSuchNode", "inputs": {}, "_meta": {"title": "Mine"}}}
    (error,) = run_graph(graph, check=False).errors
    assert error.node_id == "9"
    assert error.title == "Mine"


def test_the_queue_lives_on_after_an_execution_error(session, monkeypatch):
    import nodes

    def broken(self, image):
        raise RuntimeError("the lamp is out")

    with monkeypatch.context() as patch:
        patch.setattr(nodes.NODE_CLASS_MAPPINGS["ImageInvert"], "invert", broken)
        failed = session.run(GRAPH)
    assert not failed.ok
    assert failed.stage == "execution"
    (error,) = failed.errors
    assert (error.node_id, error.class_type, error.title) == ("2", "ImageInvert", "Turn round")
    assert "the lamp is out" in error.line()
    assert "RuntimeError" in error.kind
    assert error.traceback
    after = session.run(GRAPH)
    assert after.ok
    assert after.cached == ["1"]
    assert after.executed == ["2", "3"]


def test_an_interrupt_is_reported_and_does_not_stick(host, session):
    import comfy.utils

    import nodes

    class Slow:
        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"image": ("IMAGE",)}}

        RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "go", "test"

        def go(self, image):
            bar = comfy.utils.ProgressBar(5)
            for _ in range(5):
                bar.update(1)
            return (image,)

    nodes.NODE_CLASS_MAPPINGS["HarnessSlow"] = Slow
    try:
        graph = copy.deepcopy(GRAPH)
        graph["2"] = {"class_type": "HarnessSlow", "inputs": {"image": ["1", 0]}}
        steps: list[tuple[str, int, int]] = []

        def stop(node_id: str, step: int, total: int) -> None:
            steps.append((node_id, step, total))
            if step:
                session.interrupt()

        stopped = session.run(graph, stop)
        assert not stopped.ok
        assert [error.kind for error in stopped.errors] == ["interrupted"]
        assert stopped.errors[0].node_id == "2"
        assert ("2", 1, 5) in steps
        assert session.run(graph).ok
    finally:
        del nodes.NODE_CLASS_MAPPINGS["HarnessSlow"]


def test_a_sampler_reports_its_steps(host, session):
    import nodes

    class Small:
        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}

        RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CONDITIONING"), "go", "test"

        def go(self):
            return (cost.build_model("small"), cost.random_conditioning(1))

    class Show:
        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"samples": ("LATENT",)}}

        RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "go", "test", True

        def go(self, samples):
            return {"ui": {"text": [str(tuple(samples["samples"].shape))]}}

    nodes.NODE_CLASS_MAPPINGS.update({"HarnessSmall": Small, "HarnessShow": Show})
    try:
        sampler = {
            "seed": 1,
            "steps": 3,
            "cfg": 2.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        }
        links = {"model": ["1", 0], "positive": ["1", 1], "negative": ["1", 1], "latent_image": ["2", 0]}
        latent = {"width": 64, "height": 64, "batch_size": 1}
        graph = {
            "1": {"class_type": "HarnessSmall", "inputs": {}},
            "2": {"class_type": "EmptyLatentImage", "inputs": latent},
            "3": {"class_type": "KSampler", "inputs": {**sampler, **links}},
            "4": {"class_type": "HarnessShow", "inputs": {"samples": ["3", 0]}},
        }
        seen: list[tuple[str, int, int]] = []
        result = session.run(graph, lambda *step: seen.append(step))
        assert result.ok, result.errors
        assert ("3", 0, 0) in seen
        assert ("3", 3, 3) in seen
        first = result.value("3")["samples"]
        assert first.isfinite().all()
        assert result.ui["4"]["text"] == ["(1, 4, 8, 8)"]
        again = HostSession().run(graph)
        assert again.value("3")["samples"].equal(first)
    finally:
        del nodes.NODE_CLASS_MAPPINGS["HarnessSmall"], nodes.NODE_CLASS_MAPPINGS["HarnessShow"]


def test_both_formats_give_the_same_picture(object_info):
    ui = to_ui(GRAPH, object_info, title="red")
    api = to_api(json.loads(json.dumps(ui)), object_info)
    assert api == GRAPH
    first, second = run_prompt(GRAPH), run_prompt(api)
    assert first.ok
    assert second.ok
    assert first.value("2").equal(second.value("2"))


def test_notes_are_no_nodes(run_graph):
    assert run_graph({**GRAPH, "_notes": ["only a remark"]}).ok


def test_the_host_offers_its_definitions(object_info):
    assert list(object_info["KSampler"]["input"]["required"])[:2] == ["model", "seed"]
    assert boot.object_info(["ImageInvert"]).keys() == {"ImageInvert"}


def test_everything_is_written_below_the_base_directory(host):
    import folder_paths

    for folder in (
        folder_paths.get_output_directory(),
        folder_paths.get_temp_directory(),
        folder_paths.get_user_directory(),
    ):
        assert Path(folder).is_relative_to(host.base_dir)
    assert boot.boot(host.path, host.base_dir) is host


def test_a_second_host_in_one_process_is_refused(host, tmp_path):
    for name in ("main.py", "nodes.py", "execution.py"):
        (tmp_path / name).write_text("")
    with pytest.raises(boot.BootError, match="two hosts never share a process"):
        boot.boot(tmp_path, tmp_path / "base")


def test_an_unknown_cache_is_refused(host):
    with pytest.raises(ValueError, match="cache: .*allowed: classic, lru, none"):
        HostSession(cache="big")
