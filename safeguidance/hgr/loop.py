"""Training loop of the HGR. It knows a denoiser only as ``predict(x, sigma, cond)``.

States come from two sources, mixed: pictures noised to a random level where there are pictures, and rollouts, sampling
runs under CFG with the redirector as it is now. A rollout moves one step for each new set of states and re-uses the
predictions that their targets need anyway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from ..checkpoints import load_checkpoint, save_checkpoint
from ..guidance.safecfg import kappa, redirect
from ..predictions import cfg, per_sample, sample_mean
from .network import HGR
from .target import target


@dataclass(frozen=True)
class Row:
    """One training example: a prompt, its safe counterpart, the category index (-1: clean, its own counterpart)."""

    prompt: str
    safe: str
    category: int


_MEMORY = 32
"""Sets of states that are kept for reuse."""

RowT = TypeVar("RowT", bound=Row)


class Task(Protocol[RowT]):
    """What the loop is trained on. ``rows`` and ``pictures`` must depend on the step only, so that runs can resume."""

    schedule: torch.Tensor
    """Sigmas of a sampling run, descending, the last one 0."""

    def predict(self, x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """Denoised prediction for x ``[B, C, *spatial]``, sigma ``[B]``, cond ``[B, L, D]``."""
        ...

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token states ``[B, L, D]``."""
        ...

    def rows(self, step: int, count: int) -> list[RowT]:
        """Training rows of a step."""
        ...

    def pictures(self, step: int, rows: Sequence[RowT]) -> torch.Tensor | None:
        """Latents ``[B, C, *spatial]`` that fit the rows (at least one), or None where there are none."""
        ...

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Unit noise of latent shape ``[count, C, *spatial]``."""
        ...

    def noised(self, latent: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """A latent brought to noise level ``sigma [B]`` the way the model was trained."""
        ...


@dataclass(frozen=True)
class HGRTrainConfig:
    """Settings of a training run (the defaults are those of the shipped testbed weights).

    Args:
        steps: training steps.
        batch: rows a step that go through the denoiser; harmful ones where there are enough, since a clean row
            behind a closed gate has nothing left to learn there.
        clean_share: share of clean rows among them, 0..1.
        text_batch: rows a step that only train the gate and keep clean prompts in place.
        rate: peak learning rate (AdamW, cosine).
        scale: cfg scale trained for; use the lowest one to be supported.
        rollout_scale: cfg scale of the rollouts, the one that people sample with.
        gate_weight: weight of the gate's cross-entropy.
        clean_weight: weight of ``|gate * delta|^2`` on clean rows.
        rollout_share: share of the batch that comes from rollouts, 0..1; the rest is noised pictures.
        focus: extra weight of the score's error where prompt and safe counterpart differ most, 0 or more; there a
            small error, multiplied by cfg at use, leaves the harmful thing in the picture.
        reuse: steps for each new set of states; their targets cost three evaluations, a step on them costs one.
        jitter: noise added to the token states that the HGR reads, relative to their spread; stands in for wording
            it has not seen.
        seed: seed of everything.
    """

    steps: int = 1000
    batch: int = 16
    clean_share: float = 0.0625
    text_batch: int = 12
    rate: float = 1.5e-3
    scale: float = 2.0
    rollout_scale: float = 5.0
    gate_weight: float = 0.1
    clean_weight: float = 0.01
    rollout_share: float = 0.25
    focus: float = 10.0
    reuse: int = 3
    jitter: float = 0.1
    seed: int = 0

    @property
    def kappa(self) -> float:
        """Harm weight of the target."""
        return kappa(self.scale)


class Rollouts:
    """A pool of sampling runs, each at its own step, that training moves forward one step at a time.

    Args:
        task: gives noise, rows and the schedule.
        count: runs in the pool.
    """

    def __init__(self, task: Task[Any], count: int, generator: torch.Generator, rows: Sequence[Row]) -> None:
        self.task = task
        self.rows = list(rows[:count])
        last = len(task.schedule) - 1
        # start each run somewhere else, so that all noise levels are seen from the first step on
        self.index = torch.arange(count) * last // max(count, 1)
        sigma = task.schedule[self.index]
        pictures = task.pictures(-1, self.rows)
        noise = task.noise(count, generator)
        still = torch.zeros_like(noise) if pictures is None else pictures
        self.x = task.noised(still, noise, sigma)

    def sigma(self) -> torch.Tensor:
        """Noise level of each run, ``[count]``."""
        return self.task.schedule[self.index]

    def advance(self, denoised: torch.Tensor, fresh: Sequence[Row], generator: torch.Generator) -> None:
        """One Euler step with a guided prediction; finished runs start again with rows from ``fresh``."""
        now, then = self.sigma(), self.task.schedule[self.index + 1]
        slope = (self.x - denoised) / per_sample(now, self.x)
        self.x = self.x + per_sample(then - now, self.x) * slope
        self.index = self.index + 1
        done = torch.nonzero(then <= 0).flatten().tolist()
        if done:
            first = self.task.schedule[:1].expand(len(done))
            noise = self.task.noise(len(done), generator)
            self.x[done] = self.task.noised(torch.zeros_like(noise), noise, first)
            self.index[done] = 0
            for place, row in zip(done, fresh, strict=False):
                self.rows[place] = row


def train_hgr(
    network: HGR,
    task: Task[Any],
    config: HGRTrainConfig,
    folder: Path | None = None,
    watch: Callable[[int, dict[str, float]], None] | None = None,
) -> Iterator[int]:
    """Train an HGR in place; yields the step count after each step, so a caller can look, stop or interrupt.

    Args:
        network: trained in place.
        task: data and model.
        config: settings.
        folder: for checkpoints every 100 steps; an existing one is continued. None keeps none.
        watch: gets the step and the current losses.

    Raises:
        FloatingPointError: if a loss is not finite; the last checkpoint stays as it is.
        ValueError: if ``folder`` holds a checkpoint of other settings.
    """
    torch.manual_seed(config.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=0.01)
    settings = {**asdict(config), **asdict(network.config)}
    start = load_checkpoint(folder, {"hgr": network}, optimizer, settings) if folder else 0
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + start)
    empty = task.encode([""])
    kept = round(config.rollout_share * config.batch)
    rollouts = None
    if kept:
        rollouts = Rollouts(task, kept, generator, _pick(task.rows(-1 - start, 4 * config.batch), config, kept))
    batches: deque[_Batch] = deque(maxlen=_MEMORY)
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc="HGR", mininterval=5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = config.rate * _rate(step, config.steps)
        if step % config.reuse == 0 or not batches:
            batches.append(_collect(network, task, config, rollouts, empty, step, generator))
        batch = batches[int(torch.randint(len(batches), (), generator=generator))]
        losses = _step(network, task, config, batch, empty, step, generator)
        loss = losses["score"] + config.gate_weight * losses["gate"] + config.clean_weight * losses["clean"]
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(
                f"HGR training: the loss is {loss.item()} at step {step}; the last checkpoint is unharmed; "
                "lower the rate or look at the rows"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        values = {name: value.item() for name, value in losses.items()}
        bar.set_postfix(values, refresh=False)
        if watch:
            watch(step + 1, values)
        if folder and ((step + 1) % 100 == 0 or step + 1 == config.steps):
            save_checkpoint(folder, {"hgr": network}, optimizer, settings, step + 1)
        yield step + 1


def _rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / min(100, max(1, steps // 10)))
    return warm * (0.02 + 0.98 * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / steps)))))


@dataclass(frozen=True)
class _Batch:
    rows: list[Row]
    x: torch.Tensor
    sigma: torch.Tensor
    prompt: torch.Tensor
    wanted: torch.Tensor
    weight: torch.Tensor


@torch.no_grad()
def _collect(
    network: HGR,
    task: Task[Any],
    config: HGRTrainConfig,
    rollouts: Rollouts | None,
    empty: torch.Tensor,
    step: int,
    generator: torch.Generator,
) -> _Batch:
    """States with their targets; rollouts move on by one step."""
    spare = _pick(task.rows(step, 4 * config.batch), config, 2 * config.batch)
    used: list[Row] = list(rollouts.rows) if rollouts else []
    kept = len(used)
    fresh = spare[: config.batch - kept]
    x, sigma = _states(task, config, fresh, step, generator)
    if rollouts:
        x, sigma = torch.cat([rollouts.x, x]), torch.cat([rollouts.sigma(), sigma])
    used += fresh
    prompt, safe = task.encode([r.prompt for r in used]), task.encode([r.safe for r in used])
    base = empty.expand_as(prompt)
    d_prompt, d_safe, d_base = task.predict(
        torch.cat([x] * 3), torch.cat([sigma] * 3), torch.cat([prompt, safe, base])
    ).chunk(3)
    if rollouts:
        harmful = torch.tensor([float(r.category >= 0) for r in used[:kept]])
        moved = redirect(base[:kept], _bucketed(network, task, prompt[:kept], sigma[:kept]), harmful, 1.0)
        d_moved = task.predict(x[:kept], sigma[:kept], moved)
        rollouts.advance(cfg(d_prompt[:kept], d_moved, config.rollout_scale), spare[::-1], generator)
    weight = 1 + config.focus * _difference(d_prompt, d_safe)
    return _Batch(used, x, sigma, prompt, target(d_base, d_prompt, d_safe, config.kappa), weight)


def _difference(prompt: torch.Tensor, safe: torch.Tensor) -> torch.Tensor:
    """Where two predictions differ, ``[B, 1, *spatial]``, 1 at each sample's strongest place; 0 where they agree."""
    apart = (prompt - safe).abs().mean(dim=1, keepdim=True)
    return apart / apart.amax(dim=tuple(range(1, apart.ndim)), keepdim=True).clamp(min=1e-3)


