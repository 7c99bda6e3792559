"""What the tests of Train HGR share: its graph, its prompt file, and what comes out."""

from __future__ import annotations

import csv
import shutil
from contextlib import contextmanager

import torch
from PIL import Image

from tests.host.safecfg_graphs import part

HARM = "a skull in front of a brick wall"


@contextmanager
def prompt_file(host):
    """Within this there is input/prompts.csv; afterwards everything that was trained is gone."""
    make = part("safeguidance.prompts.templates").make_prompts
    data = part("safeguidance.prompts.files")
    presets = part("safeguidance.testbed.concepts").TESTBED_PRESETS
    path = host.base_dir / "input" / "prompts.csv"
    (host.base_dir / "models" / "safeguidance").mkdir(parents=True, exist_ok=True)
    data.write_prompts(path, make(presets[:2], count=10, makers=part("safeguidance.testbed.prompts").ROW_MAKERS))
    try:
        yield path
    finally:
        path.unlink()
        shutil.rmtree(host.base_dir / "output" / "safeguidance", ignore_errors=True)
        # the folder itself stays: the host has listed it
        for trained in (host.base_dir / "models" / "safeguidance").iterdir():
            trained.unlink()


def train_graph(name="mine", steps=6, **more):
    return {
        "1": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}},
        "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 48, "height": 48, "batch_size": 1}},
        "3": {
            "class_type": "SafeGuidance_TrainHGR",
            "inputs": {
                "model": ["1", 0],
                "clip": ["1", 1],
                "latent": ["2", 0],
                "dataset": "prompts.csv",
                "name": name,
                "steps": steps,
                "batch": 2,
                "rate": 1e-3,
                "cfg": 3.0,
                "rollout_cfg": 5.0,
                "rollout_share": 0.5,
                "width": 64,
                "layers": 1,
                "patience": 0,
                "checkpoint_every": 100,
                "save_memory": True,
                "seed": 0,
                **more,
            },
        },
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}},
        "5": {
            "class_type": "SafeGuidance_DetectHarm",
            "inputs": {
                "redirector": ["3", 0],
                "clip": ["1", 1],
                "prompt": HARM,
                "threshold": -1.0,
                "rate": 0.01,
                "harmless": "",
                "image_threshold": -10.0,
                "draws": 4,
                "seed": 0,
            },
        },
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["5", 2]}},
    }


def weights(host, name):
    from safetensors.torch import load_file

    return load_file(host.base_dir / "models" / "safeguidance" / f"{name}.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def add_pictures(host, missing=False):
    """The prompt file with a picture for every third training row, each of one colour."""
    path = host.base_dir / "input" / "prompts.csv"
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    named = [row for row in rows if row["split"] == "train" and row["category"]][::3]
    for number, row in enumerate(named):
        row["image"] = f"pictures/{number}.png"
        target = path.parent / row["image"]
        target.parent.mkdir(exist_ok=True)
        # not square and larger than the training size: it is scaled and cut
        Image.new("RGB", (120, 80), (10 * number, 90, 200)).save(target)
    if missing:
        named[1]["image"] = "pictures/none.png"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "image"], restval="")
        writer.writeheader()
        writer.writerows(rows)
    return len(named), rows.index(named[1]) + 2


def refused(run_graph, graph):
    """The one error of a graph that is refused."""
    result = run_graph(graph, check=False)
    assert not result.ok
    (error,) = result.errors
    return error.message


@contextmanager
def interrupted_at(step, total):
    """Within this a run of ``total`` steps is interrupted at one of them, as by the button."""
    import nodes

    module = part("nodes.host.model")
    progress = module.progress

    def counted(steps):
        at = progress(steps)

        def stop(now, picture=None):
            if steps == total and now == step:
                nodes.interrupt_processing(True)
            at(now, picture)

        return stop

    module.progress = counted
    try:
        yield
    finally:
        module.progress = progress
        nodes.interrupt_processing(False)
