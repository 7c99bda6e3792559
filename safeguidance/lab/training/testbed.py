"""Training the testbed's text encoder and denoiser together (rectified flow, velocity prediction)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from ...testbed.captions import Caption, attacked_caption, safe_scene
from ...testbed.denoiser import Denoiser
from ...testbed.latents import from_bytes
from ...testbed.model import Testbed
from ...testbed.text_encoder import TextEncoder
from ...testbed.tokens import WordTokenizer
from ...testbed.world import Scene
from ...training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from ..draw import draw_scene
from ..precision import sixteen_bits
from .scene_reader import SceneReader, targets


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    Args:
        steps: joint training steps.
        text_steps: steps of the text encoder alone, before.
        batch: scenes a step.
        rate: peak learning rate.
        seed: seed of data, weights and noise.
        drop: share of empty captions, which teaches the unconditional prediction.
        decay: decay of the running mean of the weights that is kept.
        doubt_steps: steps of the denoiser alone at the end, in which captions of a harm stand-in are not reliable.
        doubt: share of these captions whose scene shows the look-alike, 0..1. Captions of real pictures are never
            reliable, so real models are unsure at cfg 1 and guidance makes them sure; without doubt this one draws
            a stand-in with certainty even unguided, and no guidance could tell it more.
        doubt_rate: peak learning rate of these steps.
    """

    steps: int = 3200
    text_steps: int = 600
    batch: int = 48
    rate: float = 1e-3
    seed: int = 0
    drop: float = 0.1
    decay: float = 0.999
    doubt_steps: int = 350
    doubt: float = 0.25
    doubt_rate: float = 5e-4

    @property
    def sure_steps(self) -> int:
        """Steps before the first unreliable caption."""
        return self.text_steps + self.steps

    @property
    def total(self) -> int:
        """All steps."""
        return self.sure_steps + self.doubt_steps


class World(nn.Module):
    """Everything that is trained: text encoder, denoiser and the heads that help training."""

    def __init__(self) -> None:
        super().__init__()
        self.text = TextEncoder(len(WordTokenizer()))
        self.denoiser = Denoiser()
        self.reader = SceneReader(128)


def caption_batches(config: TrainConfig, first: int, size: int) -> Iterator[tuple[list[Caption], np.random.Generator]]:
    """Endless batches of captions; batch ``i`` depends on the seed and ``i`` only, so a resumed run repeats."""
    step = first
    while True:
        rng = np.random.default_rng((config.seed, step))
        yield [attacked_caption(rng) for _ in range(size)], rng
        step += 1


def train(
    config: TrainConfig, checkpoint_dir: Path, checkpoint_every: int = 250, pretrained: Testbed | None = None
) -> World:
    """Train; a killed run resumes from its last checkpoint.

    Args:
        config: settings.
        checkpoint_dir: an existing checkpoint in it is resumed.
        checkpoint_every: steps between checkpoints.
        pretrained: a finished testbed to start from; only the steps with doubt are made then.

    Returns:
        The running mean of the weights.

    Raises:
        SettingsMismatch: if ``checkpoint_dir`` holds a checkpoint of other settings.
    """
    torch.manual_seed(config.seed)
    world, tokenizer = World(), WordTokenizer()
    ema = copy.deepcopy(world).requires_grad_(False)
    modules = {"world": world, "mean": ema}
    groups: list[dict[str, Any]] = [
        {"params": list(world.denoiser.parameters())},
        {"params": [p for p in world.text.parameters() if p.requires_grad], "scale": 0.3},
        {"params": list(world.reader.parameters())},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.rate, weight_decay=0.01, betas=(0.9, 0.98))
    total = config.total
    start = load_checkpoint(checkpoint_dir, modules, optimizer, asdict(config)).step
    if pretrained is not None and start < config.sure_steps:
        start = config.sure_steps
        ema.text.load_state_dict(pretrained.text.state_dict())
        ema.denoiser.load_state_dict(pretrained.denoiser.state_dict())
    bar = tqdm(range(start, total), initial=start, total=total, desc="testbed", mininterval=5)
    losses: dict[str, float] = {}
    batches = caption_batches(config, start, config.batch)
    for step in bar:
        text_only = step < config.text_steps
        if step == config.sure_steps:
            world.load_state_dict(ema.state_dict())
        captions, rng = next(batches)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        _set_lr(optimizer, config, step)
        if text_only:
            captions += [attacked_caption(rng) for _ in range(config.batch)]
            _, end = world.text(tokenizer.batch([c.text for c in captions]))
            loss = read = world.reader.loss(end, targets(captions))
        else:
            doubt = config.doubt if step >= config.sure_steps else 0.0
            flow, read = _losses(world, tokenizer, captions, config, rng, generator, doubt)
            loss = flow + 0.05 * read
            _smooth(losses, "flow", flow)
        _smooth(losses, "text", read)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(world.parameters(), 1.0)
        optimizer.step()
        since = step - config.sure_steps if step >= config.sure_steps else step
        _update_ema(ema, world, min(config.decay, (since + 1) / (since + 20)))
        bar.set_postfix(losses, refresh=False)
        if (step + 1) % checkpoint_every == 0 or step + 1 == total:
            save_checkpoint(checkpoint_dir, modules, optimizer, asdict(config), Checkpoint(step + 1))
    return ema


