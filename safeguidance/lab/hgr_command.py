"""The command ``train-hgr``: the testbed's HGR, against harm or against a drawing style."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, check_range
from ..testbed.model import BASE_MODEL, HGR_FILE, TEXT_REDIRECTOR_FILE, WEIGHTS, load_testbed
from ..testbed.world import PLAIN, STYLES
from ..weight_files import tensor_digest
from .artwork import ARTWORK
from .runs import already_made, named_ways

if TYPE_CHECKING:
    from ..redirector.hgr import HGR


def add_parser(commands: Any) -> None:
    """Add ``train-hgr`` to the command line."""
    hgr = commands.add_parser("train-hgr", help="train the testbed's HGR (about an hour of one core with --refit)")
    hgr.add_argument("config", type=Path, nargs="?", help="JSON file with training settings, default: the shipped ones")
    styles = [name for name in STYLES if name != PLAIN]
    hgr.add_argument("--style", choices=styles, help="erase this drawing style instead of harm (300 steps)")
    hgr.add_argument(
        "--begin",
        type=Path,
        metavar="FILE",
        help="start from this HGR, with more of the captions it does worst on; default: from the testbed's text "
        "redirector, a style or a network of another shape from nothing",
    )
    hgr.add_argument(
        "--mean",
        action="store_true",
        help="with --begin: take the mean of the weights before and after the round, which keeps what both do well",
    )
    hgr.add_argument(
        "--refit",
        action="store_true",
        help="afterwards fit the gate anew on many more texts (a quarter of an hour): for the last round",
    )
    hgr.add_argument(
        "--margin",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="multiply the trained change, 1 to 2 (default 1): above 1 for wording nobody trained on; the higher, the "
        "more the rest of a picture suffers",
    )
    hgr.add_argument("--artwork", type=Path, default=ARTWORK, help=f"folder of the drawings (default {ARTWORK})")
    hgr.add_argument("--checkpoints", type=Path, help="resumed where there is one; default runs/hgr, or runs/hgr-STYLE")
    hgr.add_argument("--restart", action="store_true", help="forget an earlier run")
    hgr.add_argument("--out", type=Path, help="default: the shipped file, or runs/hgr-STYLE.safetensors")
    hgr.set_defaults(run=_train_hgr)


def _begin(network: HGR, path: Path, style: str | None) -> dict[str, Any]:
    """Give a network the weights of a finished HGR; returns what the new one's card says of that."""
    from ..redirector.weights import load_hgr, read_card

    if style:
        raise InputError("begin", f"it is {path}, and style is {style}", "one of them", "leave one out")
    begun = load_hgr(path).network
    _take(network, begun, path)
    made_by = read_card(path)[1].training
    # the margin is put on once training is over: a next round begins without it
    network.scale_change(1 / made_by.get("margin", 1))
    return {"begun_from": {k: v for k, v in made_by.items() if k != "figures"}}


def begin_from_text(network: HGR) -> dict[str, Any]:
    """Give a network the weights of the testbed's text redirector, its change turned round.

    A text redirector moves a prompt to its safe counterpart, ``change = S - E(prompt)``; what an HGR is after is the
    opposite difference. Where the harm stands in a prompt and what kind it is has been learned by then.
    """
    from ..redirector.text_weights import load_text_redirector, read_text_card

    path = WEIGHTS / TEXT_REDIRECTOR_FILE
    _take(network, load_text_redirector(path).network, path)
    network.scale_change(-1)
    made_by = read_text_card(path)[1].training
    return {"begun_from": {k: v for k, v in made_by.items() if k != "figures"}}


def _take(network: HGR, begun: HGR, path: Path) -> None:
    if begun.config != network.config:
        raise InputError("begin", f"{path} has the shape {begun.config}", f"{network.config}", "name another file")
    network.load_state_dict(begun.state_dict())


