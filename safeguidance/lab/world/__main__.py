"""``python -m safeguidance.lab.world``: make the world of drawings, step by step."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from ...testbed.drawings.encoder import TextEncoder
from ...testbed.drawings.model import DENOISER_FILE, ENCODER_FILE, ORACLE_FILE, load_model, load_small, save_small
from ...testbed.drawings.wordpieces import VOCABULARY, WordPieces
from . import artwork, minilm
from .draw import Painter
from .measure import Sampling, measure
from .oracle import Oracle, OracleConfig, oracle_accuracy, train_oracle
from .train import TrainConfig, train

_MINILM = {"origin": "sentence-transformers/all-MiniLM-L6-v2, vocabulary cut, eight bits", "licence": "Apache-2.0"}
_OWN = {"origin": "trained on scenes of Noto Emoji drawings (Apache-2.0)", "licence": "as the pack"}


def _fetch(folder: Path, _options: argparse.Namespace) -> None:
    artwork.fetch(folder / "artwork")


def _encoder(folder: Path, _options: argparse.Namespace) -> None:
    weights, vocabulary = minilm.original()
    tokens = minilm.kept_tokens(vocabulary)
    if tokens != VOCABULARY.read_text(encoding="utf-8").splitlines():
        VOCABULARY.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    encoder = TextEncoder(len(tokens))
    encoder.load_state_dict(minilm.cut(weights, vocabulary, tokens))
    save_small(encoder, folder / ENCODER_FILE, _MINILM)


def _painter(folder: Path) -> Painter:
    return Painter(artwork.load(folder / "artwork"))


def _train(folder: Path, options: argparse.Namespace) -> None:
    pieces = WordPieces.from_pretrained()
    encoder = TextEncoder(len(pieces))
    load_small(encoder, folder / ENCODER_FILE)
    encoder.requires_grad_(False).eval().to(options.device)
    config = TrainConfig(steps=options.steps or TrainConfig.steps)
    denoiser = train(config, _painter(folder), encoder, pieces, folder / "denoiser-run")
    save_small(denoiser.cpu(), folder / DENOISER_FILE, {**_OWN, "steps": str(config.steps)})


def _oracle(folder: Path, options: argparse.Namespace) -> None:
    config = OracleConfig(steps=options.steps or OracleConfig.steps)
    painter = _painter(folder)
    trained = train_oracle(config, painter, folder / "oracle-run")
    save_small(trained, folder / ORACLE_FILE, {**_OWN, "steps": str(config.steps)})
    oracle = _saved_oracle(folder)
    for part in ("all", "near_miss"):
        print(part, json.dumps(oracle_accuracy(oracle, painter, part=part)))


def _saved_oracle(folder: Path) -> Oracle:
    oracle = Oracle().requires_grad_(False).eval()
    load_small(oracle, folder / ORACLE_FILE)
    return oracle


def _measure(folder: Path, options: argparse.Namespace) -> None:
    how = Sampling(cfg=options.cfg)
    found = measure(load_model(folder), _saved_oracle(folder), options.count, how, folder / "measured.png")
    print(json.dumps(found, indent=1))


_STEPS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "fetch": _fetch,
    "encoder": _encoder,
    "oracle": _oracle,
    "train": _train,
    "measure": _measure,
}


def main() -> None:
    """Read the command line and make one step."""
    parser = argparse.ArgumentParser(prog="python -m safeguidance.lab.world", description=__doc__)
    parser.add_argument("step", choices=list(_STEPS), help="in this order; train and oracle go on where they stopped")
    parser.add_argument("--folder", type=Path, default=Path("runs/world"), help="where everything is kept")
    parser.add_argument("--steps", type=int, default=0, help="training steps; 0 takes the default")
    parser.add_argument("--count", type=int, default=300, help="captions a group for measure")
    parser.add_argument("--cfg", type=float, default=4.0, help="guidance scale for measure")
    parser.add_argument("--device", default="cpu", help="where the denoiser is trained: cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    _STEPS[options.step](options.folder, options)


if __name__ == "__main__":
    main()
