"""How many clicks the first steps take, and how many seconds, which are printed and not judged."""

from __future__ import annotations

import json
import time

from safeguidance.headless.author import to_ui

from .test_by_hand import GRAPHS
from .test_guard import GUARD_IT

FIRST = "1_start_here"
# loader, prompts, latent, unguarded sampler and its picture
OWN = ("1", "2", "3", "5", "12", "23")


def own_workflow(editor):
    """A workflow as a person has it, without a guard; from the parts of the first example."""
    graph = json.loads((GRAPHS / f"{FIRST}.json").read_text(encoding="utf-8"))
    kept = {key: graph[key] for key in OWN}
    kept["30"] = {"class_type": "SaveImage", "inputs": {"images": ["23", 0], "filename_prefix": "own"}}
    return to_ui(kept, editor.server.object_info())


def seconds(began, what):
    print(f"{what}: {time.monotonic() - began:.1f} s")


def test_the_first_guarded_picture_takes_four_clicks(editor):
    editor.call("setting", name="Comfy.VueNodes.Enabled", value=False)
    editor.call("clicks")
    began = time.monotonic()
    editor.call("pick", pack=editor.pack, name=FIRST, count=1)
    seconds(began, "from Templates to the open workflow")
    done = editor.run()
    editor.call("pictures", nodes=list(done["shown"]))
    seconds(began, "from Templates to the pictures")
    assert editor.call("clicks") == 4


def test_a_workflow_of_ones_own_is_guarded_in_two_clicks(editor):
    editor.call("setting", name="Comfy.VueNodes.Enabled", value=False)
    editor.call("show", workflow=own_workflow(editor))
    editor.call("view", scale=0.7)
    place = editor.call("empty")
    editor.call("clicks")
    began = time.monotonic()
    editor.call("menu", at=place, entry=GUARD_IT)
    assert [text for texts in editor.call("badges")["canvas"].values() for text in texts] == ["guarded"]
    seconds(began, "from the right click to the badge")
    assert editor.call("clicks") == 2
    done = editor.run()
    editor.call("pictures", nodes=list(done["shown"]))
    seconds(began, "from the right click to the guarded picture")


def test_a_text_redirector_is_trained_in_four_clicks(editor):
    editor.call("setting", name="Comfy.VueNodes.Enabled", value=False)
    editor.call("clicks")
    began = time.monotonic()
    editor.call("pick", pack=editor.pack, name="train_text_redirector", count=1)
    done = editor.run()
    editor.call("pictures", nodes=list(done["shown"]))
    seconds(began, "from Templates to the picture guarded by the new file")
    assert editor.call("clicks") == 4
    # the losses, and before and after
    assert len(done["shown"]) >= 2
