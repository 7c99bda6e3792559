"""A refused prompt on an armed server, as a pupil sees it: the node turns red and a sentence says why."""

from __future__ import annotations

import os
import time
from unittest import mock

import numpy
import pytest
from PIL import Image

from safeguidance.headless.hosts import make_host
from tools.browser import BrowserError, Editor

from .conftest import FRONTENDS, HOST, ROOT
from .test_by_hand import open_flat

SENTENCE = "This picture is not for our class. Ask your teacher."
POLICY = f"""
version = 1
name = "class"
strictest = "pupil"
[categories]
"*" = {{ action = "refuse" }}
[[guards]]
method = "text-redirector"
[levels.pupil]
refuse_prompts = true
message = "{SENTENCE}"
[identity]
[nodes]
remove = ["ImageInvert"]
[models]
any = true
[audit]
path = "audit.jsonl"
[evidence]
"""


@pytest.fixture(scope="module", params=FRONTENDS, ids=["own", "newest"][: len(FRONTENDS)])
def armed(request, tmp_path_factory):
    """The editor of a server that a policy arms."""
    path = tmp_path_factory.mktemp("class") / "policy.toml"
    path.write_text(POLICY, encoding="utf-8")
    pack = os.environ.get("SAFEGUIDANCE_PACK", str(ROOT))
    with (
        mock.patch.dict(os.environ, {"SAFEGUIDANCE_POLICY": str(path)}),
        Editor(make_host(HOST), type(ROOT)(pack), request.param) as running,
    ):
        yield running


PICTURE = {
    "last_node_id": 2,
    "last_link_id": 1,
    "nodes": [
        {
            "id": 1,
            "type": "LoadImage",
            "pos": [300, 300],
            "size": [270, 314],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}, {"name": "MASK", "type": "MASK"}],
            "widgets_values": ["example.png", "image"],
        },
        {
            "id": 2,
            "type": "PreviewImage",
            "pos": [700, 300],
            "size": [210, 246],
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    "version": 0.4,
}


def red_around(node, picture):
    """Share of red points in the left and right frame of a node, 0 to 1."""
    left, top, width, height = map(int, node["box"])
    image = Image.open(picture).convert("RGB")
    strips = [image.crop((x - 8, top - 8, x + 8, top + height + 8)) for x in (left, left + width)]
    points = numpy.concatenate([numpy.asarray(strip, dtype=int).reshape(-1, 3) for strip in strips])
    red = (points[:, 0] > 150) & (points[:, 1] < 90) & (points[:, 2] < 110)
    return float(red.mean())


@pytest.mark.parametrize("modern", [False, True], ids=["classic", "nodes 2.0"])
def test_the_refused_node_is_red_and_says_why_in_the_policys_words(armed, modern):
    armed.call("setting", name="Comfy.VueNodes.Enabled", value=modern)
    armed.call("open", url=armed.server.url)  # the editor remembers which nodes failed, whatever it shows
    open_flat(armed, "1_start_here")
    armed.call("view", scale=0.7)
    before = armed.screenshot(f"policy-{modern}-before")
    for _ in range(60):  # what an earlier run said goes away by itself
        if SENTENCE not in armed.call("text"):
            break
        time.sleep(0.5)
    assert SENTENCE not in armed.call("text")
    end = armed.call("run", timeout=300, seconds=360)
    assert end["kind"] == "execution_error"
    assert end["exception_message"].strip() == SENTENCE
    refused = armed.nodes()[end["node_id"]]
    assert refused["type"] == "KSampler"
    after = armed.screenshot(f"policy-{modern}-refused")
    assert red_around(refused, before) < 0.01
    assert red_around(refused, after) > 0.05
    assert SENTENCE in armed.call("text")


def test_a_workflow_that_is_refused_before_it_is_queued_says_why(armed):
    armed.call("setting", name="Comfy.VueNodes.Enabled", value=False)
    armed.call("show", workflow=PICTURE)
    armed.call("view", scale=0.7)
    with pytest.raises(BrowserError):  # nothing is queued, so no run ends
        armed.call("run", timeout=5)
    picture = armed.screenshot("policy-queue-refused")
    loader = next(node for node in armed.nodes().values() if node["type"] == "LoadImage")
    assert red_around(loader, picture) > 0.05
    assert "Pictures from outside are not allowed on this server." in armed.call("text")
