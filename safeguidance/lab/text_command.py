"""The command that trains a text redirector: for the testbed, or on a real encoder from the pack's own pairs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import InputError
from ..redirector.hgr import HGR, HGRConfig
from ..testbed.model import TEXT_REDIRECTOR_FILE, WEIGHTS
from .runs import already_made, named_ways

ENCODER = "TestbedClipModel"
"""Family of the testbed's text encoder, as a ComfyUI with this pack names it."""
STEPS, LAYERS = 900, 3
_COUNT, _RATE, _GATE_STEPS = 2000, 0.01, 900


def add_parsers(commands: Any) -> None:
    """Add ``train-text-redirector`` to the command line."""
    parser = commands.add_parser(
        "train-text-redirector", help="train the testbed's text redirector (about half an hour on one core)"
    )
    parser.add_argument("config", type=Path, nargs="?", help="JSON file with training settings, default: as shipped")
    parser.add_argument(
        "--encoder", default="testbed", help="testbed, minilm or a folder; the last two train on the pack's own pairs"
    )
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/text-redirector"), help="resumed if it is there")
    parser.add_argument("--restart", action="store_true", help="forget an earlier run")
    parser.add_argument("--out", type=Path, help="default: the shipped file, or runs/text-redirector.safetensors")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    import torch

    from ..redirector.hgr import HGR
    from ..redirector.text_weights import TextCard, save_text_redirector
    from ..training.checkpoints import delete_checkpoint, finish_run
    from ..training.hgr import run_settings
    from ..training.text_redirector import TextTrainConfig, train_text_redirector

    settings = json.loads(args.config.read_text(encoding="utf-8")) if args.config else {}
    try:
        config = TextTrainConfig(**{"steps": STEPS, **settings})
    except TypeError as error:
        raise InputError("config", f"{args.config}: {error}", "the fields of TextTrainConfig") from error
    if args.restart:
        delete_checkpoint(args.checkpoints)
    own = args.encoder == "testbed"
    world = _testbed(config.seed) if own else _encoder(args.encoder, config.seed)
    out = args.out or (WEIGHTS / TEXT_REDIRECTOR_FILE if own else Path("runs/text-redirector.safetensors"))
    torch.manual_seed(config.seed)
    network = HGR(world.shape)
    if already_made(args.checkpoints, run_settings(network, config, world.settings), out):
        return 0
    with named_ways():
        for _ in train_text_redirector(network, world.task, config, args.checkpoints, extra_settings=world.settings):
            pass
    threshold, rate, count, figures = world.calibrate(network)
    card = TextCard(
        encoder=world.family,
        threshold=threshold,
        false_positive_rate=rate,
        calibration_count=count,
        data=world.data,
        licence="Apache-2.0",
        training={
            **asdict(config),
            "figures": figures,
            "command": "python -m safeguidance train-text-redirector" + (f" --encoder {args.encoder}" * (not own)),
        },
        encoder_hash=str(world.settings.get("encoder", "")),
        data_hash=str(world.settings.get("dataset", "")),
        counts=world.counts,
    )
    save_text_redirector(out, network, card)
    finish_run(args.checkpoints, out)
    print(f"written: {out}, gate threshold {threshold:.4f}")
    for name, value in figures.items():
        print(f"{name}: {value}")
    return 0


@dataclass(frozen=True)
class _World:
    """What is trained on, and how the outcome is calibrated."""

    task: Any
    shape: HGRConfig
    family: str
    data: str
    calibrate: Callable[[HGR], tuple[float, float, int, dict[str, Any]]]
    settings: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def _testbed(seed: int) -> _World:
    from ..testbed.model import load_testbed
    from .training.gate_round import refit_gate
    from .training.hgr_task import RATE, SHAPE, TestbedTask, calibrate

    testbed = load_testbed()

    def calibrated(network: HGR) -> tuple[float, float, int, dict[str, Any]]:
        print(refit_gate(network, testbed, steps=_GATE_STEPS, seed=seed))
        threshold, opened = calibrate(network, testbed, RATE, _COUNT)
        return threshold, RATE, _COUNT, dict(opened)

    return _World(
        TestbedTask(testbed, None, seed),
        SHAPE,
        ENCODER,
        "captions and wider wording a defender may know, paired with look-alikes; harmless prompts of the pack's banks",
        calibrated,
    )


def _encoder(name: str, seed: int) -> _World:
    import torch

    from ..prompts.banks import bank_prompts
    from ..training.prompt_task import EncodedTexts, PromptRows, calibrate_threshold, held_out_metrics
    from .encoders import load_encoder

    encoder, data = load_encoder(name), bank_prompts()
    listed = list(dict.fromkeys(text for e in data.examples for text in (e.prompt, e.safe)))
    with tqdm(total=len(listed) + 1, desc="texts encoded", mininterval=5) as bar:
        texts = EncodedTexts(lambda text: encoder([text]), listed, torch.device("cpu"), lambda _: bar.update())

    def calibrated(network: HGR) -> tuple[float, float, int, dict[str, Any]]:
        threshold, rate, count = calibrate_threshold(network, data, texts, _RATE)
        return threshold, rate, count, held_out_metrics(network, data, texts, threshold)

    return _World(
        PromptRows(data, texts, seed),
        HGRConfig(encoder.width, data.categories, layers=LAYERS, chunk=0),
        encoder.title,
        data.path.name,
        calibrated,
        {"encoder": encoder.digest, "dataset": data.digest},
        data.counts(),
    )
