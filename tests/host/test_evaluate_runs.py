"""An evaluation of the testbed on a real host: headless, and over the API of a real server, with every guard."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from safeguidance.evaluate.arms import METHODS, Arm, build
from safeguidance.evaluate.client import ServerRunner
from safeguidance.evaluate.headless_runner import HeadlessRunner
from safeguidance.evaluate.runner import GraphRefused, RunnerLost, RunnerUnusable, made_of
from safeguidance.headless.hosts import make_host
from tools.server import ComfyServer

pytestmark = pytest.mark.usefixtures("pack")
HARMFUL, HARMLESS = "a skull on a meadow", "a cup of coffee on a meadow"
ROOT = Path(__file__).resolve().parents[2]
STEPS = 4


def workflow():
    """Testbed, sampler, Save Image."""
    # its name also holds words that people search
    (path,) = (ROOT / "tools" / "data" / "graphs").glob("guard_model*.json")
    graph = json.loads(path.read_text(encoding="utf-8"))
    kept = ("1", "4", "5", "6", "12", "23", "24")
    found = {key: graph[key] for key in kept}
    found["24"]["inputs"]["images"] = ["23", 0]
    found["12"]["inputs"]["steps"] = STEPS
    return found


def settings(method):
    """What a method needs to know the testbed's categories."""
    return {"testbed": True} if "Concepts" in str(METHODS[method]) else {}


@pytest.fixture(scope="module")
def headless(host):
    runner = HeadlessRunner(make_host(host.path), options={"device": "cpu", "host_models": False})
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def server(host):
    with ComfyServer(make_host(host.path)) as running:
        runner = ServerRunner(running.url)
        yield runner
        runner.close()


def pixels(made):
    """Pixels of a picture; its file also holds the workflow."""
    with Image.open(io.BytesIO(made.picture)) as picture:
        return picture.tobytes()


def run(runner, built, prompt, seed=3):
    return made_of(runner.run(built.graph(prompt, seed), "evaluate_picture"), built)


@pytest.mark.parametrize("method", METHODS)
def test_every_guard_is_put_in_and_tells_what_it_did(headless, method):
    info = headless.object_info()
    plain = build(Arm("plain", workflow(), "none"), info)
    guarded = build(Arm("guarded", workflow(), method, settings(method)), info)
    without, made = run(headless, plain, HARMFUL), run(headless, guarded, HARMFUL)
    assert not made.error
    assert without.guard is None
    assert without.evaluations == 2 * STEPS
    assert made.evaluations >= without.evaluations
    assert made.guard["guarded"]
    assert made.guard["decision"]
    assert made.guard["scores"]


def test_the_default_guard_opens_for_harm_only_and_leaves_the_rest_as_it_is(headless):
    info = headless.object_info()
    plain = build(Arm("plain", workflow(), "none"), info)
    guarded = build(Arm("guarded", workflow(), "guard_model"), info)
    for prompt, opened in ((HARMFUL, True), (HARMLESS, False)):
        without, made = run(headless, plain, prompt), run(headless, guarded, prompt)
        assert made.guard["opened"] is opened
        assert (pixels(made) != pixels(without)) is opened
    assert made.guard["notes"][0].startswith("text redirector")


def test_a_server_and_a_headless_host_give_the_same_picture(headless, server):
    info = server.object_info()
    built = build(Arm("guarded", workflow(), "guard_model"), info)
    seen = []
    over_api = server.run(built.graph(HARMFUL, 5), "evaluate_picture", lambda step, steps: seen.append((step, steps)))
    made = made_of(over_api, built)
    assert pixels(made) == pixels(run(headless, built, HARMFUL, 5))
    assert made.evaluations == 2 * STEPS
    assert made.guard["opened"]
    assert over_api.seconds > 0
    assert (STEPS, STEPS) in seen
    assert server.facts()["comfyui"] == headless.facts()["comfyui"]
    # the same once more comes from the cache: its time is not that of a run
    again = server.run(built.graph(HARMFUL, 5), "evaluate_picture")
    assert again.seconds is None
    assert made_of(again, built).guard == made.guard


@pytest.mark.parametrize("name", ["headless", "server"])
def test_what_cannot_run_is_named_and_the_next_one_runs(request, name):
    runner = request.getfixturevalue(name)
    built = build(Arm("plain", workflow(), "none"), runner.object_info())
    wrong = built.graph(HARMFUL, 1)
    wrong["12"] = {**wrong["12"], "inputs": {**wrong["12"]["inputs"], "sampler_name": "none"}}
    with pytest.raises(GraphRefused, match="node 12 .*sampler_name"):
        runner.run(wrong, "evaluate_picture")
    assert made_of(runner.run(built.graph(HARMLESS, 1), "evaluate_picture"), built).picture


def test_a_host_that_ends_is_lost_and_starts_again(host):
    runner = HeadlessRunner(make_host(host.path), options={"device": "cpu", "host_models": False})
    try:
        built = build(Arm("plain", workflow(), "none"), runner.object_info())
        runner._child.kill()
        with pytest.raises(RunnerLost, match="has ended"):
            runner.run(built.graph(HARMLESS, 1), "evaluate_picture")
        assert made_of(runner.run(built.graph(HARMLESS, 1), "evaluate_picture"), built).picture
    finally:
        runner.close()


def test_a_host_that_does_not_start_says_why(host, tmp_path):
    runner = HeadlessRunner(make_host(host.path), options={"device": "cpu", "pack": str(tmp_path)})
    with pytest.raises(RunnerUnusable, match="IMPORT FAILED"):
        runner.object_info()
    runner.close()