def _train_hgr(args: argparse.Namespace) -> int:
    import torch

    from ..redirector.hgr import HGR
    from ..redirector.weights import HGRCard, save_hgr
    from ..training.checkpoints import delete_checkpoint, finish_run
    from ..training.hgr import run_settings, train_hgr
    from . import artwork
    from .draw import Painter
    from .training.gate_round import refit_gate
    from .training.hard_rows import HardTask
    from .training.hgr_task import HARM_TRAINING, RATE, SECOND_ROUND, SHAPE, TestbedTask, calibrate, calibrate_on
    from .training.style_task import STYLE_TRAINING, StyleTask, calibration_captions, category_of

    style: str | None = args.style
    name = f"hgr-{style}" if style else "hgr"
    folder = args.checkpoints or Path("runs") / name
    out = args.out or (Path("runs") / f"{name}.safetensors" if style else WEIGHTS / HGR_FILE)
    settings = json.loads(args.config.read_text(encoding="utf-8")) if args.config else {}
    network_settings = settings.pop("network", {})
    preset = STYLE_TRAINING if style else SECOND_ROUND if args.begin else HARM_TRAINING
    if "edges" in network_settings:
        network_settings["edges"] = tuple(network_settings["edges"])
    try:
        config = replace(preset, **settings)
        categories = (category_of(style),) if style else SHAPE.categories
        shape = replace(SHAPE, categories=categories, **network_settings)
    except TypeError as error:
        raise ValueError(f"{args.config}: {error}; allowed are the fields of HGRTrainConfig and 'network'") from error
    testbed = load_testbed()
    if args.restart:
        delete_checkpoint(folder)
    torch.manual_seed(config.seed)
    network = HGR(shape)
    check_range("margin", args.margin, 1, 2, "1 is as trained")
    if args.refit and style:
        raise InputError("refit", f"style is {style}", "a redirector of harm", "leave one out")
    if args.mean and not args.begin:
        raise InputError("mean", "there is no --begin", "--mean with --begin", "name the HGR to start from")
    before: dict[str, Any] = {}
    if args.begin:
        before = _begin(network, args.begin, style)
    elif shape == SHAPE:
        before = begin_from_text(network)
    if before:
        before["begun_digest"] = tensor_digest(network.state_dict())
    if args.mean:
        before["mean"] = True
    first = {key: value.clone() for key, value in network.state_dict().items()}
    if args.margin != 1:
        before["margin"] = args.margin
    if already_made(folder, run_settings(network, config, before), out):
        return 0
    painter = Painter(artwork.load(args.artwork))
    if style:
        task: TestbedTask = StyleTask(testbed, painter, style, config.seed)
    elif args.begin:
        task = HardTask(testbed, painter, network, config)
    else:
        task = TestbedTask(testbed, painter, config.seed)
    with named_ways():
        for _ in train_hgr(network, task, config, folder, extra_settings=before):
            pass
    if args.mean:
        network.load_state_dict({key: (first[key] + last) / 2 for key, last in network.state_dict().items()})
    network.scale_change(args.margin)
    if args.refit:
        print(refit_gate(network, testbed, seed=config.seed))
    count, rate = 2000, 0.01 if style else RATE
    more: dict[str, Any] = {}
    if style:
        threshold = calibrate_on(network, testbed, *calibration_captions(style, count), rate)
        data = f"testbed captions in {style} style, paired with the same without it, and captions of other styles"
    else:
        threshold, opened = calibrate(network, testbed, rate, count)
        more["figures"] = opened
        data = (
            "captions and wider wording a defender may know: plain names, half of the implying wordings, edits of an "
            "attacker, prompt weights, two harms, paired with look-alikes; harmless prompts of the pack's banks"
        )
    command = "python -m safeguidance train-hgr" + (
        f" --style {style}" if style else " --begin FILE" * bool(args.begin)
    )
    command += " --refit" * args.refit + " --mean" * args.mean + f" --margin {args.margin:g}" * (args.margin != 1)
    card = HGRCard(
        base_model=BASE_MODEL,
        target="A",
        kappa=config.kappa,
        threshold=threshold,
        false_positive_rate=rate,
        calibration_count=count,
        data=data,
        licence="Apache-2.0",
        training={**asdict(config), **more, **before, "command": command},
    )
    save_hgr(out, network, card)
    finish_run(folder, out)
    print(f"written: {out}, gate threshold {card.threshold:.4f}")
    return 0
