"""Training loop of the HGR. It knows a denoiser only as ``predict(x, sigma, cond)``; states come from ``states``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from ..checkpoints import Restored, load_checkpoint, save_checkpoint
from ..predictions import per_sample, sample_mean
from ..redirector import Conditioning
from .config import HGRTrainConfig
from .network import HGR
from .states import MEMORY, Batch, Rollouts, Row, Task, change, collect, like, moved, pack, pick, rows_of, unpack
from .team import ALONE, Team, add_up, own, share

__all__ = ["HGRTrainConfig", "Row", "Task", "train_hgr"]

_SMOOTH, _BETTER = 0.98, 0.99  # running mean of the loss, and the share of the best one that counts as better


@dataclass
class _Patience:
    """Early stop: how long ago the running mean of the loss was last better."""

    mean: float = float("nan")
    best: float = float("inf")
    best_step: int = 0

    def over(self, loss: float, step: int, patience: int) -> bool:
        self.mean = loss if self.mean != self.mean else _SMOOTH * self.mean + (1 - _SMOOTH) * loss
        if self.mean < _BETTER * self.best:
            self.best, self.best_step = self.mean, step
        return self.spent(step, patience)

    def spent(self, step: int, patience: int) -> bool:
        return patience > 0 and step - self.best_step >= patience


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
    device = network.marks.device
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=0.01)
    settings = {**asdict(config), **asdict(network.config), **(about or {})}
    saved = load_checkpoint(folder, {"hgr": network}, optimizer, settings) if folder else Restored()
    start, stored = saved.step, saved.step
    generator = torch.Generator().manual_seed(config.seed * 1_000_003)
    empty = task.encode([""])
    batches: deque[Batch] = deque(maxlen=MEMORY)
    rollouts, patience = None, _Patience()
    if start:
        rollouts, batches = unpack(task, saved.tensors, saved.notes, generator, device, team)
        patience = _Patience(*saved.notes["patience"])
        if patience.spent(start, config.patience):
            return
    elif kept := round(config.rollout_share * config.batch):
        rollouts = Rollouts.begin(task, pick(task.rows(-1, 4 * config.batch), config, kept), generator, device, team)

    def save(step: int) -> None:
        nonlocal stored
        if folder and step > stored:
            tensors, notes = pack(rollouts, batches, generator, team)
            notes["patience"] = [patience.mean, patience.best, patience.best_step]
            if team.rank == 0:
                save_checkpoint(folder, {"hgr": network}, optimizer, settings, step, tensors, notes)
            stored = step

    bar = tqdm(
        range(start, config.steps), initial=start, total=config.steps, desc="HGR", mininterval=5, disable=not show
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = config.rate * _rate(step, config.steps)
        if step % config.reuse == 0 or not batches:
            batches.append(collect(network, task, config, rollouts, empty, step, generator, team))
        batch = batches[int(torch.randint(len(batches), (), generator=generator))]
        losses = _step(network, task, config, batch, empty, step, generator, team)
        loss = losses["score"] + config.gate_weight * losses["gate"] + config.clean_weight * losses["clean"]
        optimizer.zero_grad(set_to_none=True)
        if bool(torch.isfinite(loss)):
            loss.backward()
        found = torch.stack([value.detach() for value in (loss, *losses.values())])
        summed = add_up(network.parameters(), found, team)
        loss, values = summed[0], dict(zip(losses, summed[1:].tolist(), strict=True))
        norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if not bool(torch.isfinite(loss)) or not bool(torch.isfinite(norm)):
            what = f"the loss is {loss.item()}" if not bool(torch.isfinite(loss)) else "the gradient is not finite"
            raise FloatingPointError(
                f"HGR training: {what} at step {step}; the network keeps the weights of the step before and the last "
                f"checkpoint ({f'step {stored}' if stored else 'none yet'}) is unharmed; lower the rate, or look at "
                "the rows, and use another checkpoint folder"
            )
        optimizer.step()
        bar.set_postfix(values, refresh=False)
        if watch:
            watch(step + 1, values)
        stop = patience.over(loss.item(), step + 1, config.patience)
        if stop or (step + 1) % every == 0 or step + 1 == config.steps:
            save(step + 1)
        try:
            yield step + 1
        except GeneratorExit:
            # several processes are not stopped at the same step, so they can not gather what belongs to it
            if team.count == 1:
                save(step + 1)
            raise
        if stop:
            return


def _rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / min(100, max(1, steps // 10)))
    return warm * (0.02 + 0.98 * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / steps)))))


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
    base = like(empty, rows_of(batch.prompt, mine))
    logits = network.logits(seen)
    gate_loss = _gate_loss(logits, [*rows, *text_own]) * (len(seen) / (total + len(text_rows)))
    gate = logits[:count].sigmoid().amax(dim=1)
    harmful = torch.tensor([float(r.category >= 0) for r in rows]).to(gate)
    sigma = share(batch.sigma, team)
    delta = change(network, task.schedule, seen[:count], sigma)
    # harmful rows train the change as it is used with an open gate; clean rows train what still leaks through
    there = moved(base, delta, torch.where(harmful > 0, torch.ones_like(gate), gate))
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
