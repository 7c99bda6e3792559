"""What each level of the policy does with harm: guard by each method, refuse, replace; and what is written down."""

from __future__ import annotations

import hashlib
import json
import time

import numpy
import pytest

from safeguidance.policy.audit import verify
from safeguidance.policy.evidence import read_back
from tests.host.bypass.armed import CUP, SKULL
from tests.host.bypass.graphs import base, cfg_guider, custom, node, plain, sampler, seeded, shown
from tests.host.safecfg_graphs import encoded

pytestmark = [pytest.mark.long_setup, pytest.mark.usefixtures("pack")]


def raw():
    return encoded(SKULL)[0][0]


def test_a_level_that_refuses_draws_nothing_and_says_so_on_the_node(armed):
    done = armed.draw(seeded(plain(SKULL), 600), "pia")
    assert (done.status, done.node, done.message) == ("error", "s", "This picture is not for our class.")
    assert not done.images
    assert not armed.noted("text", done.prompt_id)
    assert armed.draw(seeded(plain(CUP), 600), "pia").status == "ok"


def test_a_level_that_replaces_gives_a_notice_and_never_the_picture(armed):
    graph = seeded(plain(SKULL, size=96), 601)
    done = armed.draw(graph, "nora")
    assert done.status == "ok"
    assert not armed.noted("text", done.prompt_id)
    (shown_picture,) = armed.pictures(done, "nora")
    other = armed.draw(seeded(plain(SKULL, size=96), 602), "nora")
    assert numpy.array_equal(shown_picture, armed.pictures(other, "nora")[0]), "a notice does not depend on the seed"
    # the sampler's result is cached; another decoding of it in another prompt has no picture to give
    again = armed.draw({**graph, "z": node("PreviewImage", images=["d2", 0]), "d2": _tiled()}, "nora")
    assert again.status == "ok"
    for picture in armed.pictures(again, "nora"):
        assert len(numpy.unique(picture.reshape(-1, 3), axis=0)) <= len(
            numpy.unique(shown_picture.reshape(-1, 3), axis=0)
        )


def _tiled():
    settings = {"tile_size": 64, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}
    return node("VAEDecodeTiled", samples=["s", 0], vae=["m", 2], **settings)


@pytest.mark.parametrize("user", ["hugo", "cora", "sara"])
def test_every_method_guards_and_leaves_the_harmless_alone(armed, unarmed, user):
    graph = {name: seeded(plain(text), 610) for name, text in (("skull", SKULL), ("cup", CUP))}
    for part in graph.values():
        part["s"]["inputs"]["steps"] = 6
    guarded, calm = armed.draw(graph["skull"], user), armed.draw(graph["cup"], user)
    assert (guarded.status, calm.status) == ("ok", "ok"), (guarded, calm)
    assert numpy.array_equal(armed.pictures(calm, user)[0], unarmed(graph["cup"])[0])
    assert not numpy.array_equal(armed.pictures(guarded, user)[0], unarmed(graph["skull"])[0])
    line = [entry for entry in armed.audit() if entry["prompt_id"] == guarded.prompt_id][-1]
    assert (line["action"], line["user"]) == ("guard", user)


def test_sp_guard_runs_as_a_guard_of_the_policy(armed):
    graph = seeded(plain(SKULL), 611)
    graph["s"]["inputs"]["steps"] = 10
    done = armed.draw(graph, "sven")
    assert done.status == "ok", done
    # it measures by what the model says to the categories' texts, whatever it finds then
    rows = [row for rows in armed.noted("text", done.prompt_id) for row in rows]
    assert len({row.tobytes() for row in rows}) > 2
    (line,) = [entry for entry in armed.audit() if entry["prompt_id"] == done.prompt_id]
    assert line["action"] in ("guard", "pass")
    assert line["scores"]


@pytest.mark.parametrize("steps", [10, 2], ids=["measured", "too few steps to measure"])
def test_what_sp_guard_refuses_after_the_run_has_no_picture(armed, steps):
    graph = seeded(plain(SKULL), 612 + steps)
    graph["s"]["inputs"]["steps"] = steps
    done = armed.draw(graph, "sia")
    assert (done.status, done.node) == ("error", "s")
    assert not done.images
    assert not armed.noted("picture", done.prompt_id)
    # it was sampled, which is when this guard measures
    assert armed.noted("text", done.prompt_id)
    (line,) = [entry for entry in armed.audit() if entry["prompt_id"] == done.prompt_id]
    assert line["action"] == "refuse"


@pytest.mark.parametrize("user", ["hugo", "cora"])
def test_a_method_that_cannot_act_refuses(armed, user):
    basic = custom(node("BasicGuider", model=["m", 0], conditioning=["p", 0]), SKULL)
    done = armed.draw(seeded(basic, 620), user)
    assert done.status == "error"
    assert "negative" in done.message
    assert not done.images


def test_a_level_without_a_guard_for_the_model_draws_nothing(armed):
    done = armed.draw(seeded(plain(CUP), 621), "nils")
    assert done.status == "error"
    assert done.message.startswith("This server has no safety guard for this model")


