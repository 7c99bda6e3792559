"""A server whose judge looks at finished pictures: every picture of a batch, where it is born and where it leaves."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import numpy
import pytest

from tests.host.bypass.armed import CUP, POLICY, Armed
from tests.host.bypass.files import BLUE, RED, classifier
from tests.host.bypass.graphs import base, node, plain, sampler, seeded, shown

pytestmark = [pytest.mark.long_setup, pytest.mark.usefixtures("pack")]
JUDGE = """
[levels.NAME.judge]
kind = "classifier"
file = "judge"
threshold = 0.5
action = "ACTION"
labels = { red = "sexual" }
"""
NAMES = ("youth", "adult", "pupil", "notice", "hgr", "concepts", "spguard", "spstrict", "safree", "none", "teacher")
VIEW = {"subfolder": "", "type": "output"}


@pytest.fixture(scope="module")
def judged(host, tmp_path_factory):
    """A server that judges what leaves it and what comes in; previews too."""
    folder = tmp_path_factory.mktemp("judged")
    classifier(folder / "judge")
    text = POLICY.replace('previews = "off"', 'previews = "judged"').replace('loaded = "refuse"', 'loaded = "judge"')
    for name in NAMES:
        action = "refuse" if name == "pupil" else "replace"
        text = text.replace(f"[levels.{name}]\n", f"[levels.{name}]\n", 1)
        lines = JUDGE.replace("NAME", name).replace("ACTION", action)
        text = text.replace("[identity]\n", lines + "\n[identity]\n", 1)
    with Armed(host, folder, text) as server:
        yield server


def flat(colour, batch=1):
    return node("EmptyImage", width=64, height=64, batch_size=batch, color=colour)


def saved(source="e"):
    return {"o": node("SaveImage", images=[source, 0], filename_prefix="j")}


def latent(colour):
    """A picture of one colour, encoded and decoded again."""
    return {
        "m": node("SafeGuidance_LoadTestbed"),
        "e": flat(colour),
        "v": node("VAEEncode", pixels=["e", 0], vae=["m", 2]),
    }


def is_red(picture):
    return bool((picture.reshape(-1, 3).mean(axis=0)[0] > 150) and picture.reshape(-1, 3).mean(axis=0)[2] < 100)


PATHS = {
    "pass-through": lambda: {"e": flat(RED), **saved()},
    "preview": lambda: {"e": flat(RED), "o": node("PreviewImage", images=["e", 0])},
    "decoded": lambda: {**latent(RED), "d": node("VAEDecode", samples=["v", 0], vae=["m", 2]), **saved("d")},
    "tiled": lambda: {
        **latent(RED),
        "d": node(
            "VAEDecodeTiled",
            samples=["v", 0],
            vae=["m", 2],
            tile_size=64,
            overlap=16,
            temporal_size=64,
            temporal_overlap=8,
        ),
        **saved("d"),
    },
    "upscaled": lambda: {
        "e": flat(BLUE),
        "u": node("ImageScaleBy", image=["r", 0], upscale_method="nearest-exact", scale_by=1.5),
        "r": flat(RED),
        **saved("u"),
    },
    "inverted into it": lambda: {"e": flat(0x20EFEF), "u": node("ImageInvert", image=["e", 0]), **saved("u")},
    "third of a batch": lambda: {
        "e": flat(BLUE, 2),
        "r": flat(RED),
        "u": node("ImageBatch", image1=["e", 0], image2=["r", 0]),
        **saved("u"),
    },
    "film": lambda: {
        "e": flat(RED, 2),
        "o": node(
            "SaveAnimatedWEBP",
            images=["e", 0],
            filename_prefix="f",
            fps=6.0,
            lossless=True,
            quality=80,
            method="default",
        ),
    },
}


@pytest.mark.parametrize("path", PATHS)
def test_a_picture_that_the_judge_refuses_never_leaves(judged, path):
    done = judged.draw(PATHS[path](), "pia")
    assert done.status == "error", done
    assert done.message == "This picture is not for our class."
    assert not done.images


@pytest.mark.parametrize("path", PATHS)
def test_a_picture_that_the_judge_replaces_leaves_as_a_notice(judged, path):
    done = judged.draw(PATHS[path](), "bob")
    assert done.status == "ok", done
    assert not [picture for picture in judged.pictures(done, "bob") if is_red(picture)]
    if path == "third of a batch":
        blue = [picture for picture in judged.pictures(done, "bob") if picture[0, 0, 2] > 200]
        assert len(blue) == 2, "the others of the batch are left alone"


def test_a_harmless_picture_is_left_alone(judged, unarmed):
    graph = seeded(plain(CUP, batch=2), 801)
    done = judged.draw(graph, "bob")
    found, expected = judged.pictures(done, "bob"), unarmed(graph)
    assert len(found) == 2
    assert all(numpy.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_picture_made_of_a_film_is_judged(judged):
    made = {"e": flat(RED, 2), "f": node("CreateVideo", images=["e", 0], fps=6.0)}
    made["o"] = node("SaveVideo", video=["f", 0], filename_prefix="video", format="mp4", codec="h264")
    done = judged.draw(made, "pia")
    assert done.status == "error"
    assert not done.images


def test_a_latent_does_not_leave_without_being_judged(judged):
    done = judged.draw({**latent(RED), "o": node("SaveLatent", samples=["v", 0], filename_prefix="l")}, "bob")
    assert done.status == "error"
    assert done.message == "This server cannot check this picture, so it is not shown."


def upload(judged, user, colour, name):
    from io import BytesIO

    from PIL import Image

    held = BytesIO()
    Image.new("RGB", (64, 64), colour).save(held, "PNG")
    head = f'--x\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    body = head.encode() + held.getvalue() + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    return judged.ask("POST", "/upload/image", body, user, headers)


def test_an_upload_is_judged_when_it_leaves_and_is_its_users_own(judged):
    assert upload(judged, "bob", (224, 16, 16), "bobs.png")[0] == 200
    mine = {"e": node("LoadImage", image="bobs.png"), **saved()}
    done = judged.draw(mine, "bob")
    assert done.status == "ok"
    assert not is_red(judged.pictures(done, "bob")[0])
    assert (
        judged.ask("GET", "/view?" + urlencode({**VIEW, "filename": "bobs.png", "type": "input"}), user="eve")[0] == 403
    )
    stolen = judged.draw(mine, "eve")
    assert stolen.status in ("error", "refused")
    assert not stolen.images


def test_a_picture_of_another_is_not_loaded_from_output_or_temp(judged):
    (image,) = judged.draw({"e": flat(BLUE), **saved()}, "ann").images
    for kind in ("output", "temp"):
        taken = {"e": node("LoadImage", image=f"{image['filename']} [{kind}]"), **saved()}
        done = judged.draw(taken, "bob")
        assert done.status in ("error", "refused"), done
        assert not done.images
    name = {"filename": image["filename"], "type": "output", "subfolder": ""}
    line = b"--x\r\nContent-Disposition: form-data; name="
    body = line + b'"image"; filename="m.png"\r\nContent-Type: image/png\r\n\r\nPNG\r\n'
    body += line + b'"original_ref"\r\n\r\n' + json.dumps(name).encode() + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert judged.ask("POST", "/upload/mask", body, "bob", headers)[0] == 403


def test_an_image_that_is_drawn_from_an_upload_is_guarded_and_judged(judged):
    assert upload(judged, "bob", (16, 16, 224), "blue.png")[0] == 200
    graph = {
        **base(CUP),
        "e": node("LoadImage", image="blue.png"),
        "v": node("VAEEncode", pixels=["e", 0], vae=["m", 2]),
        "s": sampler(latent_image=["v", 0], denoise=0.7),
        **shown(),
    }
    done = judged.draw(seeded(graph, 802), "bob")
    assert done.status == "ok"
    assert judged.noted("text", done.prompt_id)


def test_a_gate_that_somebody_replaces_stops_everything(judged):
    """The last test of this server: a pack puts a function of its own in a gate's place while the server runs."""
    done = judged.draw(
        {**plain(CUP), "b": node("BypassReplaceGate"), "z": node("PreviewImage", images=["b", 0])}, "ann"
    )
    assert done.status == "error"
    for user in ("ann", "tom"):
        after = judged.queue(seeded(plain(CUP), 803), user)
        assert after.status == "refused"
        assert after.message.startswith("Something in this server's safety check failed")
