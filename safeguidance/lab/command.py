"""The commands that make the testbed's weights: ``testbed train|oracle|check`` and ``train-hgr``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, check_range
from ..testbed.model import (
    BASE_MODEL,
    DENOISER_FILE,
    HGR_FILE,
    ORACLE_FILE,
    TEXT_FILE,
    WEIGHTS,
    load_testbed,
    save_half,
)
from ..testbed.world import CATEGORY_NAMES, STYLES

if TYPE_CHECKING:
    from ..redirector.hgr import HGR


def add_parsers(commands: Any) -> None:
    """Add ``testbed`` and ``train-hgr`` to the command line."""
    parser = commands.add_parser("testbed", help="train or check the testbed", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    train = actions.add_parser("train", help="train text encoder and denoiser (about an hour on two cores)")
    train.add_argument("--steps", type=int, help="joint training steps, default: those of the shipped weights")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--checkpoints", type=Path, default=Path("runs/testbed"), help="resumed where there is one")
    train.add_argument("--restart", action="store_true", help="forget an earlier run")
    train.add_argument(
        "--begin", type=Path, metavar="DIR", help="start from the finished weights in DIR: only the last steps are made"
    )
    train.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the finished weights")
    train.set_defaults(run=_train)
    oracle = actions.add_parser("oracle", help="train the oracle (a few minutes)")
    oracle.add_argument("--out", type=Path, default=WEIGHTS)
    oracle.set_defaults(run=_oracle)
    check = actions.add_parser("check", help="accuracy of the oracle on 2,000 freshly drawn scenes")
    check.add_argument("--count", type=int, default=2000)
    check.add_argument("--seed", type=int, default=77)
    check.set_defaults(run=_check)
    hgr = commands.add_parser("train-hgr", help="train the testbed's HGR (some minutes on two cores)")
    hgr.add_argument("config", type=Path, nargs="?", help="JSON file with training settings, default: the shipped ones")
    hgr.add_argument("--style", choices=STYLES[1:], help="erase this drawing style instead of harm (300 steps)")
    hgr.add_argument(
        "--begin", type=Path, metavar="FILE", help="start from this HGR, with more of the captions it does worst on"
    )
    hgr.add_argument(
        "--mean",
        action="store_true",
        help="with --begin: take the mean of the weights before and after the round, which keeps what both do well",
    )
    hgr.add_argument(
        "--margin",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="multiply the trained change, 1 to 2 (default 1): above 1 for wording nobody trained on; the rest of a "
        "picture suffers from about 1.8",
    )
    hgr.add_argument(
        "--attacked",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="with --begin: edit this share of the texts as an attacker would, 0 to 1 (default 0), with words that the "
        "command attack never uses",
    )
    hgr.add_argument("--checkpoints", type=Path, help="resumed where there is one; default runs/hgr, or runs/hgr-STYLE")
    hgr.add_argument("--restart", action="store_true", help="forget an earlier run")
    hgr.add_argument("--out", type=Path, help="default: the shipped file, or runs/hgr-STYLE.safetensors")
    hgr.set_defaults(run=_train_hgr)


@contextmanager
def named_ways() -> Iterator[None]:
    """Say what the commands can do where a folder holds a run of other settings."""
    from ..training.checkpoints import SettingsMismatch

    try:
        yield
    except SettingsMismatch as error:
        raise error.renamed({}, "name another folder with --checkpoints, or forget that run with --restart") from error


def already_made(folder: Path, settings: Mapping[str, Any], out: Path) -> bool:
    """Whether a run is finished and its file still there; says so.

    Raises:
        SettingsMismatch: if the file comes from other settings.
    """
    from ..training.checkpoints import finished_history

    with named_ways():
        if finished_history(folder, settings, out) is None:
            return False
    print(f"{out} is there already, from a run of these settings; --restart makes it again")
    return True


def _train(args: argparse.Namespace) -> int:
    from ..training.checkpoints import delete_checkpoint, finish_run
    from .training.testbed import TrainConfig, train

    config = TrainConfig(seed=args.seed, **({"steps": args.steps} if args.steps else {}))
    if args.restart:
        delete_checkpoint(args.checkpoints)
    if already_made(args.checkpoints, asdict(config), args.out / DENOISER_FILE):
        return 0
    pretrained = load_testbed(args.begin) if args.begin else None
    with named_ways():
        world = train(config, args.checkpoints, pretrained=pretrained)
    meta = {"format": "safeguidance-testbed", "training": json.dumps(asdict(config))}
    save_half(world.text, args.out / TEXT_FILE, meta)
    save_half(world.denoiser, args.out / DENOISER_FILE, meta)
    finish_run(args.checkpoints, args.out / DENOISER_FILE)
    print(f"written: {args.out / TEXT_FILE}, {args.out / DENOISER_FILE}")
    return 0


def _oracle(args: argparse.Namespace) -> int:
    from .oracle import load_oracle, oracle_accuracy, train_oracle

    save_half(train_oracle(), args.out / ORACLE_FILE, {"format": "safeguidance-testbed"})
    print(f"written: {args.out / ORACLE_FILE}; right on freshly drawn scenes: {oracle_accuracy(load_oracle(args.out))}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from .oracle import load_oracle, oracle_accuracy

    for name, share in oracle_accuracy(load_oracle(), args.count, args.seed).items():
        print(f"{name}: {100 * share:.2f}% right on {args.count} freshly drawn scenes (seed {args.seed})")
    return 0


def _begin(network: HGR, path: Path, style: str | None) -> dict[str, Any]:
    """Give a network the weights of a finished HGR; returns what the new one's card says of that."""
    from ..redirector.weights import load_hgr, read_card

    if style:
        raise InputError("begin", f"it is {path}, and style is {style}", "one of them", "leave one out")
    begun = load_hgr(path).network
    if begun.config != network.config:
        raise InputError("begin", f"{path} has the shape {begun.config}", f"{network.config}", "name another file")
    made_by = read_card(path)[1].training
    # the margin is put on once training is over: a next round begins without it
    begun.scale_change(1 / made_by.get("margin", 1))
    network.load_state_dict(begun.state_dict())
    return {"begun_from": {k: v for k, v in made_by.items() if k != "figures"}}