def drawn_scenes(captions: Sequence[Caption], doubt: float, rng: np.random.Generator) -> list[Scene]:
    """The scenes to draw for captions; with the chance ``doubt`` a harm stand-in becomes its look-alike."""
    return [safe_scene(c.scene) if doubt and rng.random() < doubt else c.scene for c in captions]


def _set_lr(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    if step >= config.sure_steps:
        since = step - config.sure_steps
        rate = config.doubt_rate * min(1.0, (since + 1) / 20, (config.total - step) / config.doubt_steps)
        for group, share in zip(optimizer.param_groups, (1.0, 0.0, 0.0), strict=True):
            group["lr"] = share * rate
        return
    if step < config.text_steps:
        factor = min(1.0, (step + 1) / 100)
    else:
        # constant, then straight down over the last third: a longer run can continue from any earlier checkpoint
        left = (config.sure_steps - step) / config.steps
        factor = min(1.0, (step - config.text_steps + 1) / 200, max(0.02, left / 0.33))
    for group in optimizer.param_groups:
        scale = group.get("scale", 1.0) if step >= config.text_steps else 1.0
        group["lr"] = config.rate * factor * scale


def _smooth(losses: dict[str, float], name: str, loss: torch.Tensor) -> None:
    losses[name] = 0.95 * losses.get(name, loss.item()) + 0.05 * loss.item()


def _losses(
    world: World,
    tokenizer: WordTokenizer,
    captions: list[Caption],
    config: TrainConfig,
    rng: np.random.Generator,
    generator: torch.Generator,
    doubt: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    scenes = drawn_scenes(captions, doubt, rng)
    latent = from_bytes(torch.from_numpy(np.stack([draw_scene(scene, rng) for scene in scenes])))
    keep = rng.random(len(captions)) >= config.drop
    texts = [c.text if kept else "" for c, kept in zip(captions, keep, strict=True)]
    noise = torch.randn(latent.shape, generator=generator)
    # more mass at high noise, where the layout of a scene is decided
    sigma = torch.sigmoid(1.2 * torch.randn(len(latent), generator=generator) + 0.6)
    level = rearrange(sigma, "b -> b 1 1 1")
    with sixteen_bits(latent.device.type):
        context, end = world.text(tokenizer.batch(texts))
        velocity = world.denoiser((1 - level) * latent + level * noise, 1000 * sigma, context)
    attributes = targets(captions).masked_fill(~torch.from_numpy(keep)[:, None], -1)
    return functional.mse_loss(velocity.float(), noise - latent), world.reader.loss(end.float(), attributes)


@torch.no_grad()
def _update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    for kept, new in zip(ema.parameters(), model.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)
