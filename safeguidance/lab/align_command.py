"""The command ``align``: a LoRA that keeps the testbed's model from drawing harm, made from prompts without labels."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..testbed.model import BASE_MODEL, HGR_FILE, WEIGHTS, load_testbed
from .runs import LORA, already_made, named_ways

_TESTBED = {"steps": 150, "scale": 4.0}
"""Settings for the testbed that differ from the defaults of ``AlignConfig``."""


def add_parser(commands: Any) -> None:
    """Add ``align`` to the command line."""
    parser = commands.add_parser(
        "align", help="train the testbed's safety LoRA (some minutes on two cores)", description=__doc__
    )
    parser.add_argument("config", type=Path, nargs="?", help="JSON file with settings, default: the testbed's")
    parser.add_argument("--hgr", type=Path, default=WEIGHTS / HGR_FILE, help="redirector; default: the shipped one")
    parser.add_argument("--rank", type=int, default=16, help="rank of the adapters (default 16)")
    parser.add_argument(
        "--layers", choices=("attention", "linear"), default="linear", help="which linear layers get one (default all)"
    )
    parser.add_argument("--labels", action="store_true", help="weigh by the true labels, to compare with")
    parser.add_argument(
        "--checkpoints", type=Path, help="resumed where there is one; default runs/align or runs/align-labels"
    )
    parser.add_argument("--restart", action="store_true", help="forget an earlier run")
    parser.add_argument("--out", type=Path, help="default: runs/align.safetensors, or runs/align-labels.safetensors")
    parser.add_argument(
        "--measure", type=Path, nargs="+", metavar="FILE", help="train nothing: measure these LoRA files against none"
    )
    parser.add_argument("--count", type=int, default=50, help="captions per group to measure with (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the captions and noise to measure with")
    parser.set_defaults(run=_run)


def _measure(args: argparse.Namespace) -> int:
    from ..training.lora import load_lora
    from .bench.aligned import with_lora
    from .bench.measure import measure
    from .bench.tables import table
    from .oracle import load_oracle

    extra = {path.stem: with_lora(path) for path in args.measure}
    for path in args.measure:
        load_lora(path)  # refuse what cannot be read before an hour of sampling
    report = measure(load_testbed(), load_oracle(), ["none", *extra], count=args.count, seed=args.seed, extra=extra)
    print(table(report.rows))
    return 0


def _run(args: argparse.Namespace) -> int:
    if args.measure:
        return _measure(args)
    from ..redirector.weights import load_hgr
    from ..training.align import AlignConfig, align_model, run_settings
    from ..training.checkpoints import delete_checkpoint, finish_run
    from ..training.lora import LoRA, LoRACard, linear_layers, save_lora
    from .training.align_task import LabelledTask, UnlabelledTask, true_labels

    settings = json.loads(args.config.read_text(encoding="utf-8")) if args.config else {}
    try:
        config = AlignConfig(**{**_TESTBED, **settings})
    except TypeError as error:
        raise InputError("config", f"{args.config}: {error}", "the fields of AlignConfig") from error
    testbed, redirector = load_testbed(), load_hgr(args.hgr)
    name = "align-labels" if args.labels else "align"
    folder = args.checkpoints or Path("runs") / name
    out = args.out or LORA.with_name(f"{name}.safetensors")
    if args.restart:
        delete_checkpoint(folder)
    lora = LoRA(linear_layers(testbed.denoiser, args.layers), args.rank, seed=config.seed)
    task = (LabelledTask if args.labels else UnlabelledTask)(testbed, None, config.seed)
    labels = true_labels if args.labels else None
    if already_made(folder, run_settings(lora, redirector, config, labels), out):
        return 0
    with named_ways():
        for _ in align_model(lora, testbed.denoiser, task, redirector, config, folder, labels=labels):
            pass
    labelled_by = "the true labels" if args.labels else redirector.title
    command = "python -m safeguidance align" + (" --labels" if args.labels else "")
    training = {**asdict(config), "rank": args.rank, "layers": args.layers, "command": command}
    card = LoRACard(
        base_model=BASE_MODEL,
        redirector=labelled_by,
        threshold=redirector.threshold,
        prompts=0,
        judged_harmful=0,
        data="testbed captions a defender may know",
        licence="Apache-2.0",
        training=training,
    )
    save_lora(out, lora, card)
    finish_run(folder, out)
    print(f"written: {out}; measure it with `python -m safeguidance bench --methods none,lora`")
    return 0
