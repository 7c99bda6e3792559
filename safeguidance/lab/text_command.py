"""The command that makes the testbed's text redirector: ``train-text-redirector``."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..testbed.model import TEXT_REDIRECTOR_FILE, WEIGHTS, load_testbed
from ..testbed.tokens import MAX_LENGTH
from ..testbed.world import CATEGORY_NAMES
from .command import already_made, named_ways

ENCODER = "TestbedClipModel"
"""Family of the testbed's text encoder, as a ComfyUI with this pack names it."""
STEPS, LAYERS = 1200, 3
_COUNT, _RATE = 2000, 0.01


def add_parsers(commands: Any) -> None:
    """Add ``train-text-redirector`` to the command line."""
    parser = commands.add_parser(
        "train-text-redirector", help="train the testbed's text redirector (about ten minutes on one core)"
    )
    parser.add_argument(
        "config", type=Path, nargs="?", help="JSON file with training settings, default: the shipped ones"
    )
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("runs/text-redirector"), help="resumed if there is one"
    )
    parser.add_argument("--restart", action="store_true", help="forget an earlier run")
    parser.add_argument("--out", type=Path, default=WEIGHTS / TEXT_REDIRECTOR_FILE, help="default: the shipped file")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    import torch

    from ..redirector.hgr import HGR, HGRConfig
    from ..redirector.text_weights import TextCard, save_text_redirector
    from ..training.checkpoints import delete_checkpoint, finish_run
    from ..training.hgr import run_settings
    from ..training.text_redirector import TextTrainConfig, train_text_redirector
    from .training.hgr_task import TestbedTask, calibrate

    settings = json.loads(args.config.read_text(encoding="utf-8")) if args.config else {}
    try:
        config = TextTrainConfig(**{"steps": STEPS, **settings})
    except TypeError as error:
        raise InputError("config", f"{args.config}: {error}", "the fields of TextTrainConfig") from error
    if args.restart:
        delete_checkpoint(args.checkpoints)
    torch.manual_seed(config.seed)
    network = HGR(HGRConfig(128, CATEGORY_NAMES, layers=LAYERS, chunk=MAX_LENGTH))
    if already_made(args.checkpoints, run_settings(network, config), args.out):
        return 0
    testbed = load_testbed()
    with named_ways():
        for _ in train_text_redirector(network, TestbedTask(testbed, config.seed), config, args.checkpoints):
            pass
    threshold, opened = calibrate(network, testbed, _RATE, _COUNT)
    card = TextCard(
        encoder=ENCODER,
        threshold=threshold,
        false_positive_rate=_RATE,
        calibration_count=_COUNT,
        data=(
            "testbed captions and wider wording a defender may know, paired with look-alikes; short and empty prompts"
        ),
        licence="Apache-2.0",
        training={
            **asdict(config),
            "figures": {f"false positives, {kind}": share for kind, share in opened.items()},
            "command": "python -m safeguidance train-text-redirector",
        },
    )
    save_text_redirector(args.out, network, card)
    finish_run(args.checkpoints, args.out)
    print(f"written: {args.out}, gate threshold {threshold:.4f}")
    return 0