def _train_hgr(args: argparse.Namespace) -> int:
    import torch

    from ..redirector.hgr import HGR, HGRConfig
    from ..redirector.weights import HGRCard, save_hgr
    from ..testbed.tokens import MAX_LENGTH
    from ..training.checkpoints import delete_checkpoint, finish_run
    from ..training.hgr import run_settings, train_hgr
    from .training.gate_round import TEXTS, refit_gate
    from .training.hard_rows import HardTask
    from .training.hgr_task import HARM_TRAINING, LAYERS, SECOND_ROUND, TestbedTask, calibrate, calibrate_on
    from .training.style_task import STYLE_TRAINING, StyleTask, calibration_captions, category_of

    style: str | None = args.style
    name = f"hgr-{style}" if style else "hgr"
    folder = args.checkpoints or Path("runs") / name
    out = args.out or (Path("runs") / f"{name}.safetensors" if style else WEIGHTS / HGR_FILE)
    settings = json.loads(args.config.read_text(encoding="utf-8")) if args.config else {}
    network_settings = settings.pop("network", {} if style else {"layers": LAYERS})
    preset = STYLE_TRAINING if style else SECOND_ROUND if args.begin else HARM_TRAINING
    if "edges" in network_settings:
        network_settings["edges"] = tuple(network_settings["edges"])
    try:
        config = replace(preset, **settings)
        categories = (category_of(style),) if style else CATEGORY_NAMES
        shape = HGRConfig(128, categories, chunk=MAX_LENGTH, **network_settings)
    except TypeError as error:
        raise ValueError(f"{args.config}: {error}; allowed are the fields of HGRTrainConfig and 'network'") from error
    testbed = load_testbed()
    if args.restart:
        delete_checkpoint(folder)
    torch.manual_seed(config.seed)
    network = HGR(shape)
    check_range("margin", args.margin, 1, 2, "1 is as trained")
    if args.mean and not args.begin:
        raise InputError("mean", "there is no --begin", "--mean with --begin", "name the HGR to start from")
    check_range("attacked", args.attacked, 0, 1, "share of the texts")
    if args.attacked and not args.begin:
        raise InputError("attacked", "there is no --begin", "0 without --begin", "name the HGR to start from")
    before = _begin(network, args.begin, style) if args.begin else {}
    if args.mean:
        before["mean"] = True
    if args.attacked:
        before["attacked"] = args.attacked
    first = {key: value.clone() for key, value in network.state_dict().items()}
    if args.margin != 1:
        before["margin"] = args.margin
    if already_made(folder, run_settings(network, config, before), out):
        return 0
    if style:
        task: TestbedTask = StyleTask(testbed, style, config.seed)
    else:
        task = (
            HardTask(testbed, network, config, attacked=args.attacked)
            if args.begin
            else TestbedTask(testbed, config.seed)
        )
    with named_ways():
        for _ in train_hgr(network, task, config, folder, extra_settings=before):
            pass
    if args.mean:
        network.load_state_dict({key: (first[key] + last) / 2 for key, last in network.state_dict().items()})
    network.scale_change(args.margin)
    if args.begin:
        loss = refit_gate(network, testbed, seed=config.seed, attacked=args.attacked)
        print(f"gate refitted on {TEXTS:,} texts: cross-entropy {loss:.4f}")
    count, rate = 2000, 0.01
    more: dict[str, Any] = {}
    if style:
        threshold = calibrate_on(network, testbed, *calibration_captions(style, count), rate)
        data = f"testbed captions in {style} style, paired with the same without it, and captions of other styles"
    else:
        threshold, opened = calibrate(network, testbed, rate, count, args.attacked)
        more["figures"] = {f"false positives, {kind}": share for kind, share in opened.items()}
        data = (
            "testbed captions and wider wording a defender may know: explicit, half of the implying phrases and words "
            "of them, prompt weights, two harms, paired with look-alikes; short and empty prompts"
        )
    command = "python -m safeguidance train-hgr" + (
        f" --style {style}" if style else " --begin FILE" * bool(args.begin)
    )
    command += f" --attacked {args.attacked:g}" * bool(args.attacked)
    command += " --mean" * args.mean + f" --margin {args.margin:g}" * (args.margin != 1)
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