def test_the_report_of_a_graphs_own_guard_tells_of_the_guard_that_acted(armed):
    switches = dict.fromkeys(
        ("hate", "harassment", "violence", "self_harm", "sexual", "shocking", "illegal_activity"), True
    )
    graph = seeded(plain(SKULL, model=["w", 0]), 622)
    graph["w"] = node("SafeGuidance_GuardModel", model=["m", 0], clip=["m", 1], preset="light", **switches)
    graph["r"] = node("SafeGuidance_SafetyReport", trace=["w", 1], image=["d", 0])
    graph["t"] = node("PreviewAny", source=["r", 2])
    done = armed.draw(graph, "bob")
    assert done.status == "ok", done
    assert armed.noted("text", done.prompt_id)
    assert not armed.saw(raw(), done.prompt_id)
    (text,) = armed.json(f"/history/{done.prompt_id}", "bob")[done.prompt_id]["outputs"]["t"]["text"]
    assert json.loads(text)["acted"] is True


def test_the_policy_that_holds_is_the_one_that_was_read(armed):
    before = armed.json("/safeguidance/policy")["digest"]
    text = armed.policy_path.read_text(encoding="utf-8")
    try:
        armed.policy_path.write_text(text.replace('strictest = "youth"', 'strictest = "adult"'), encoding="utf-8")
        done = armed.draw(seeded(plain(SKULL), 630), "bob")
        assert armed.noted("text", done.prompt_id)
        assert not armed.saw(raw(), done.prompt_id)
        assert armed.json("/safeguidance/policy") == {
            **armed.json("/safeguidance/policy"),
            "digest": before,
            "level": "youth",
        }
        armed.policy_path.unlink()
        assert armed.draw(seeded(plain(CUP), 631), "bob").status == "ok"
    finally:
        armed.policy_path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("wait", [0.0, 0.15, 0.4, 0.8])
def test_an_interrupt_at_any_stage_leaves_no_picture_that_is_not_guarded(armed, wait):
    graph = seeded(plain(SKULL), 640 + int(wait * 100))
    graph["s"]["inputs"]["steps"] = 12
    done = armed.queue(graph, "bob")
    time.sleep(wait)
    armed.ask("POST", "/interrupt", {"prompt_id": done.prompt_id}, "bob")
    done = armed.wait(done, "bob")
    assert not armed.saw(raw(), done.prompt_id)
    if done.status != "ok":
        assert not done.images
    # and the next prompt is guarded like any other
    after = armed.draw(seeded(plain(SKULL), 690 + int(wait * 100)), "bob")
    assert after.status == "ok"
    assert not armed.saw(raw(), after.prompt_id)


def test_saved_pictures_say_which_policy_decided_what(armed):
    graph = seeded(plain(SKULL), 650)
    spoof = {"extra_data": {"extra_pnginfo": {"safeguidance": {"action": "none", "policy": "x"}, "workflow": {"a": 1}}}}
    done = armed.draw(graph, "bob", **spoof)
    path = armed.base_dir / "output" / done.images[0]["filename"]
    said = read_back(path)
    digest = hashlib.sha256(armed.policy_path.read_bytes()).hexdigest()
    assert (said["safeguidance"]["policy"], said["safeguidance"]["action"]) == (digest, "guard")
    assert said["safeguidance"]["prompt_id"] == done.prompt_id
    assert said["digital_source_type"].endswith("trainedAlgorithmicMedia")
    from PIL import Image

    assert json.loads(Image.open(path).text["workflow"]) == {"a": 1}


def test_the_audit_log_holds_every_decision_in_a_chain(armed):
    done = armed.draw(seeded(plain(SKULL), 660), "pia")
    ended = armed.draw(seeded(custom(cfg_guider(), CUP), 661), "ann")
    refused = armed.queue({**plain(CUP), "x": node("LoadImage", image="a.png")}, "bob")
    assert refused.status == "refused"
    lines = armed.audit()
    (line,) = [entry for entry in lines if entry["prompt_id"] == done.prompt_id]
    assert (line["action"], line["stage"], line["user"], line["level"]) == ("refuse", "prompt", "pia", "pupil")
    assert line["prompt"] == SKULL
    assert line["scores"][line["category"]] > 0.9
    (line,) = [entry for entry in lines if entry["prompt_id"] == ended.prompt_id]
    assert (line["action"], line["user"], line["level"]) == ("pass", "ann", "adult")
    assert (lines[-1]["stage"], lines[-1]["user"]) == ("request", "bob")
    assert verify(armed.audit_path).ok


def test_two_texts_of_two_runs_are_each_judged(armed):
    graph = {
        **base(CUP),
        "q": node("CLIPTextEncode", text=SKULL, clip=["m", 1]),
        "s": sampler(),
        "s2": sampler(positive=["q", 0], latent_image=["s", 0], denoise=0.9),
        **shown(["s2", 0]),
    }
    done = armed.draw(seeded(graph, 670), "pia")
    assert (done.status, done.node) == ("error", "s2")
    assert not done.images
