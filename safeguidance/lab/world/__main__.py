"""``python -m safeguidance.lab.world``: make the world of drawings, step by step."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...redirector.hgr import HGR
from ...redirector.text_weights import TextCard, save_text_redirector
from ...redirector.weights import HGRCard, save_hgr
from ...testbed.denoiser import Denoiser
from ...testbed.drawings.encoder import TextEncoder
from ...testbed.drawings.model import (
    DENOISER_FILE,
    ENCODER_FILE,
    ORACLE_FILE,
    DrawingsModel,
    load_model,
    load_small,
    save_small,
)
from ...testbed.drawings.shape import DENOISER_CONFIG
from ...testbed.drawings.wordpieces import VOCABULARY, WordPieces
from ...training.hgr import train_hgr
from ...training.hgr_config import HGRTrainConfig
from ...training.text_redirector import TextTrainConfig, train_text_redirector
from . import artwork, minilm
from .defend import SHAPE, DrawingsTask, calibrate
from .draw import Painter
from .measure import Sampling, guard_from, measure
from .oracle import Oracle, OracleConfig, oracle_accuracy, train_oracle
from .statistics import STATISTICS_FILE, drawn_moments, load_moments, save_moments
from .train import TrainConfig, train

HGR_FILE, TEXT_REDIRECTOR_FILE = "drawings-hgr.safetensors", "drawings-text-redirector.safetensors"
_FAMILY = "SafeGuidanceDrawings"
_DATA = "captions and wider wording a defender may know, paired with look-alikes; harmless prompts of the pack's banks"
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


def _frozen_encoder(folder: Path) -> TextEncoder:
    encoder = TextEncoder(len(WordPieces.from_pretrained()))
    load_small(encoder, folder / ENCODER_FILE)
    return encoder.requires_grad_(False).eval()


def _painter(folder: Path) -> Painter:
    return Painter(artwork.load(folder / "artwork"))


def _train(folder: Path, options: argparse.Namespace) -> None:
    encoder = _frozen_encoder(folder).to(options.device)
    config = TrainConfig(steps=options.steps or TrainConfig.steps, seed=options.seed)
    pieces, run = WordPieces.from_pretrained(), folder / "denoiser-run"
    denoiser = train(config, _painter(folder), encoder, pieces, run, begin=options.begin)
    notes = {"steps": str(config.steps), "seed": str(config.seed), "begun_from_weights": str(bool(options.begin))}
    save_small(denoiser.cpu(), folder / DENOISER_FILE, {**_OWN, **notes})


def _oracle(folder: Path, options: argparse.Namespace) -> None:
    config = OracleConfig(steps=options.steps or OracleConfig.steps)
    painter = _painter(folder)
    trained = train_oracle(config, painter, folder / "oracle-run")
    save_small(trained, folder / ORACLE_FILE, {**_OWN, "steps": str(config.steps)})
    oracle = _saved_oracle(folder)
    save_moments(folder / STATISTICS_FILE, drawn_moments(oracle, painter), {**_OWN, "scenes": "5000"})
    for part in ("all", "near_miss"):
        print(part, json.dumps(oracle_accuracy(oracle, painter, part=part)))


def _saved_oracle(folder: Path) -> Oracle:
    oracle = Oracle().requires_grad_(False).eval()
    load_small(oracle, folder / ORACLE_FILE)
    return oracle


def _calibrated(
    network: HGR, model: DrawingsModel, config: TextTrainConfig | HGRTrainConfig
) -> tuple[float, dict[str, Any]]:
    """Threshold of the gate and what the card says of the training."""
    threshold, figures = calibrate(network, model)
    print(json.dumps({"threshold": threshold, **figures}, indent=1))
    return threshold, {**asdict(config), "figures": figures}


def _text_redirector(folder: Path, options: argparse.Namespace) -> None:
    # only the encoder is used: this needs no trained denoiser
    model = DrawingsModel(_frozen_encoder(folder), Denoiser(DENOISER_CONFIG))
    config = TextTrainConfig(steps=options.steps or 1500)
    torch.manual_seed(config.seed)
    network = HGR(SHAPE)
    for _ in train_text_redirector(network, DrawingsTask(model, None), config, folder / "text-redirector-run"):
        pass
    threshold, notes = _calibrated(network, model, config)
    card = TextCard(_FAMILY, threshold, 0.01, 2000, _DATA, "Apache-2.0", training=notes)
    save_text_redirector(folder / TEXT_REDIRECTOR_FILE, network, card)


def _hgr(folder: Path, options: argparse.Namespace) -> None:
    model = load_model(folder)
    config = HGRTrainConfig(steps=options.steps or 1000, text_batch=16, rollout_share=0.375)
    torch.manual_seed(config.seed)
    network = HGR(SHAPE)
    for _ in train_hgr(network, DrawingsTask(model, _painter(folder)), config, folder / "hgr-run"):
        pass
    threshold, notes = _calibrated(network, model, config)
    card = HGRCard(_FAMILY, "A", config.kappa, threshold, 0.01, 2000, _DATA, "Apache-2.0", training=notes)
    save_hgr(folder / HGR_FILE, network, card)


def _measure(folder: Path, options: argparse.Namespace) -> None:
    how, model = Sampling(cfg=options.cfg), load_model(folder)
    guard = guard_from(options.guard, model, options.cfg) if options.guard else None
    sheet = Path("runs") / f"measured-{options.guard.stem if options.guard else 'unguarded'}.png"
    sheet.parent.mkdir(exist_ok=True)
    scenes = load_moments(folder / STATISTICS_FILE)
    found = measure(model, _saved_oracle(folder), options.count, how, sheet, options.seed, guard, scenes)
    print(json.dumps(found, indent=1))


_STEPS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "fetch": _fetch,
    "encoder": _encoder,
    "oracle": _oracle,
    "train": _train,
    "text-redirector": _text_redirector,
    "hgr": _hgr,
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
    parser.add_argument("--begin", type=Path, help="for train: weight file of a finished run to go on from")
    parser.add_argument("--guard", type=Path, help="weight file of an HGR or a text redirector for measure")
    parser.add_argument("--seed", type=int, default=0, help="of captions and noise, for train and measure")
    parser.add_argument("--device", default="cpu", help="where the denoiser is trained: cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    _STEPS[options.step](options.folder, options)


if __name__ == "__main__":
    main()
