"""Training loop of the HGR. It knows a denoiser only as ``predict(x, sigma, cond)``; states come from ``states``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ..conditioning import Conditioning, expand_like, select_rows
from ..predictions import per_sample, sample_mean
from ..prompts.files import Row
from ..redirector.hgr import HGR
from ..redirector.interface import apply_delta
from .checkpoints import Restored
from .distributed import ALONE, Team, own, share
from .hgr_config import HGRTrainConfig
from .loop import descend
from .rollouts import MEMORY, Batch, Rollouts, Task, change, collect, pack, pick, unpack

__all__ = ["HGRTrainConfig", "Row", "Task", "train_hgr"]


def train_hgr(
    network: HGR,
    task: Task[Any],
    config: HGRTrainConfig,
    folder: Path | None = None,
    watch: Callable[[int, dict[str, float]], None] | None = None,
    every: int = 100,
    show: bool = True,
    team: Team = ALONE,
    about: Mapping[str, Any] | None = None,
) -> Iterator[int]:
    """Train an HGR in place; yields the step count after each step, so a caller can look, stop or interrupt.

    A caller that stops (closes the iterator) leaves a checkpoint of that step. A run that is killed goes on from its
    last checkpoint, on a CPU to the very weights that an undisturbed run gives. Several processes give the weights of
    one with the same batch up to rounding, and one may go on where several stopped; when they are stopped, their last
    regular checkpoint counts.

    Args:
        network: trained in place, on the device it is on.
        task: data and model.
        config: settings.
        folder: for checkpoints; an existing one is continued. None keeps none.
        watch: gets the step and the current losses.
        every: steps between checkpoints, 1 or more.
        show: draw a progress bar.
        team: the processes that share each batch; each calls this with the same arguments, its own device aside.
        about: what else a resumed run must agree with, such as the digest of its data.

    Raises:
        FloatingPointError: if a loss or a gradient is not finite; the network holds the weights of the step before,
            and the last checkpoint stays as it is.
        ValueError: if ``folder`` holds a checkpoint of other settings, there are no rows, or there are more processes
            than rows in a batch.
        OSError: if a checkpoint can not be written.
    """
    if team.count > min(config.batch, config.text_batch):
        raise ValueError(
            f"{team.count} processes can not share batches of {config.batch} states and {config.text_batch} texts; "
            "take a larger batch or fewer processes"
        )
    torch.manual_seed(config.seed)
    settings = {**asdict(config), **asdict(network.config), **(about or {})}
    run = _Redirecting(network, task, config, team)
    yield from descend("HGR", network, run, settings, folder, watch, every, show, team)


class _Redirecting:
    """What an HGR is trained on: rollouts, kept sets of states, and the losses on them."""

    def __init__(self, network: HGR, task: Task[Any], config: HGRTrainConfig, team: Team) -> None:
        self.network, self.task, self.config, self.team = network, task, config, team
        self.empty = task.encode([""])
        self.batches: deque[Batch] = deque(maxlen=MEMORY)
        self.rollouts: Rollouts | None = None

    def begin(self, generator: torch.Generator) -> None:
        config, task = self.config, self.task
        if kept := round(config.rollout_share * config.batch):
            rows = pick(task.rows(-1, 4 * config.batch), config, kept)
            self.rollouts = Rollouts.begin(task, rows, generator, self.network.marks.device, self.team)

    def restore(self, saved: Restored, generator: torch.Generator) -> None:
        device = self.network.marks.device
        self.rollouts, self.batches = unpack(self.task, saved.tensors, saved.notes, generator, device, self.team)

    def pack(self, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return pack(self.rollouts, self.batches, generator, self.team)

    def losses(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        config, rest = self.config, (self.empty, step, generator, self.team)
        if step % config.reuse == 0 or not self.batches:
            self.batches.append(collect(self.network, self.task, config, self.rollouts, *rest))
        batch = self.batches[int(torch.randint(len(self.batches), (), generator=generator))]
        losses = _step(self.network, self.task, config, batch, *rest)
        return losses["score"] + config.gate_weight * losses["gate"] + config.clean_weight * losses["clean"], losses


def _step(
    network: HGR,
    task: Task[Any],
    config: HGRTrainConfig,
    batch: Batch,
    empty: Conditioning,
    step: int,
    generator: torch.Generator,
    team: Team,
) -> dict[str, torch.Tensor]:
    """Losses; of several processes each gives its part of the sums that make them."""
    text_rows = task.rows(-2 - step, config.text_batch)
    text = task.encode([r.prompt for r in text_rows])
    total = len(batch.rows)
    mine, mine_text = own(total, team), own(len(text_rows), team)
    count, part = len(mine), len(mine) / total
    # of all rows, then this process's: the noise must not depend on how many processes there are
    seen = _jittered(torch.cat([batch.prompt.tokens, text.tokens]), config.jitter, generator)
    seen = seen[[*mine, *(total + place for place in mine_text)]]
    rows, text_own = [batch.rows[i] for i in mine], [text_rows[i] for i in mine_text]
    base = expand_like(empty, select_rows(batch.prompt, mine))
    logits = network.logits(seen)
    gate_loss = _gate_loss(logits, [*rows, *text_own]) * (len(seen) / (total + len(text_rows)))
    gate = logits[:count].sigmoid().amax(dim=1)
    harmful = torch.tensor([float(r.category >= 0) for r in rows]).to(gate)
    sigma = share(batch.sigma, team)
    delta = change(network, task.schedule, seen[:count], sigma)
    # harmful rows train the change as it is used with an open gate; clean rows train what still leaks through
    there = apply_delta(base, delta, torch.where(harmful > 0, torch.ones_like(gate), gate))
    d_moved = task.predict(batch.x, sigma, there)
    score = sample_mean(batch.weight * ((d_moved - batch.wanted) / per_sample(sigma, batch.x)).square())
    clean = _kept_in_place(network, task, seen[count:], logits[count:], text_rows, batch.sigma, generator, team)
    return {"score": score.mean() * part, "gate": gate_loss, "clean": clean}


def _kept_in_place(
    network: HGR,
    task: Task[Any],
    tokens: torch.Tensor,
    logits: torch.Tensor,
    rows: Sequence[Row],
    sigma: torch.Tensor,
    generator: torch.Generator,
    team: Team,
) -> torch.Tensor:
    """Mean of ``|gate * delta|^2`` over clean rows, at noise levels drawn from those of the batch."""
    places = [place for place, row in enumerate(rows) if row.category < 0]
    if not places:
        return tokens.new_zeros(())
    level = sigma[torch.randint(len(sigma), (len(places),), generator=generator)]
    mine = [number for number, place in enumerate(places) if place % team.count == team.rank]
    if not mine:
        return tokens.new_zeros(())
    level, own_places = level[mine], [places[number] // team.count for number in mine]
    gate = logits[own_places].sigmoid().amax(dim=1)
    delta = change(network, task.schedule, tokens[own_places], level)
    kept = sample_mean((per_sample(gate, tokens) * delta.tokens).square()).mean()
    if delta.pooled is not None:
        kept = kept + sample_mean((gate[:, None] * delta.pooled).square()).mean()
    return kept * (len(mine) / len(places))


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
    return tokens + amount * spread * torch.randn(tokens.shape, generator=generator).to(tokens)