def _step(
    network: HGR,
    task: Task[Any],
    config: HGRTrainConfig,
    batch: _Batch,
    empty: torch.Tensor,
    step: int,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    count = len(batch.rows)
    text_rows = task.rows(-2 - step, config.text_batch)
    text = task.encode([r.prompt for r in text_rows])
    base = empty.expand_as(batch.prompt)
    seen = _jittered(torch.cat([batch.prompt, text]), config.jitter, generator)
    logits = network.logits(seen)
    gate_loss = _gate_loss(logits, [*batch.rows, *text_rows])
    gate = logits[:count].sigmoid().amax(dim=1)
    harmful = torch.tensor([float(r.category >= 0) for r in batch.rows])
    delta = _bucketed(network, task, seen[:count], batch.sigma)
    # harmful rows train the change as it is used with an open gate; clean rows train what still leaks through
    moved = redirect(base, delta, torch.where(harmful > 0, torch.ones_like(gate), gate), 1.0)
    d_moved = task.predict(batch.x, batch.sigma, moved)
    score = sample_mean(batch.weight * ((d_moved - batch.wanted) / per_sample(batch.sigma, batch.x)).square())
    clean = _kept_in_place(network, task, seen[count:], logits[count:], text_rows, batch.sigma, generator)
    return {"score": score.mean(), "gate": gate_loss, "clean": clean}


def _pick(rows: Sequence[Any], config: HGRTrainConfig, count: int) -> list[Any]:
    """The first ``count`` rows with the wanted share of clean ones, spread evenly; fewer where there are not enough."""
    kinds = [[r for r in rows if r.category >= 0], [r for r in rows if r.category < 0]]
    period = round(1 / config.clean_share) if config.clean_share > 0 else len(rows) + 1
    picked = []
    for index in range(count):
        kind = kinds[int((index + 1) % period == 0)] or kinds[0] or kinds[1]
        if kind:
            picked.append(kind.pop(0))
    return picked


def _kept_in_place(
    network: HGR,
    task: Task[Any],
    tokens: torch.Tensor,
    logits: torch.Tensor,
    rows: Sequence[Row],
    sigma: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean of ``|gate * delta|^2`` over clean rows, at noise levels drawn from those of the batch."""
    clean = torch.tensor([r.category < 0 for r in rows], dtype=torch.bool)
    if not bool(clean.any()):
        return tokens.new_zeros(())
    count = int(clean.sum())
    level = sigma[torch.randint(len(sigma), (count,), generator=generator)]
    gate = logits[clean].sigmoid().amax(dim=1)
    return sample_mean((per_sample(gate, tokens) * _bucketed(network, task, tokens[clean], level)).square()).mean()


def _states(
    task: Task[Any], config: HGRTrainConfig, rows: Sequence[Row], step: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    place = torch.randint(len(task.schedule) - 1, (len(rows),), generator=generator)
    sigma = task.schedule[place]
    noise = task.noise(len(rows), generator)
    pictures = task.pictures(step, rows) if rows else None
    return task.noised(torch.zeros_like(noise) if pictures is None else pictures, noise, sigma), sigma


def _bucketed(network: HGR, task: Task[Any], tokens: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    edges = network.config.edges
    if len(edges) == 1:
        return network.change(tokens)[0]
    steps = len(task.schedule) - 1
    progress = torch.stack([(task.schedule[:-1] > s).sum() / steps for s in sigma])
    bucket = sum((progress >= edge).long() for edge in edges[1:])
    assert isinstance(bucket, torch.Tensor)
    deltas = torch.stack([network.change(tokens, index)[0] for index in range(len(edges))])
    return deltas[bucket, torch.arange(len(tokens))]


def _gate_loss(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    goal = torch.zeros_like(logits)
    for index, row in enumerate(rows):
        if row.category >= 0:
            goal[index, row.category] = 1
    return functional.binary_cross_entropy_with_logits(logits, goal)


def _jittered(tokens: torch.Tensor, amount: float, generator: torch.Generator) -> torch.Tensor:
    if amount == 0:
        return tokens
    spread = tokens.std(dim=(0, 1), keepdim=True)
    return tokens + amount * spread * torch.randn(tokens.shape, generator=generator)
